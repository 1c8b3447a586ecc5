"""Where published weights come from: a directory in Hugging Face's layout, or a hub id that is fetched once.

Nothing is unpickled, except by `load_pickled`, through torch.load(weights_only=True).
"""

import contextlib
import errno
import hashlib
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from nn.files import open_tensors, read_json, write_tensors

WEIGHTS, INDEX, BIN, CONFIG = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json"
BUILTIN = Path(__file__).parent.parent / "data" / "weights" / "deberta-mini"  # `--weights builtin`
SAFE_FILES = (WEIGHTS, INDEX, "model-*.safetensors")
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "spm.model", "special_tokens_map.json")


def find_pretrained(source: str | Path) -> Path:
    """The directory of a checkpoint: `source` itself, "builtin", or a hub id (`name/model`, `name/model@revision`)
    fetched once into huggingface_hub's cache. Raises FileNotFoundError with the way out."""
    if str(source) == "builtin":
        if not BUILTIN.is_dir():
            raise FileNotFoundError(f"the built-in weights are not in {BUILTIN}; --weights none starts at random")
        return BUILTIN
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{source} is a file; --weights takes the directory that holds {CONFIG}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", str(source)) or str(source).startswith("."):
        raise FileNotFoundError(f"{source} is not a directory and does not look like a hub id (name/model)")
    return fetch(str(source))


def fetch(hub_id: str) -> Path:
    """huggingface_hub's snapshot of `name/model[@revision]`: config, tokenizer and safetensors; pytorch_model.bin only
    where the repository has nothing better (Microsoft's DeBERTa). HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    count.
    """
    from huggingface_hub import errors, snapshot_download  # slow to import, needed here alone

    name, _, revision = hub_id.partition("@")
    wanted = [CONFIG, *TOKENIZER_FILES]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*wanted, *SAFE_FILES]))
        if not any((folder / file).exists() for file in (WEIGHTS, INDEX)):
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*wanted, BIN]))
    except errors.GatedRepoError as error:
        raise FileNotFoundError(f"hub id {name!r} is gated: ask for access on its page, then set HF_TOKEN") from error
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
    return folder


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors. Raises FileNotFoundError naming what is missing."""
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


def converted_path(path: Path) -> Path:
    """Where the safetensors twin of a pytorch_model.bin is kept: in our own cache, named by file, size and time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imdb-from-scratch"
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32] / WEIGHTS


class WeightFile:
    """The tensors of one file, by published name. shapes: name -> (shape, whether it holds floating point).

    safetensors is opened anew for each tensor: pages of a mapped file count as this process's memory until it is
    closed. pytorch_model.bin goes through torch.load(weights_only=True), which refuses code, and is converted after it
    has fitted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.pickled = path, None
        if path.name == BIN:
            self.pickled = load_pickled(path)
            self.shapes = {name: (list(t.shape), t.is_floating_point()) for name, t in self.pickled.items()}
        else:
            with open_tensors(path) as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
                self.shapes = {name: (part.get_shape(), "F" in part.get_dtype()) for name, part in slices.items()}

    def read(self, name: str) -> Tensor:
        if self.pickled is not None:
            return self.pickled[name]
        with open_tensors(self.path) as file:
            return file.get_tensor(name)

    def keep_converted(self) -> None:
        """Writes the safetensors twin of a pickled file. A cache that cannot be written is no reason to stop."""
        if self.pickled is not None:
            with contextlib.suppress(OSError):
                write_tensors(converted_path(self.path), {name: t.clone() for name, t in self.pickled.items()})


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Raises ValueError for a file that is damaged or holds anything but tensors; nothing in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or refused pickle
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} was refused: it is damaged or holds more than tensors ({reason})") from error
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
