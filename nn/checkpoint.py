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

from nn import MODELS
from nn.encoder import init_weights
from nn.files import open_tensors, read_json, write_json, write_tensors
from nn.hub import CONFIG, WEIGHTS, find_pretrained, weight_files
from nn.runtime import random_state, set_random_state

BACKBONE = re.compile(r"^(bert|roberta|distilbert|deberta)\.")

# ------------------------------------------------------------------------------------------------------- names


def translate(name: str, keys: dict[str, str]) -> str:
    """`layers.3.attention.query.weight` -> its published name by `keys`; the last part (weight, bias, A …) stays."""
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
    known = ", ".join(
        sorted({entry.build.model_type for entry in MODELS.values() if hasattr(entry.build, "model_type")})
    )
    raise ValueError(f"{where}: model_type {kind!r} is not supported; supported: {known}")


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


def load_pretrained(source: str | Path, num_labels: int = 2, dtype: torch.dtype = torch.float32) -> Module:
    """A checkpoint directory or hub id -> model, in `dtype`, with `model.fresh`: the parameters that the file leaves
    out and that were initialised at random (only head layers may be).

    Raises FileNotFoundError, or ValueError listing every missing, surplus, misshaped or unusable tensor at once.
    """
    directory = find_pretrained(source)
    published = read_json(directory / CONFIG)
    cls = model_class(published, directory / CONFIG)
    config = read_config(cls, published, num_labels)
    with torch.device("meta"):  # shapes only: memory is taken tensor by tensor below
        model = cls(config)
    state, problems = {}, []
    expected = {strip_backbone(translate(name, cls.KEYS)): name for name, _ in model.named_parameters()}
    for path in weight_files(directory):
        with open_tensors(path) as file:
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no dict)
                read_tensor(file, key, expected, model, dtype, state, problems)
    missing = [name for name in expected.values() if name not in state]
    fresh = [name for name in missing if name.split(".")[0] in cls.HEAD]
    problems += [f"missing {translate(name, cls.KEYS)}" for name in missing if name not in fresh]
    if problems:
        shown = "; ".join(problems[:20]) + ("; …" if len(problems) > 20 else "")
        raise ValueError(f"{directory} does not fit its {CONFIG} ({len(problems)} problems): {shown}")
    for name in fresh:
        state[name] = torch.empty_like(model.get_parameter(name), device="cpu", dtype=dtype)
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_parameter(leaf, Parameter(tensor))
    for owner in {name.rpartition(".")[0] for name in fresh}:
        init_weights(model.get_submodule(owner), config.initializer_range)
    model.fresh = frozenset(fresh)
    return model


def read_tensor(file, key: str, expected: dict[str, str], model: Module, dtype: torch.dtype, state, problems) -> None:
    """Adds the tensor called `key` in a checkpoint to `state` under our name, or what is wrong with it to
    `problems`."""
    stripped = strip_backbone(key)
    if stripped not in expected:
        if not any(re.fullmatch(extra, stripped) for extra in model.EXTRAS):
            problems.append(f"surplus {key}")
        return
    name, shape = expected[stripped], list(file.get_slice(key).get_shape())
    wanted = list(model.get_parameter(name).shape)
    if name in state:
        problems.append(f"{key} comes twice")
    elif shape != wanted:
        state[name] = None  # not missing as well
        hint = f" (--num-labels {shape[0]} keeps the file's)" if name.startswith("classifier") else ""
        problems.append(f"misshaped {key}: {shape}, the config asks for {wanted}{hint}")
    else:
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            problems.append(f"{key} holds {tensor.dtype}, not floating point")
        elif not torch.isfinite(tensor.sum(dtype=torch.float64)):
            problems.append(f"{key} holds NaN or infinity")
        state[name] = tensor.to(dtype, copy=True)


def published_state(model: Module) -> dict[str, Tensor]:
    return {translate(name, model.KEYS): p for name, p in model.named_parameters()}


def save_pretrained(model: Module, directory: str | Path) -> None:
    """Writes config.json and model.safetensors with the published names: a directory that transformers loads."""
    directory = Path(directory)
    write_json(directory / CONFIG, write_config(model))
    write_tensors(directory / WEIGHTS, published_state(model))


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
