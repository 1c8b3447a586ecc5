"""Measures everything that needs a GPU, in slices of less than nine minutes each.

    python tests/bench/gpu.py SLICE … [--out FOLDER] [--seconds N]
    python tests/bench/gpu.py run --minutes 9 --command "train.py --model deberta --loss mlm … --name mini"
    python tests/bench/gpu.py --dry        every slice at a tiny size on a CPU; its numbers mean nothing

SLICE: limits (the card's own rates), attention (the Triton kernels against the plain form and FlexAttention, with
dropout), tune (tile sizes of the kernels), train-256, train-512, train-lora (DeBERTa-v3-base's shape; ours, compiled,
as a CUDA graph), peers-256, peers-512 (the same in transformers, eager, SDPA and compiled, and FlashDeBERTa), score,
pretrain (masked language modelling), xxlarge (8-bit LoRA, 16 × 512). Each writes FOLDER/SLICE.json (default: $OUT, else
runs/gpu), a row after each case, so that a command that is cut off keeps what it measured. A case that fails
is a row with its error. After --seconds (default 520) no further case starts.

`run` runs a script of this project for at most --minutes, stops it as Ctrl-C does, and packs runs/ into FOLDER in parts
of 15 MiB: `cat runs.tar.* | tar xz` restores it, and --resume continues the run.

Weights and token ids are random, without padding. Times are medians of synchronized calls, after a warm-up that
includes the compilation. Every file has the card's name, torch's version and the command.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from flex import compiled, flex_disentangled

import peft
from data.batches import Batch
from losses import OBJECTIVES
from losses.mlm import MLM, Vocabulary
from nn import triton_attention
from nn.deberta import Deberta, DebertaConfig, DisentangledAttention, rows_by_distance
from nn.quant import quantize_int8
from nn.runtime import DTYPES, Machine, cast_once, describe_device, peak_memory
from nn.triton_attention import disentangled_attention, runs_on, tile_settings

ROOT = Path(__file__).parent.parent.parent
DRY = "--dry" in sys.argv
DEVICE = torch.device("cpu" if DRY else "cuda")
PART = 15 * 2**20  # bytes of a file that comes back
V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ("p2c", "c2p"),
    "position_biased_input": False,
}
BASE = V3 | {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "feed_forward_size": 3072, "vocab_size": 128_100}
SMALL = V3 | {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 32, "vocab_size": 300}
Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]  # what is measured, and the function that measures it


def scaled(size: int) -> int:
    """Returns a size, or a tiny one in a dry run."""
    return min(size, 9) if DRY else size


# -------------------------------------------------------------------------------------------------------- measuring


def wait() -> None:
    """Waits for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def median(run: Callable[[], Any], repeats: int = 11) -> float:
    """Returns the median of the seconds of run(), after two calls that warm up."""
    times = []
    for _ in range(2 + (1 if DRY else repeats)):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def peak_mib(run: Callable[[], Any]) -> int:
    """Returns the peak of the GPU's memory during run(), in MiB, with what was allocated before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return round((peak_memory(DEVICE) or 0) / 2**20)


def speed(run: Callable[[], Any], tokens: int) -> Row:
    """Returns tokens a second, milliseconds and peak memory."""
    seconds = median(run)
    return {"tokens/s": round(tokens / seconds), "ms": round(1e3 * seconds, 3), "peak MiB": peak_mib(run)}


# ----------------------------------------------------------------------------------------------------------- limits


def bandwidth() -> float:
    """Returns bytes a second of a copy within the memory, bytes read and written."""
    x = torch.empty(scaled(2**30), dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    return 2 * x.numel() / median(lambda: y.copy_(x))


def product_rate(dtype: torch.dtype) -> float:
    """Returns the operations a second of a product of two 8192 × 8192 matrices of random numbers."""
    size = scaled(8192)
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * size**3 / median(lambda: a @ b)


def limits() -> Iterator[Case]:
    """Measures the two rates that bound every kernel."""
    yield {"case": "copy"}, lambda: {"GB/s": round(bandwidth() / 1e9, 1)}
    for name, dtype in DTYPES.items():
        yield {"case": f"product {name}"}, lambda dtype=dtype: {"TFLOP/s": round(product_rate(dtype) / 1e12, 2)}


# -------------------------------------------------------------------------------------------------------- attention


def attention_inputs(batch: int, length: int, dtype: torch.dtype, heads: int = 12, width: int = 64) -> Row:
    """Draws the arguments of `disentangled_attention` in DeBERTa-v3-base's shape."""
    torch.manual_seed(0)
    heads, width = (2, 5) if DRY else (heads, width)
    index, first, last = rows_by_distance(length, length, 256, 512, DEVICE)
    sizes = {"q": (batch, length), "k": (batch, length), "v": (batch, length), "k_r": (1, last - first + 1)}
    sizes["q_r"] = sizes["k_r"]
    scale = {"q": 1 / math.sqrt(3 * width), "q_r": 1 / math.sqrt(3 * width)}
    made: Row = {
        name: (torch.randn(rows, size, heads, width, device=DEVICE) * scale.get(name, 1))
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for name, (rows, size) in sizes.items()
    }
    return made | {"index": index, "mask": torch.ones(batch, length, dtype=torch.bool, device=DEVICE)}


def plain_attention(given: Row, p: float) -> Tensor:
    """Computes the same with the operations of the plain form, in the dtype of the inputs."""
    q, k, v, k_r, q_r = (given[name] for name in ("q", "k", "v", "k_r", "q_r"))
    length = q.size(2)
    at = torch.arange(length, device=DEVICE)
    rows = given["index"][length - 1 - (at[:, None] - at[None])].long().expand(*q.shape[:2], -1, -1)
    scores = q @ k.transpose(-1, -2)
    scores = scores + (q @ k_r.transpose(-1, -2)).gather(-1, rows)
    scores = scores + (k @ q_r.transpose(-1, -2)).gather(-1, rows.transpose(-1, -2)).transpose(-1, -2)
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~given["mask"][:, None, None], lowest).softmax(-1, dtype=torch.float32)
    return F.dropout(weights.to(v.dtype), p) @ v


def attention_forms(given: Row, p: float) -> dict[str, Callable[[], Tensor]]:
    """Returns the forms of attention that this machine has. FlexAttention has no dropout."""
    forms = {"plain": lambda: plain_attention(given, p)}
    if runs_on(DEVICE):
        forms["kernel"] = lambda: disentangled_attention(**given, p=p)
    if DEVICE.type == "cuda":
        forms["flex, without dropout"] = lambda: flex_disentangled(**given, attend=compiled())
    return forms


def floors(given: Row, rates: Row) -> Row:
    """Returns the least milliseconds of the forward pass and of both passes: by bytes, and by operations.

    Bytes: inputs read once, results written once; in the backward pass inputs, y, its gradient and five gradients.
    Operations: a product of all pairs is 2·B·H·T·S·K. Forward 4: q kᵀ, w v, and one with each table. Backward 11: the
    first and the last two again, and two gradients of each of the four.
    """
    batch, heads, length, width = given["q"].shape
    tensors = sum(given[name].numel() * given[name].element_size() for name in ("q", "k", "v", "k_r", "q_r"))
    y = given["q"].numel() * given["q"].element_size()
    product = 2 * batch * heads * length**2 * width
    forward_bytes, backward_bytes = tensors + y, 2 * tensors + 2 * y
    return {
        "floor forward, bytes, ms": round(1e3 * forward_bytes / rates["bytes"], 4),
        "floor forward, operations, ms": round(1e3 * 4 * product / rates["operations"], 4),
        "floor both, bytes, ms": round(1e3 * (forward_bytes + backward_bytes) / rates["bytes"], 4),
        "floor both, operations, ms": round(1e3 * 15 * product / rates["operations"], 4),
    }


def measure_attention(batch: int, length: int, name: str, p: float, rates: Row) -> Row:
    """Measures all forms at one size: the error against float64, forward, both passes, peak memory."""
    given = attention_inputs(batch, length, DTYPES[name])
    trained = [given[x] for x in ("q", "k", "v", "k_r", "q_r")]
    row = floors(given, rates)
    one = {key: x[:1].double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}
    expected = plain_attention(one | {"mask": given["mask"][:1]}, 0.0).detach()
    exact = attention_forms(given, 0.0)
    for form, run in attention_forms(given, p).items():
        with torch.no_grad():
            y = exact[form]()[:1].double()
        row[f"{form}: error"] = f"{((y - expected).norm() / expected.norm()).item():.2e}"

        def both(run: Callable[[], Tensor] = run) -> None:
            y = run()
            torch.autograd.grad(y, trained, torch.ones_like(y))

        with torch.no_grad():
            row[f"{form}: forward, ms"] = round(1e3 * median(run), 4)
        row[f"{form}: both, ms"] = round(1e3 * median(both), 4)
        row[f"{form}: peak MiB"] = peak_mib(both)
    return row


def attention() -> Iterator[Case]:
    """Compares the forms at 16 × 256 … 4 × 2048 tokens, with and without dropout."""
    for name in ("bf16", "fp16", "fp32"):
        rates = {"bytes": bandwidth(), "operations": product_rate(DTYPES[name])}
        for batch, length in ((16, 512), (32, 256), (64, 128), (8, 1024), (4, 2048)):
            for p in (0.1, 0.0):
                sizes = {"batch": scaled(batch), "length": scaled(length), "name": name, "p": p}
                yield {"case": "attention", **sizes}, lambda s=sizes, r=rates: measure_attention(**s, rates=r)


@contextlib.contextmanager
def tiles(**changes: Any) -> Iterator[None]:
    """Changes the tile settings of the kernels within the block."""
    triton_attention.tile_settings = lambda *given: tile_settings(*given) | changes
    try:
        yield
    finally:
        triton_attention.tile_settings = tile_settings


def measure_tiles(name: str, changes: Row) -> Row:
    """Measures the kernels with other settings at 16 × 512."""
    if not runs_on(DEVICE):
        return {"skipped": "no GPU"}
    given = attention_inputs(16, 512, DTYPES[name])
    trained = [given[x] for x in ("q", "k", "v", "k_r", "q_r")]

    def both() -> None:
        y = disentangled_attention(**given, p=0.1)
        torch.autograd.grad(y, trained, torch.ones_like(y))

    with tiles(**changes):
        with torch.no_grad():
            forward = median(lambda: disentangled_attention(**given, p=0.1))
        return {"forward, ms": round(1e3 * forward, 4), "both, ms": round(1e3 * median(both), 4)}


def tune() -> Iterator[Case]:
    """Tries tile sizes, warps and pipeline stages; for fp32 also three products in TF32 instead of one in fp32."""
    for name in ("bf16", "fp32"):
        for block in (32, 64, 16):
            for warps in (4, 8):
                for stages in (1, 2, 3):
                    changes: dict[str, Any] = {"BLOCK": block, "num_warps": warps, "num_stages": stages}
                    yield {"case": "tiles", "name": name, **changes}, lambda n=name, c=changes: measure_tiles(n, c)
    changes = {"PRECISION": "tf32x3"}
    yield {"case": "tiles", "name": "fp32", **changes}, lambda: measure_tiles("fp32", changes)


# --------------------------------------------------------------------------------------------------------- training


def ids_of(batch: int, length: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws token ids and labels; no padding."""
    ids = torch.randint(5, vocab, (scaled(batch), scaled(length)), device=DEVICE)
    return ids, torch.ones_like(ids, dtype=torch.bool), torch.randint(0, 2, (len(ids),), device=DEVICE)


def sizes(shape: dict[str, Any]) -> dict[str, Any]:
    """Returns the config fields of a shape, or those of a small model in a dry run."""
    return SMALL if DRY else shape


def base_model(method: str = "none") -> Deberta:
    """Returns a DeBERTa of v3-base's shape with random weights."""
    torch.manual_seed(0)
    model = Deberta(DebertaConfig(**sizes(BASE)))
    if method == "lora":
        peft.apply(model, "lora", rank=8)
    return model.to(DEVICE).train()


def step_of(model: Module, logits_of: Callable[[Module], Tensor], labels: Tensor, name: str) -> Callable[[], None]:
    """Returns a function that makes one optimizer step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    machine = Machine(DEVICE, DTYPES[name])

    def step() -> None:
        with machine.autocast():
            logits = logits_of(model)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def graph_of(model: Module, ids: Tensor, mask: Tensor, labels: Tensor, name: str) -> Callable[[], None]:
    """Returns a training step whose forward and backward pass are one CUDA graph, captured at this shape."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True, capturable=True)

    def step() -> None:
        with Machine(DEVICE, DTYPES[name]).autocast():
            logits = model(ids, mask)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> None:
        graph.replay()
        _ = optimizer  # alive, since the graph writes its moments

    return replay


def measure_ours(form: str, batch: int, length: int, name: str, method: str) -> Row:
    """Measures a training step of ours in one form: kernel, plain, compiled or graph."""
    if form in ("compiled", "graph") and DRY:
        return {"skipped": "dry run"}
    DisentangledAttention.KERNEL = form != "plain"
    try:
        model = base_model(method)
        ids, mask, labels = ids_of(batch, length, model.config.vocab_size)
        if form == "graph":
            steps: list[Callable[[], None]] = []
            peak = peak_mib(lambda: steps.append(graph_of(model, ids, mask, labels, name)))
            return speed(steps[0], ids.numel()) | {"peak MiB": peak}  # a replay allocates nothing
        run = torch.compile(model) if form == "compiled" else model
        return speed(step_of(model, lambda _: run(ids, mask), labels, name), ids.numel())
    finally:
        DisentangledAttention.KERNEL = True


def ours(length: int, methods: tuple[str, ...]) -> Iterator[Case]:
    """Measures our forms in bf16, fp16 and fp32."""
    batch = 16 * 512 // length
    for method in methods:
        for name in ("bf16", "fp32", "fp16"):
            for form in ("kernel", "plain", "graph", "compiled"):
                if name == "bf16" or form in ("kernel", "plain"):
                    given = {"form": form, "batch": batch, "length": length, "name": name, "method": method}
                    yield {"case": "train", **given}, lambda g=given: measure_ours(**g)


def train_lora() -> Iterator[Case]:
    """Measures LoRA at both lengths."""
    for length in (512, 256):
        yield from ours(length, ("lora",))


def their_model(form: str) -> Module:
    """Returns transformers' or FlashDeBERTa's model of the same shape."""
    import transformers

    shape = sizes(BASE)
    config = transformers.DebertaV2Config(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        intermediate_size=shape["feed_forward_size"],
        relative_attention=True,
        position_buckets=256,
        max_relative_positions=-1,
        max_position_embeddings=512,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    )
    if form == "flashdeberta":
        import flashdeberta

        return flashdeberta.FlashDebertaV2ForSequenceClassification(config)
    if form == "sdpa":
        config._attn_implementation = "sdpa"
    return transformers.DebertaV2ForSequenceClassification(config)


def measure_theirs(form: str, batch: int, length: int, name: str) -> Row:
    """Measures a training step of theirs."""
    model = their_model(form).to(DEVICE).train()
    ids, mask, labels = ids_of(batch, length, sizes(BASE)["vocab_size"])
    run = torch.compile(model) if form == "compiled" else model
    numbers = mask.long()
    return speed(step_of(model, lambda _: run(input_ids=ids, attention_mask=numbers).logits, labels, name), ids.numel())


def theirs(length: int) -> Iterator[Case]:
    """Measures the peers at one length."""
    batch = 16 * 512 // length
    for name in ("bf16", "fp32"):
        for form in ("eager", "compiled", "sdpa", "flashdeberta"):
            given = {"form": form, "batch": batch, "length": length, "name": name}
            yield {"case": "peer", **given}, lambda g=given: measure_theirs(**g)


# ------------------------------------------------------------------------------------- scoring, pretraining, xxlarge


def measure_score(batch: int, length: int, name: str, int8: bool) -> Row:
    """Measures scoring, with weights cast once."""
    model = base_model().eval()
    if int8:
        quantize_int8(model)
    ids, mask, _ = ids_of(batch, length, model.config.vocab_size)
    machine = Machine(DEVICE, DTYPES[name])
    with torch.inference_mode(), cast_once(model, machine), machine.autocast():
        return speed(lambda: model(ids, mask), ids.numel())


def score() -> Iterator[Case]:
    """Measures scoring in each precision, and with 8-bit weights."""
    for length in (512, 256, 128):
        for name, int8 in (("bf16", False), ("fp16", False), ("fp32", False), ("bf16", True)):
            given = {"batch": 64 * 512 // length, "length": length, "name": name, "int8": int8}
            yield {"case": "score", **given}, lambda g=given: measure_score(**g)


def measure_pretraining(layers: int, batch: int, name: str, compile_it: bool) -> Row:
    """Measures steps of masked language modelling in the shape `layers` × 256, with chunks of 128 tokens."""
    torch.manual_seed(0)
    shape = V3 | {"hidden_size": 256, "num_layers": layers, "num_heads": 4, "feed_forward_size": 1024}
    model = Deberta(DebertaConfig(**sizes(shape | {"vocab_size": 16_000})))
    entry, options = OBJECTIVES["mlm"], OBJECTIVES["mlm"].options()
    ordinary = torch.arange(model.config.vocab_size) > 4  # as if the special tokens had the ids 0 to 4
    model.pretraining = MLM(model, Vocabulary(mask_id=4, ordinary=ordinary, starts=torch.ones_like(ordinary)))
    model = model.to(DEVICE).train()
    ids, mask, labels = ids_of(batch, 128, model.config.vocab_size)
    given = Batch(ids, mask, labels, torch.arange(len(ids), device=DEVICE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    machine = Machine(DEVICE, DTYPES[name])
    objective = torch.compile(entry.objective) if compile_it else entry.objective

    def step() -> None:
        with machine.autocast():
            loss, _ = objective(model, given, options)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return speed(step, ids.numel())


def pretrain() -> Iterator[Case]:
    """Measures pretraining in two shapes and three batch sizes."""
    for layers in (4, 6):
        for batch, compile_it in ((128, False), (512, False), (1024, False), (512, True)):
            if not (DRY and compile_it):
                given = {"layers": layers, "batch": batch, "name": "bf16", "compile_it": compile_it}
                yield {"case": "pretrain", **given}, lambda g=given: measure_pretraining(**g)


def xxlarge_case() -> Row:
    """Runs tests/bench/xxlarge.py, which prints its own account."""
    sizes = ["1", "8"] if DRY else ["16", "512"]
    command = [sys.executable, str(ROOT / "tests/bench/xxlarge.py"), *sizes]
    if DRY:
        return {"skipped": "dry run: needs 8 GB", "command": " ".join(command[1:])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    return {"output": done.stdout.splitlines(), "error": done.stderr[-300:]}


def xxlarge() -> Iterator[Case]:
    """Measures 8-bit LoRA in xxlarge's shape, 16 × 512."""
    yield {"case": "xxlarge, 8-bit LoRA"}, xxlarge_case


SLICES: dict[str, Callable[[], Iterator[Case]]] = {
    "limits": limits,
    "attention": attention,
    "tune": tune,
    "train-512": lambda: ours(512, ("none",)),
    "train-256": lambda: ours(256, ("none",)),
    "train-lora": train_lora,
    "peers-512": lambda: theirs(512),
    "peers-256": lambda: theirs(256),
    "score": score,
    "pretrain": pretrain,
    "xxlarge": xxlarge,
}


# ---------------------------------------------------------------------------------------------------------- running


def run_slice(name: str, folder: Path, seconds: float) -> None:
    """Runs the cases of a slice and writes FOLDER/NAME.json after each."""
    end, path = time.monotonic() + seconds, folder / f"{name}.json"
    head = {"slice": name, "card": describe_device(DEVICE), "torch": torch.__version__, "command": sys.argv}
    rows: list[Row] = []
    for described, measure in SLICES[name]():
        if time.monotonic() > end:
            rows.append({**described, "left out": "no time"})
        else:
            try:
                rows.append({**described, **measure()})
            except Exception as error:
                rows.append({**described, "error": f"{type(error).__name__}: {str(error)[:300]}"})
        print(json.dumps(rows[-1]), flush=True)
        path.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
        torch._dynamo.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def pack(source: Path, folder: Path) -> None:
    """Packs a folder into parts of at most PART bytes: runs.tar.00, runs.tar.01, …"""
    whole = folder / "runs.tar"
    with tarfile.open(whole, "w:gz") as archive:
        archive.add(source, arcname=source.name, filter=lambda x: None if "/cache" in x.name else x)
    data = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate(range(0, len(data), PART)):
        (folder / f"runs.tar.{number:02}").write_bytes(data[start : start + PART])


def run_command(command: str, minutes: float, folder: Path) -> int:
    """Runs a script of this project for at most `minutes`, stops it, and packs runs/. Returns its exit code."""
    script, *arguments = shlex.split(command)
    process = subprocess.Popen([sys.executable, str(ROOT / script), *arguments])
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # train.py saves its state after the current step
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()  # what it saved before is packed
            process.wait()
    if Path("runs").is_dir():
        pack(Path("runs"), folder)
    return process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slices", nargs="*", choices=[*SLICES, "run", []], metavar="SLICE")
    parser.add_argument("--out", default=os.environ.get("OUT", "runs/gpu"))
    parser.add_argument("--seconds", type=float, default=520.0, help="of one slice")
    parser.add_argument("--command", default="", help="of `run`: a script of this project and its arguments")
    parser.add_argument("--minutes", type=float, default=9.0, help="of `run`")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU")
    given = parser.parse_args()
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    if given.slices == ["run"]:
        sys.exit(run_command(given.command, given.minutes, folder))
    if not DRY and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --dry runs every slice at a tiny size on a CPU")
    warnings.filterwarnings("ignore")
    for name in given.slices or SLICES:
        run_slice(name, folder, given.seconds)


if __name__ == "__main__":
    main()
