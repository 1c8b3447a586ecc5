"""Reads the files that contain the tensors of a checkpoint: safetensors, or pickles without executing their code."""

import contextlib
import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from data.checked import listed, read_object, reading, show
from data.checksums import file_digest
from data.files import open_tensors, stamp, write_tensors
from data.hub import BIN, BIN_INDEX, CONFIG, INDEX, WEIGHTS
from data.pickles import check_pickle

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # dtypes of weights


def weight_files(directory: Path) -> list[Path]:
    """Returns the files from which a checkpoint's tensors are read.

    Raises FileNotFoundError as `stored_weights` does.
    """
    return [
        path if path.suffix == ".safetensors" else converted_or_original(path) for path in stored_weights(directory)
    ]


def stored_weights(directory: Path) -> list[Path]:
    """Returns the files that contain a checkpoint's tensors. Raises FileNotFoundError that names the missing ones."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return shards(directory, INDEX)
    if (directory / BIN).is_file():
        return [directory / BIN]
    if (directory / BIN_INDEX).is_file():
        return shards(directory, BIN_INDEX)
    suffixes = (".safetensors", ".bin", ".h5", ".msgpack", ".ckpt", ".onnx", ".gguf", ".pt", ".pth")
    others = sorted(path.name for path in directory.iterdir() if path.suffix in suffixes)
    hint = f"; {listed(others)} has another name or format" if others else ""
    raise FileNotFoundError(f"{directory} holds no {WEIGHTS} (nor {INDEX}, nor {BIN}){hint}")


def backbone_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files that define the model of a checkpoint folder: {name: digest}."""
    return {path.name: file_digest(path) for path in (folder / CONFIG, *stored_weights(folder))}


def shards(directory: Path, index: str) -> list[Path]:
    """Returns the files that an index lists.

    Raises FileNotFoundError that names the missing ones, and ValueError for an index that lists other than files in the
    folder.
    """
    path, suffix = directory / index, Path(index.removesuffix(".index.json")).suffix
    table = read_object(path).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{path} has no weight_map {{tensor: file}}; fetch it again")
    names = sorted(set(table.values()))
    if strange := [name for name in names if Path(name).name != name or not name.endswith(suffix) or "\\" in name]:
        raise ValueError(f"{path} lists {listed(strange)}, which is not the name of a {suffix} file; fetch it again")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{directory} lacks {listed(missing)}, which its {index} lists; fetch them again")
    return [directory / name for name in names]


def converted_path(path: Path) -> Path | None:
    """Returns the cache path of a pytorch_model.bin converted to safetensors, keyed by its path and `stamp`.

    Returns None if no folder for caches is known (a user without a home directory).
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  (it never raises)
    if not os.path.isabs(cache):  # noqa: PTH117
        return None
    key = f"{path.resolve()} {stamp(path)}"
    return Path(cache) / "imdb-from-scratch" / hashlib.sha256(key.encode()).hexdigest()[:32] / WEIGHTS


def converted_or_original(path: Path) -> Path:
    """Returns the converted file of a pickled one if the cache contains it undamaged, otherwise the pickled one."""
    converted = converted_path(path)
    if converted is not None:
        with contextlib.suppress(OSError, ValueError), open_tensors(converted):
            return converted
    return path


class WeightFile:
    """Reads the tensors of one file by published name. shapes: name -> (shape, dtype: float, int8, int64 or other).

    A safetensors file is opened again for each tensor: the pages of a mapped file count as this process's memory until
    it is closed. A .bin file is read by torch.load(weights_only=True), which refuses code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pickled: dict[str, Tensor] | None = None
        if path.suffix == ".bin":
            self.pickled = load_pickled(path)
            self.shapes = {name: (list(t.shape), dtype_kind(t.dtype)) for name, t in self.pickled.items()}
        else:
            with reading(path, "a safetensors file"), open_tensors(path) as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is not a dict)
                self.shapes = {name: (part.get_shape(), dtype_kind(part.get_dtype())) for name, part in slices.items()}

    def read(self, name: str) -> Tensor:
        """Reads one tensor."""
        if self.pickled is not None:
            return self.pickled[name]
        with reading(self.path, "a safetensors file"), open_tensors(self.path) as file:
            return file.get_tensor(name)

    def keep_converted(self) -> None:
        """Writes a pickled file as safetensors into the cache. Errors of writing are ignored: the cache is optional.

        A file whose tensors share so much memory that it would more than double is not converted.
        """
        if self.pickled is None or (path := converted_path(self.path)) is None:
            return
        if sum(map(tensor_bytes, self.pickled.values())) <= 2 * self.path.stat().st_size:
            with contextlib.suppress(OSError):
                write_tensors(path, {name: t.clone() for name, t in self.pickled.items()})


def dtype_kind(dtype: str | torch.dtype) -> str:
    """Returns the kind of a dtype of torch or of safetensors: float, int8, int64 or other."""
    if dtype in FLOATS or dtype in FLOATS.values():
        return "float"
    return "int8" if dtype in ("I8", torch.int8) else "int64" if dtype in ("I64", torch.int64) else "other"


def tensor_bytes(tensor: Tensor) -> int:
    """Returns the size that a tensor has in a file."""
    return tensor.numel() * tensor.element_size()


def check_archive(source: IO[bytes]) -> None:
    """Raises ValueError for a zip archive that torch.save did not write: compressed, or without one data.pkl."""
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does")
        pickles = [member for member in members if member.filename.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} files data.pkl")
        with archive.open(pickles[0]) as file:
            check_pickle(file)


def check_legacy(file: IO[bytes]) -> None:
    """Raises ValueError for a file in torch's format from before 1.6 that uses up time or memory, or that refers to
    tensors without their numbers, which would be whatever the memory contains."""
    # magic number, version, system, tensors, and the keys of the storages that follow
    *_, tensors, keys = (check_pickle(file) for _ in range(5))
    if lost := [key for key in tensors.storages if key not in keys.texts]:
        raise ValueError(f"it lacks the numbers of {len(lost)} tensors")


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Loads the tensors of a pickled file without executing code from it.

    The file is mapped, except in torch's format from before 1.6, which is not a zip archive. Raises OSError if it
    cannot be read, and ValueError if it is damaged or is not a dict of tensors.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        with path.open("rb") as file:
            check_archive(file) if zipped else check_legacy(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(refused(path, error)) from error
    except Exception as error:  # torch raises a dozen types for a damaged or refused pickle
        raise ValueError(refused(path, error)) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} contains a {type(state).__name__}, not a dict of tensors")
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} contains no tensors but {listed(state) or 'nothing'}; torch.save the state dict alone"
        )
    if strange := [name for name, tensor in tensors.items() if not isinstance(name, str) or not is_plain(tensor)]:
        raise ValueError(f"{path}: {listed(strange)} is not a plain tensor with a name; save it as one")
    return {name: Tensor.detach(tensor) for name, tensor in tensors.items()}


def refused(path: Path, error: Exception) -> str:
    """Describes why a pickled file was not loaded."""
    reason = show((str(error) or type(error).__name__).splitlines()[0], 300)
    return f"{path} was refused: it is damaged or contains more than tensors ({reason})"


def is_plain(tensor: Tensor) -> bool:
    """Returns whether a tensor holds all its numbers, in main memory: no sparse, quantized, meta or expanded one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor_bytes(tensor) <= tensor.untyped_storage().nbytes()
