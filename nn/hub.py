"""Where published weights come from: a directory in Hugging Face's layout, or a hub id that is fetched once.

Nothing is unpickled, except by `convert_bin`, through torch.load(weights_only=True).
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from nn.files import read_json, write_tensors

WEIGHTS, INDEX, BIN, CONFIG = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json"
BUILTIN = Path(__file__).parent.parent / "data" / "weights" / "deberta-mini"
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "spm.model", "special_tokens_map.json")


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
    wanted = [CONFIG, *TOKENIZER_FILES]
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
