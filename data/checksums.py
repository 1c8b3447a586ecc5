"""Notices a changed byte: checksums (SHA-256) of folders, of single files, of tensors, and of JSON objects."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import printable
from data.files import open_tensors, write_tensors, write_text

SUMS = "SHA256SUMS"  # of a folder's files, as `sha256sum -c SHA256SUMS` reads it


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS of all files in a folder and its subfolders, hidden files left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    names = [path.relative_to(folder).as_posix() for path in paths]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    write_text(folder / SUMS, "".join(f"{file_digest(folder / name)}  {name}\n" for name in names))


def check_checksums(folder: Path) -> None:
    """Compares the files of a folder with its SHA256SUMS, if it has one. Raises ValueError that names a changed file,
    and FileNotFoundError for a missing one."""
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if len(digest) != 64 or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{sums} is damaged; delete it to use the folder as it is")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {SUMS} lists it; restore it")
        if file_digest(path) != digest:
            raise ValueError(f"{path} changed since it was written; restore it, or delete {sums} to use it as it is")


def warn_of_changes(folder: Path) -> None:
    """Prints a warning if a folder that is loaded differs from its SHA256SUMS: it may have been edited on purpose."""
    try:
        check_checksums(folder)
    except (ValueError, OSError) as error:
        print(f"warning: {printable(str(error))}")


def tensors_digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Returns the SHA-256 of tensors and metadata: names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_sealed_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors and metadata with their checksum, which `read_sealed_tensors` compares, atomically."""
    metadata = {"format": "pt"} | metadata
    write_tensors(path, tensors, metadata | {"sha256": tensors_digest(tensors, metadata)})


def read_sealed_tensors(path: Path, old: frozenset[str] = frozenset()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads (tensors, metadata) of a file of `write_sealed_tensors` into memory.

    old: the names of the metadata of files from before there were checksums. Raises ValueError if anything changed.
    """
    with open_tensors(path, way_out="") as file:  # a run that resumes tries another state
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (it is not a dict)
    found = metadata.pop("sha256", None)
    if found is None and metadata.keys() == old:
        return tensors, metadata
    if found != tensors_digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not have its checksum")
    return tensors, metadata


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with the SHA-256 of its other fields in the field sha256."""
    plain = json.loads(json.dumps(value))  # with the keys and lists that the file will have
    return plain | {"sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def unseal(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a JSON object without its field sha256. Raises ValueError if another field changed since `seal`."""
    content = {name: part for name, part in value.items() if name != "sha256"}
    if seal(content)["sha256"] != value.get("sha256"):
        raise ValueError(
            f"{path} changed since it was written; restore it, or delete its fields sha256 and format to use it so"
        )
    return content


def seal_file(path: Path) -> Path:
    """Writes the SHA-256 of a cache file next to it: x.npy -> x.npy.sha256. Returns `path`."""
    write_text(path.with_name(f"{path.name}.sha256"), file_digest(path) + "\n")
    return path


def is_intact(path: Path) -> bool:
    """Returns whether a cache file exists and has the SHA-256 of `seal_file`.

    Prints one line if it exists and has another one, or none: it has to be made again.
    """
    if not path.is_file():
        return False
    sealed = path.with_name(f"{path.name}.sha256")
    if sealed.is_file() and sealed.read_bytes().strip() == file_digest(path).encode():
        return True
    print(f"{path} is damaged or was not finished; it is made again")
    return False
