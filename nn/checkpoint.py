"""Published checkpoint directory ⇄ model, strictly, and the files that must never be half-written.

The directory is Hugging Face's layout: config.json beside model.safetensors, or beside several shards with
model.safetensors.index.json. Tensor and config names are translated by each model's KEYS and CONFIG_KEYS, both ways.
Nothing is unpickled, except by `convert_bin`, through torch.load(weights_only=True).
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module, Parameter

from nn import MODELS
from nn.encoder import init_weights

WEIGHTS, INDEX, BIN, CONFIG = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "config.json",
)
BACKBONE = re.compile(r"^(bert|roberta|distilbert|deberta)\.")
BUILTIN = Path(__file__).parent.parent / "data" / "weights" / "deberta-mini"


# ---------------------------------------------------------------------------------------------------- safe files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; afterwards it takes the place of `path` in one step, or, after an error,
    is removed and `path` is as it was. An error of the disk is an OSError that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise OSError(f"cannot write {path}: {error}; the file that was there is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises FileNotFoundError or ValueError, each naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        save_file(
            {name: t.detach().contiguous() for name, t in tensors.items()},
            temporary,
            metadata or {"format": "pt"},
        )


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A memory-mapped safetensors file. Raises FileNotFoundError, or ValueError where it is cut short or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


# -------------------------------------------------------------------------------------------------- where from


def find_pretrained(source: str | Path) -> Path:
    """The directory of a checkpoint: `source` itself, or a hub id (`name/model`, `name/model@revision`) fetched once
    into huggingface_hub's cache. Raises FileNotFoundError with the way out."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{source} is a file; --weights takes the directory that holds {CONFIG}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", str(source)) or str(source).startswith("."):
        raise FileNotFoundError(f"{source} is not a directory and does not look like a hub id (name/model)")
    return fetch(str(source))


def fetch(hub_id: str) -> Path:
    from huggingface_hub import errors, snapshot_download  # slow to import, needed here alone

    name, _, revision = hub_id.partition("@")
    wanted = [CONFIG, "tokenizer*", "vocab.*", "merges.txt", "spm.model", "special_tokens_map.json"]
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=[*wanted, WEIGHTS, INDEX, "model-*.safetensors"]
        )
        if not any((Path(folder) / file).exists() for file in (WEIGHTS, INDEX)):
            folder = snapshot_download(name, revision=revision or None, allow_patterns=[*wanted, BIN])
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"hub id {name!r} does not exist, or is private and needs a token (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"hub id {name!r} has no revision {revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is neither a directory here nor in the hub cache, and the hub cannot be reached; "
            "give --weights a directory, or go online once"
        ) from error
    except ValueError as error:  # the hub's own validation of ids
        raise FileNotFoundError(f"{hub_id!r} is not a directory and not a valid hub id") from error
    return Path(folder)


def convert_bin(path: Path) -> Path:
    """pytorch_model.bin -> model.safetensors beside it, once. torch.load(weights_only=True) refuses code."""
    target = path.with_name(WEIGHTS)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or refused pickle
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} was refused: it is damaged or holds more than tensors ({reason})") from error
    tensors = {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    write_tensors(target, tensors)
    return target


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises FileNotFoundError naming what is missing."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        names = sorted(set(read_json(directory / INDEX)["weight_map"].values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory} lacks {', '.join(missing)}, which its {INDEX} lists; fetch them again"
            )
        return [directory / name for name in names]
    if (directory / BIN).is_file():
        return [convert_bin(directory / BIN)]
    raise FileNotFoundError(f"{directory} holds no {WEIGHTS} (nor {INDEX}, nor {BIN})")


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
        labels = ("negative", "positive") if num_labels == 2 else tuple(f"LABEL_{i}" for i in range(num_labels))
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
    """A checkpoint directory or hub id -> model, in `dtype`, with `model.fresh`: the parameters that the file leaves out
    and that were initialised at random (only head layers may be).

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
    """Adds the tensor called `key` in a checkpoint to `state` under our name, or what is wrong with it to `problems`."""
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
        hint = f" (--num-labels {shape[0]} keeps the file's)" if name.startswith("classifier") else ""
        problems.append(f"misshaped {key}: {shape}, the config asks for {wanted}{hint}")
    else:
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            problems.append(f"{key} holds {tensor.dtype}, not floating point")
        elif not torch.isfinite(tensor.sum(dtype=torch.float64)):
            problems.append(f"{key} holds NaN or infinity")
        state[name] = tensor.to(dtype, copy=True)


def published_state(model: Module, owned: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    return {translate(name, model.KEYS): p for name, p in model.named_parameters() if owned(name)}


def save_pretrained(model: Module, directory: str | Path) -> None:
    """Writes config.json and model.safetensors with the published names: a directory that transformers loads."""
    directory = Path(directory)
    write_json(directory / CONFIG, write_config(model))
    write_tensors(directory / WEIGHTS, published_state(model))
