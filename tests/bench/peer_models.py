"""Runs the other libraries on the reviews and weights of a workload: each at any setting of its axes.

Scoring: `transformers_axes` and the like return the settings of a library at one precision, `…_scoring` a function that
builds a run from one setting. A run returns logits, float32 [N, C]. Training: `training_run`.

The packages are imported where they are used: they are needed for comparison only.
"""

import functools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from bench.measure import Axes
from bench.workload import Workload
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.utils import clip_grad_norm_

from data.batches import Batch
from nn.checkpoint import published_state, write_config
from nn.encoder import Encoder

ROOT = Path(__file__).parent.parent.parent
Scoring = Callable[..., Callable[[], np.ndarray]]
SIZES = ("16 reviews", "8 reviews", "32 reviews")  # of a batch in scoring
OUR_PASS = {"fp32": "2048 tokens", "bf16": "4096 tokens", "int8": "2048 tokens"}  # another size that is tried
CALIBRATION = 32  # reviews from which static int8 scales are computed

# ------------------------------------------------------------------------------------------ transformers and peft


def huggingface_peft() -> ModuleType:
    """Imports the installed package `peft`, which this project's package of the same name hides.

    From then on `import peft` means the installed package; objects that were imported before are unchanged.
    """
    if Path(sys.modules["peft"].__file__ or "").is_relative_to(ROOT):
        for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    import peft

    return peft


def theirs_like(model: Encoder, attention: str = "eager") -> Module:
    """Builds transformers' model with the config and weights of ours. attention: eager or sdpa"""
    huggingface_peft()  # transformers imports some of its names
    import transformers

    fields = json.loads(json.dumps(write_config(model)))  # tuples become lists
    cls = getattr(transformers, fields.pop("architectures")[0])
    fields = {key: value for key, value in fields.items() if key not in ("model_type", "dtype")}
    other = cls(cls.config_class(**fields, attn_implementation=attention))
    missing, unexpected = other.load_state_dict(published_state(model), strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in key for key in missing), missing
    return other


def attention_forms(work: Workload) -> tuple[str, ...]:
    """Returns the attention implementations that transformers has for the shape: DeBERTa has no sdpa."""
    return ("sdpa", "eager") if work.shape == "bert" else ("eager",)


def arrays(work: Workload, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the token ids and the mask of a batch, int64 [B, T] each."""
    batch = work.corpus.batch(rows)
    return batch.input_ids.numpy(), batch.mask.long().numpy()


def transformers_axes(work: Workload, precision: str) -> Axes:
    """precision: fp32, bf16 or int8"""
    forms = {"fp32": ("fp32",), "bf16": ("bf16 weights", "bf16 autocast"), "int8": ("int8 dynamic",)}[precision]
    sizes, orders = (*SIZES, OUR_PASS[precision]), ("sorted", "random")
    return {"form": forms, "attention": attention_forms(work), "order": orders, "size": sizes}


def transformers_scoring(work: Workload) -> Scoring:
    """Returns a builder of scoring runs. With int8, torch quantizes weights once and activations by batch."""

    @functools.cache
    def model(form: str, attention: str) -> Module:
        net = theirs_like(work.model, attention).eval()
        if form == "bf16 weights":
            return net.to(torch.bfloat16)
        return torch.ao.quantization.quantize_dynamic(net, {Linear}) if form == "int8 dynamic" else net

    def build(form: str, attention: str, order: str, size: str) -> Callable[[], np.ndarray]:
        net, batches = model(form, attention), work.batches(size, order)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=form == "bf16 autocast")

        @torch.inference_mode()
        def run() -> np.ndarray:
            logits = np.empty((len(work.corpus), 2), np.float32)
            for rows in batches:
                with autocast:
                    logits[rows] = of_theirs(net, work.corpus.batch(rows)).float()
            return logits

        return run

    return build


def of_theirs(model: Module, batch: Batch) -> Tensor:
    """Returns the logits of transformers' model."""
    return model(input_ids=batch.input_ids, attention_mask=batch.mask.long()).logits


# --------------------------------------------------------------------------------------------------------- OpenVINO


def openvino_axes(work: Workload, precision: str) -> Axes:
    """precision: fp32, bf16 or int8; with int8, the remaining operations are in fp32 or bf16."""
    graphs: tuple[str, ...] = ("plain",)
    if precision == "int8":
        graphs = ("int8 static", "int8 weights")
    rest = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("f32", "bf16")}[precision]
    sizes, hints = (*SIZES, OUR_PASS[precision]), ("LATENCY", "THROUGHPUT")
    return {"graph": graphs, "rest": rest, "attention": attention_forms(work), "hint": hints, "size": sizes}


def openvino_scoring(work: Workload) -> Scoring:
    """Returns a builder of scoring runs with dynamic shapes. With LATENCY all threads work on one batch, with
    THROUGHPUT several batches run at the same time."""
    import openvino as ov

    core = ov.Core()

    @functools.cache
    def graph(name: str, attention: str) -> Any:
        ids, mask = (torch.from_numpy(array) for array in arrays(work, np.arange(2)))
        net = theirs_like(work.model, attention).eval()
        found = ov.convert_model(net, example_input={"input_ids": ids, "attention_mask": mask})
        return found if name == "plain" else openvino_int8(work, found, name)

    def build(graph_name: str, rest: str, attention: str, hint: str, size: str) -> Callable[[], np.ndarray]:
        properties: dict[str, Any] = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": rest}
        properties |= {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(graph(graph_name, attention), "CPU", properties)
        queue, batches = ov.AsyncInferQueue(compiled), work.batches(size)

        def run() -> np.ndarray:
            logits = np.empty((len(work.corpus), 2), np.float32)
            queue.set_callback(lambda request, rows: logits.__setitem__(rows, request.get_output_tensor(0).data))
            for rows in batches:
                queue.start_async(dict(zip(("input_ids", "attention_mask"), arrays(work, rows), strict=True)), rows)
            queue.wait_all()
            return logits

        return run

    return lambda graph, **setting: build(graph, **setting)


def openvino_int8(work: Workload, graph: Any, name: str) -> Any:
    """Quantizes a graph. name: `int8 weights` (activations by batch), or `int8 static` (scales from some reviews)"""
    import nncf

    if name == "int8 weights":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    rows = work.batches("1 reviews")[:: max(1, len(work.corpus) // CALIBRATION)]
    inputs = [dict(zip(("input_ids", "attention_mask"), arrays(work, row), strict=True)) for row in rows]
    return nncf.quantize(graph, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)


# ----------------------------------------------------------------------------------------------------- ONNX Runtime


def onnxruntime_axes(work: Workload, precision: str) -> Axes:
    """precision: fp32 or int8"""
    workers = ("1 worker", f"{torch.get_num_threads()} workers")
    graphs = ("plain", "fused") if work.shape == "bert" else ("plain",)
    return {"form": (precision,), "graph": graphs, "workers": workers, "size": (*SIZES, OUR_PASS[precision])}


def onnxruntime_scoring(work: Workload) -> Scoring:
    """Returns a builder of scoring runs. With 1 worker all threads work on one batch, otherwise each on its own."""
    import onnxruntime as ort

    def build(form: str, graph: str, workers: str, size: str) -> Callable[[], np.ndarray]:
        count, options = int(workers.split()[0]), ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() // count
        session = ort.InferenceSession(onnx_file(work, form, graph), options, ["CPUExecutionProvider"])
        batches, pool = work.batches(size), ThreadPoolExecutor(count)

        def run() -> np.ndarray:
            logits = np.empty((len(work.corpus), 2), np.float32)

            def score(rows: np.ndarray) -> None:
                names = [value.name for value in session.get_inputs()]
                given = dict(zip(("input_ids", "attention_mask"), arrays(work, rows), strict=True))
                logits[rows] = session.run(None, {name: given[name] for name in names})[0]

            list(pool.map(score, batches))
            return logits

        return run

    return build


def onnx_file(work: Workload, form: str, graph: str) -> str:
    """Returns the path of the exported model. form: fp32 or int8.  graph: plain, or fused by onnxruntime's optimizer"""
    plain, fused, path = (str(work.folder / f"{name}.onnx") for name in ("plain", "fused", f"{form}-{graph}"))
    if not Path(plain).exists():
        export_onnx(work, plain)
    if graph == "fused" and not Path(fused).exists():
        from onnxruntime.transformers.optimizer import optimize_model

        c = work.model.config
        optimize_model(plain, "bert", num_heads=c.num_heads, hidden_size=c.hidden_size).save_model_to_file(fused)
    source = fused if graph == "fused" else plain
    if form == "int8" and not Path(path).exists():
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        of_fused = {"DefaultTensorType": TensorProto.FLOAT}  # whose types are not inferred
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True, extra_options=of_fused)
    return path if form == "int8" else source


def export_onnx(work: Workload, path: str) -> None:
    """Exports transformers' model with any batch size and length."""
    ids, mask = (torch.from_numpy(array) for array in arrays(work, np.arange(2)))
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        theirs_like(work.model, "eager").eval(),
        (),
        path,
        kwargs={"input_ids": ids, "attention_mask": mask},
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
        opset_version=17,
        dynamo=False,
    )


# --------------------------------------------------------------------------------------------------------- training


class Step:
    """One optimizer step of transformers' model as its trainer makes it: fused AdamW, the gradient's norm clipped to 1.
    The gradients of several passes are added up."""

    def __init__(self, model: Module, precision: str) -> None:
        self.model, self.precision = model.train(), precision
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def __call__(self, *passes: Batch) -> None:
        size = sum(len(batch.labels) for batch in passes)
        for batch in passes:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                logits = of_theirs(self.model, batch)
            (torch.nn.functional.cross_entropy(logits.float(), batch.labels) * (len(batch.labels) / size)).backward()
        clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def training_axes(work: Workload, precision: str) -> Axes:
    """precision: fp32 or bf16 (autocast; weights and moments stay fp32)"""
    forms = attention_forms(work)
    return {
        "precision": (precision,),
        "passes": ("1 pass", "4 passes"),
        "order": ("grouped", "random"),
        "attention": forms,
    }


def training_builder(work: Workload, batch: int, make: Callable[[str], Module]) -> Callable[..., Callable[[], None]]:
    """Returns a builder of runs over one epoch. make: builds the model from an attention implementation.

    passes: micro-batches of an optimizer step, as with the trainer's gradient accumulation.
    """
    model = functools.cache(make)

    def build(precision: str, passes: str, order: str, attention: str) -> Callable[[], None]:
        step = Step(model(attention), precision)
        batches = [np.array_split(rows, int(passes.split()[0])) for rows in work.batches(f"{batch} reviews", order)]

        def run() -> None:
            for split in batches:
                step(*(work.corpus.batch(rows) for rows in split))

        return run

    return build


def with_lora(model: Module) -> Module:
    """Adds peft's LoRA to query and value, rank 8; pooler and classifier are trained."""
    theirs = huggingface_peft()
    config = theirs.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, modules_to_save=["pooler", "classifier"])
    return theirs.get_peft_model(model, config)


def bitsandbytes_int8(model: Module) -> Module:
    """Replaces the linear layers of transformers' backbone by bitsandbytes' 8-bit layers, in place."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and name.startswith("deberta."):
            small = Linear8bitLt(module.in_features, module.out_features, has_fp16_weights=False, threshold=6.0)
            small.weight = Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            small.bias = module.bias
            model.set_submodule(name, small.to("cpu"))
    return model
