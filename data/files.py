"""Writes files atomically, and opens safetensors with errors that name the file and the defect."""

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def user_path(text: str | Path) -> Path:
    """Returns a path with `~` expanded. Raises ValueError if there is no home directory."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: no home directory is known for ~; write the whole path") from error


STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # names of standard output


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same directory and renames it to `path` when the block ends.

    After an error the temporary file is deleted and `path` is unchanged. Raises OSError that names `path` if the disk
    is full.
    """
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
        raise OSError(f"cannot write {path}: {error}; an existing file of that name is unchanged") from error
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(path: Path) -> Path:
    """Creates a folder of this name, with a number after it if the name is taken, and returns it."""
    for number in range(1, 1000):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{path} and 999 folders with a number after this name exist; choose a --name")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())  # the same line ends on every system


def is_stdout(path: str | Path) -> bool:
    """Returns whether `write_output` would write to standard output."""
    return str(path) in STDOUT


def write_output(path: str | Path, text: str) -> None:
    """Writes text as UTF-8 to the file, device or pipe that a user named.

    `-` is standard output. A device or a pipe receives the text. A link stays, and its target is written. A regular
    file is replaced atomically and keeps its permissions; if its folder does not permit that, it is overwritten.
    Raises OSError for a folder, and for a link that leads to itself.
    """
    if is_stdout(path):
        write_stdout(text)
        return
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    try:
        target = path.resolve(strict=False)
    except RuntimeError as error:  # Python before 3.13 raises this for a loop
        raise OSError(f"{path} is a link that leads to itself") from error
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(text.encode())
        return
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(text.encode())
            if target.exists():
                shutil.copymode(target, temporary)
    except OSError as error:  # a file of another user's folder, or a mounted file, cannot be replaced
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS) or not target.exists():
            raise
        target.write_bytes(text.encode())


def write_stdout(text: str) -> None:
    """Writes text to standard output: as UTF-8 to a pipe or a file, in the console's encoding to a console."""
    binary = None if sys.stdout.isatty() else getattr(sys.stdout, "buffer", None)
    sys.stdout.flush()
    if binary is None:
        sys.stdout.write(text)
    else:
        binary.write(text.encode())
    sys.stdout.flush()


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors, atomically. metadata: the header's strings, {"format": "pt"} by default."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # of the umask; safetensors would restrict its files to their owner
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, filename=temporary, metadata=metadata or {"format": "pt"})
        temporary.chmod(mode)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Opens a memory-mapped safetensors file. Raises FileNotFoundError, or ValueError if it is truncated or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


# ------------------------------------------------------------------------------------------------------- checksums

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
    names = [path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(".")]
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
            raise FileNotFoundError(f"{path} is missing; {SUMS} lists it")
        if file_digest(path) != digest:
            raise ValueError(f"{path} changed since it was written; restore it, or delete {sums} to use it as it is")


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
    with open_tensors(path) as file:
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
            f"{path} changed since it was written; restore it, or delete its field sha256 to use it as it is"
        )
    return content
