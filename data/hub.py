"""Finds checkpoints: a directory in Hugging Face's layout, or a hub id that is fetched once.

No file is unpickled, except by `load_pickled`, through torch.load(weights_only=True).
"""

import contextlib
import errno
import hashlib
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from data.files import open_tensors, read_json, write_tensors

WEIGHTS, INDEX, BIN, CONFIG = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json"
BUILTIN = Path(__file__).parent / "weights" / "deberta-mini"  # `--weights builtin`
SAFE_FILES = (WEIGHTS, INDEX, "model-*.safetensors")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "spm.model", "special_tokens_map.json")


# ----------------------------------------------------------------------------------------------------- directories


def find_pretrained(source: str | Path) -> Path:
    """Returns the directory of a checkpoint.

    source: a directory, "builtin", or a hub id (`name/model`, `name/model@revision`), which is fetched once into
    huggingface_hub's cache. Raises FileNotFoundError that names a remedy.
    """
    if str(source) == "builtin":
        if not BUILTIN.is_dir():
            raise FileNotFoundError(f"the built-in weights are not in {BUILTIN}; --weights none trains without them")
        return BUILTIN
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{source} is a file; --weights takes the directory that contains {CONFIG}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", str(source)) or str(source).startswith("."):
        raise FileNotFoundError(f"{source} is not a directory and does not look like a hub id (name/model)")
    return fetch(str(source))


def fetch(hub_id: str) -> Path:
    """Returns huggingface_hub's snapshot of `name/model[@revision]`. Raises FileNotFoundError that names a remedy.

    The environment variables HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE apply.
    """
    from huggingface_hub import errors  # slow to import, needed only here

    name, _, revision = hub_id.partition("@")
    try:
        return download(name, revision or None)
    except errors.GatedRepoError as error:
        problem = f"hub id {name!r} is gated: request access on its page, then set HF_TOKEN"
        raise FileNotFoundError(problem) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"hub id {name!r} does not exist, or is private and needs HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"hub id {name!r} has no revision {revision!r}") from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"{hub_id!r} is neither a directory nor a valid hub id") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise FileNotFoundError(
            f"{name!r} is neither a directory here nor complete in the hub cache, and the hub cannot be reached; "
            "give --weights a directory, or go online once"
        ) from error


def download(name: str, revision: str | None) -> Path:
    """Downloads config, tokenizer and weights of a hub repository, and returns the folder of the snapshot.

    pytorch_model.bin is downloaded only if the repository has no safetensors (Microsoft's DeBERTa).
    """
    from huggingface_hub import snapshot_download  # slow to import, needed only here

    small_files = [CONFIG, *TOKENIZER_FILES]
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small_files, *SAFE_FILES]))
    if any((folder / file).exists() for file in (WEIGHTS, INDEX)):
        return folder
    return Path(snapshot_download(name, revision=revision, allow_patterns=[*small_files, BIN]))


def weight_files(directory: Path) -> list[Path]:
    """Returns the files that contain a checkpoint's tensors. Raises FileNotFoundError that names the missing ones."""
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
        converted = converted_path(directory / BIN)
        return [converted if converted.is_file() else directory / BIN]
    raise FileNotFoundError(f"{directory} holds no {WEIGHTS} (nor {INDEX}, nor {BIN})")


# ----------------------------------------------------------------------------------------------------------- files


def converted_path(path: Path) -> Path:
    """Returns the cache path of a pytorch_model.bin converted to safetensors, keyed by its path, size and time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imdb-from-scratch"
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32] / WEIGHTS


class WeightFile:
    """Reads the tensors of one file by published name. shapes: name -> (shape, whether the dtype is floating point).

    A safetensors file is opened again for each tensor: the pages of a mapped file count as this process's memory until
    it is closed. pytorch_model.bin is read by torch.load(weights_only=True), which refuses code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pickled: dict[str, Tensor] | None = None
        if path.name == BIN:
            self.pickled = load_pickled(path)
            self.shapes = {name: (list(t.shape), t.is_floating_point()) for name, t in self.pickled.items()}
        else:
            with open_tensors(path) as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a dict)
                self.shapes = {name: (part.get_shape(), "F" in part.get_dtype()) for name, part in slices.items()}

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        if self.pickled is not None:
            return self.pickled[name]
        with open_tensors(self.path) as file:
            return file.get_tensor(name)

    def keep_converted(self) -> None:
        """Writes a pickled file as safetensors into the cache. Errors of writing are ignored: the cache is optional."""
        if self.pickled is not None:
            with contextlib.suppress(OSError):
                write_tensors(converted_path(self.path), {name: t.clone() for name, t in self.pickled.items()})


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Loads the tensors of a pickled file without executing code from it.

    Raises ValueError if the file is damaged or contains anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen types for a damaged or refused pickle
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} was refused: it is damaged or contains more than tensors ({reason})") from error
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
