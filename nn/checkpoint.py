"""Published checkpoint directory ⇄ model, strictly, and the state that a stopped run goes on from.

The directory is Hugging Face's layout: config.json beside model.safetensors, or beside several shards with
model.safetensors.index.json. Tensor and config names are translated by each model's KEYS and CONFIG_KEYS, both ways.
"""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.overrides import TorchFunctionMode

from nn import MODELS
from nn.encoder import SharedEmbedding, init_weights
from nn.files import read_json, write_json, write_tensors
from nn.hub import CONFIG, WEIGHTS, WeightFile, find_pretrained, weight_files
from nn.quant import QUANTIZED, Int8Embedding, Int8Linear, is_quantized, put_quantized, quantizable
from nn.runtime import random_state, set_random_state

QUANTIZATION, SCALE = "quantization", "_scale"  # field of a quantized checkpoint's config; s beside a weight's name
ASIDE = ("projection.", "pretraining.")  # serve training alone and are saved nowhere but in its state
BACKBONE = re.compile(r"^(bert|roberta|distilbert|deberta)\.")

# ------------------------------------------------------------------------------------------------------- names


def translate(name: str, keys: dict[str, str]) -> str:
    """`layers.3.attention.query.weight` -> its published name by `keys`; the last part (weight, bias, A …) stays. The
    networks over words have no published names, and so no keys: theirs stay as they are."""
    if not keys:
        return name
    module, _, leaf = name.rpartition(".")
    pattern = re.sub(r"\.(\d+)(?=\.)", ".{}", module)
    if pattern not in keys:
        raise ValueError(f"{name} has no published name")
    return ".".join((keys[pattern].format(*re.findall(r"\.(\d+)(?=\.)", module)), leaf))


def strip_backbone(name: str) -> str:
    """`bert.encoder…` -> `encoder…`; legacy `LayerNorm.gamma` / `.beta` -> `.weight` / `.bias`."""
    name = BACKBONE.sub("", name)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def model_class(published: dict[str, Any], where: Path | str) -> type:
    """The class that implements a published config. Raises ValueError naming what is supported."""
    kind = published.get("model_type")
    for entry in MODELS.values():
        if getattr(entry.build, "model_type", None) == kind:
            return entry.build
    known = sorted(entry.build.model_type for entry in MODELS.values() if hasattr(entry.build, "model_type"))
    raise ValueError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(known)}")


def default_labels(count: int) -> tuple[str, ...]:
    return ("negative", "positive") if count == 2 else tuple(f"LABEL_{i}" for i in range(count))


def read_config(cls: type, published: dict[str, Any], num_labels: int) -> Any:
    """Published config -> cls.Config. Raises ValueError for a value this project does not implement."""
    for name, accepted in cls.SUPPORTED.items():
        if name in published and published[name] not in accepted:
            raise ValueError(f"config: {name} = {published[name]!r} is not supported; supported: {accepted}")
    values = {}
    for field in fields(cls.Config):
        name = cls.CONFIG_KEYS.get(field.name, field.name)
        if name in published and field.name != "labels":
            values[field.name] = published[name]
    names = published.get("id2label") or {}
    labels = tuple(names[key] for key in sorted(names, key=int))
    if len(labels) != num_labels or all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        labels = default_labels(num_labels)
    return cls.Config(**values, labels=labels)


def write_config(model: Module) -> dict[str, Any]:
    """The published config of a model: what transformers needs to load it."""
    values = asdict(model.config)
    labels = values.pop("labels")
    published = {model.CONFIG_KEYS.get(name, name): value for name, value in values.items() if value is not None}
    return {
        "model_type": model.model_type,
        "architectures": [model.architecture],
        **published,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": "float32",
    }


# ------------------------------------------------------------------------------------------------ load and save


class Unfilled(TorchFunctionMode):
    """Within it, tables and layers take no normal random numbers, which a file's would replace at once. On the meta
    device they would cost the import of torch._dynamo: two seconds and more."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_pretrained(
    source: str | Path, num_labels: int = 2, dtype: torch.dtype = torch.float32, int8: bool = False
) -> Module:
    """A checkpoint directory or hub id -> model, in `dtype`, with `model.fresh`: the parameters that the file leaves
    out and that were initialised at random (only head layers may be). num_labels 0: as many as the file's head has.
    int8: what nn/quant.py quantizes becomes 8-bit on the way, tensor by tensor; a quantized checkpoint stays so.

    Memory peaks at the model's size and one tensor: tensors are read, converted and let go one by one.
    Raises FileNotFoundError, or ValueError listing every missing, surplus, misshaped or unusable tensor at once.
    """
    directory = find_pretrained(source)
    published = read_json(directory / CONFIG)
    cls = model_class(published, directory / CONFIG)
    config = read_config(cls, published, num_labels or len(published.get("id2label", ())) or 2)
    with torch.device("meta"), Unfilled():  # shapes only
        model = cls(config)
    files = [WeightFile(path) for path in weight_files(directory)]
    fresh = check_tensors(model, files, directory, published.get(QUANTIZATION) == QUANTIZED)
    expected = {strip_backbone(translate(name, cls.KEYS)): name for name, _ in model.named_parameters()}
    stored = published.get(QUANTIZATION) == QUANTIZED
    small = {f"{name}.weight" for name in quantizable(model)} if int8 or stored else set()
    problems = []
    for file in files:
        for key in (key for key in file.shapes if strip_backbone(key) in expected):
            tensor, name = file.read(key), expected[strip_backbone(key)]
            if name in small:
                scale = file.read(f"{key}{SCALE}") if stored else None
                put_quantized(model, name.removesuffix(".weight"), tensor, scale)
                continue
            if not torch.isfinite(tensor.sum(dtype=torch.float64)):
                problems.append(f"{key} holds NaN or infinity")
            put_parameter(model, name, tensor.to(dtype, copy=True))
    if problems:
        raise ValueError(f"{directory} cannot be used: {'; '.join(problems[:20])}")
    for name in fresh:
        put_parameter(model, name, torch.empty_like(model.get_parameter(name), device="cpu", dtype=dtype))
    for owner in {name.rpartition(".")[0] for name in fresh}:
        init_weights(model.get_submodule(owner), config.initializer_range)
    for file in files:
        file.keep_converted()
    model.fresh = frozenset(fresh)
    return model


def put_parameter(model: Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner).register_parameter(leaf, Parameter(tensor))


def check_tensors(model: Module, files: list[WeightFile], directory: Path, quantized: bool) -> list[str]:
    """Names of the parameters that the files leave out and may. Raises ValueError with all that does not fit."""
    small = {f"{name}.weight" for name in quantizable(model)} if quantized else set()
    names = {strip_backbone(translate(name, model.KEYS)): name for name, _ in model.named_parameters()}
    found, problems = set(), []
    for file in files:
        for key, (shape, floating) in file.shapes.items():
            stripped = strip_backbone(key)
            if names.get(stripped.removesuffix(SCALE)) in small and stripped.endswith(SCALE):
                continue
            if stripped not in names:
                if not any(re.fullmatch(extra, stripped) for extra in model.EXTRAS):
                    problems.append(f"surplus {key}")
                continue
            wanted = list(model.get_parameter(names[stripped]).shape)
            if stripped in found:
                problems.append(f"{key} comes twice")
            elif shape != wanted:
                hint = f" (--num-labels {shape[0]} keeps the file's)" if names[stripped] == "classifier.weight" else ""
                problems.append(f"misshaped {key}: {shape}, the config asks for {wanted}{hint}")
            elif names[stripped] in small and key + SCALE not in file.shapes:
                problems.append(f"missing {key}{SCALE}")
            elif floating == (names[stripped] in small):
                problems.append(
                    f"{key} does not hold {'8-bit' if names[stripped] in small else 'floating point'} numbers"
                )
            found.add(stripped)
    missing = [name for stripped, name in names.items() if stripped not in found]
    fresh = [name for name in missing if name.split(".")[0] in model.HEAD]
    problems += [f"missing {translate(name, model.KEYS)}" for name in missing if name not in fresh]
    if problems:
        shown = "; ".join(problems[:20]) + ("; …" if len(problems) > 20 else "")
        raise ValueError(f"{directory} does not fit its {CONFIG} ({len(problems)} problems): {shown}")
    return fresh


def published_state(model: Module, heads: bool = True) -> dict[str, Tensor]:
    """Parameters, and 8-bit weights with their scales, by published name; heads: those of the classifier, too."""
    kept = {name: p for name, p in model.named_parameters() if not name.startswith(ASIDE)}
    if isinstance(model.embeddings.word, SharedEmbedding):
        del kept["embeddings.word.delta"]
        kept["embeddings.word.weight"] = model.embeddings.word.weight
    state = {
        translate(name, model.KEYS): p for name, p in kept.items() if heads or name.split(".")[0] not in model.HEAD
    }
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear | Int8Embedding):
            published = translate(f"{name}.weight", model.KEYS)
            state |= {published: module.weight, f"{published}{SCALE}": module.scale}
    return state


def save_pretrained(
    model: Module, directory: str | Path, dtype: torch.dtype = torch.float32, heads: bool = True
) -> None:
    """Writes config.json and model.safetensors with the published names: a directory that transformers loads, unless
    the model is quantized, which only this project reads. heads False leaves the classifier's layers out."""
    directory = Path(directory)
    quantized = {QUANTIZATION: QUANTIZED} if is_quantized(model) else {}
    state = published_state(model, heads)
    if dtype != torch.float32:
        state = {name: p.to(dtype) if p.is_floating_point() else p for name, p in state.items()}
    write_json(directory / CONFIG, write_config(model) | quantized | {"dtype": str(dtype).removeprefix("torch.")})
    write_tensors(directory / WEIGHTS, state)


# -------------------------------------------------------------------------------------------------- resume state


def training_state(model: Module, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Tensor]:
    """Everything that changes while training, by name: trained parameters, the optimizer's moments, random states."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    return tensors | random_state(device)


def restore_training_state(
    tensors: dict[str, Tensor], model: Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Puts `training_state` back, bit for bit. Raises ValueError where it belongs to another model."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            saved = tensors.get(f"model.{name}")
            if saved is None or saved.shape != parameter.shape:
                raise ValueError(f"the saved state does not fit the model: {name} is missing or misshaped")
            parameter.data.copy_(saved)
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    set_random_state(tensors, device)
