"""Writes files atomically, and opens safetensors with errors that name the file and the defect."""

import csv
import errno
import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.checked import CONTROL, FETCH, show, with_way_out


def user_path(text: str | Path) -> Path:
    """Returns a path with `~` expanded. Raises ValueError if there is no home directory."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: no home directory is known for ~; write the whole path") from error


def in_shell(path: str | Path) -> str:
    """Returns a path as one word of a shell command, quoted if necessary. A leading dash is preceded by ./."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of a user's share
STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # names of standard output


def stamp(path: Path) -> list[int]:
    """Returns size, modification time, change time and inode of a file, some of which differ after a replacement.

    Archives and `cp -p` set the modification time to that of the original, but they cannot set the change time.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file and renames the file to `path` when the block ends.

    It is in a new temporary folder next to `path`, since some libraries write further temporary files beside it; in a
    folder of several users, none of them can prepare one. After an error the folder is deleted and `path` is unchanged.
    Raises OSError that names `path` if the disk is full.
    """
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name[:40]}.{host_digits()}-{os.getpid()}-"  # with what follows at most 255 bytes
        folder = Path(tempfile.mkdtemp(".tmp", prefix, path.parent))
        temporary = folder / "file"
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (*FULL, errno.EFBIG, None):  # None: of numpy.save
            raise
        raise OSError(f"cannot write {path}: {error}; an existing file of that name is unchanged") from error
    finally:
        if folder is not None:
            discard(folder)


def discard(path: Path) -> None:
    """Deletes a file or a folder with all files in it, if this is possible."""
    with suppress(OSError):  # it does not exist, or is in a folder of another user
        path.unlink()
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def host_digits() -> str:
    """Returns eight hexadecimal digits: a hash of the host name and, on Linux, of the container's PID namespace."""
    link = Path("/proc/self/ns/pid")
    namespace = link.readlink() if link.is_symlink() else ""
    return f"{zlib.crc32(f'{socket.gethostname()} {namespace}'.encode()):08x}"


def remove_abandoned(folder: Path) -> None:
    """Deletes the temporary folders of `replacing` below a folder if their process ran on this machine and was killed.

    On systems without /proc, which shows the processes, they stay.
    """
    if not Path("/proc/self").exists():
        return
    for path in temporary_paths(folder, f".*.{host_digits()}-*.tmp"):
        number = re.split("[-.]", path.name.rpartition(f".{host_digits()}-")[2])[0]
        if number.isdigit() and not Path("/proc", number).exists():
            discard(path)


def temporary_paths(folder: Path, pattern: str) -> list[Path]:
    """Returns the files and folders of these names below a folder. Other processes may remove them meanwhile."""
    walk = os.walk(folder)  # Path.rglob raises FileNotFoundError for a folder that is removed before it is listed
    return [Path(parent, name) for parent, inner, files in walk for name in fnmatch.filter(inner + files, pattern)]


@contextmanager
def filling(folder: Path, flag: str, last: str) -> Iterator[Path]:
    """Yields a staging folder within `folder`, and moves its files to `folder` when the block ends.

    Deletes what a killed process left, as `remove_abandoned` does.  flag: names `folder` on the command line.  last:
    the file that is moved last. Raises ValueError if `folder` is not a folder or contains anything else.
    """
    if folder.is_dir() and all(fnmatch.fnmatch(path.name, ".staging.*.tmp") for path in folder.iterdir()):
        remove_abandoned(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = f"contains {min(path.name for path in folder.iterdir())}" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{flag} {folder} exists and {what}; name a new folder")
    staging = folder / f".staging.{host_digits()}-{os.getpid()}.tmp"
    try:
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_folder(path: Path, way_out: str) -> None:
    """Creates a folder and its parents, unless it exists. Raises OSError, which ends in the way out, if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        way_out = unless_full(error, way_out)
        raise OSError(f"{path} cannot be created as a folder ({error.strerror}); {way_out}") from error


def unless_full(error: OSError, way_out: str) -> str:
    """Returns the way out of an error of a file system: on a full disk, free space is the only one."""
    return "free some space" if error.errno in FULL else way_out


def new_folder(path: Path) -> Path:
    """Creates a folder of this name, with a number after it if the name is taken, and returns it."""
    make_folder(path.parent, "choose another --runs")
    for number in range(1, 1000):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(f"{folder} cannot be created ({error.strerror}); choose another --runs") from error
        return folder
    raise FileExistsError(f"{path} and {path.name}-2 to {path.name}-999 exist; choose a --name")


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())  # the same line ends on every system


def is_stdout(path: str | Path) -> bool:
    """Returns whether `write_output` would write to standard output."""
    return str(path) in STDOUT


def write_output(path: str | Path, content: str | bytes) -> None:
    """Writes bytes, or text as UTF-8, to the file, device or pipe that a user named.

    `-` is standard output, for text. A device or a pipe receives the content. A link stays, and its target is written.
    A regular file is replaced atomically and keeps its permissions; if its folder does not permit that, it is
    overwritten.
    Raises OSError for a folder, and for a link that leads to itself.
    """
    if is_stdout(path) and isinstance(content, str):
        write_stdout(content)
        return
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    target = Path(os.path.realpath(path))  # not `resolve`, which raises RuntimeError for a loop before Python 3.13
    if target.is_symlink():
        raise OSError(f"{path} is a link that leads to itself")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        try:
            path.write_bytes(data)
        except OSError as error:  # a full device, whose error has no name
            raise OSError(error.errno, error.strerror, str(path)) from error
        return
    try:
        with replacing(target) as temporary:
            temporary.write_bytes(data)
            if target.exists():
                shutil.copymode(target, temporary)
    except OSError as error:  # a file of another user's folder, or a mounted file, cannot be replaced
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS) or not target.exists():
            raise
        target.write_bytes(data)


def write_problem(path: Path) -> str | None:
    """Returns why `write_output` could not write a file, None if it could, before a long computation."""
    try:
        if path.exists() or path.is_symlink():
            path.stat()  # raises the error of a loop of links
            replaceable = path.is_file() and os.access(Path(os.path.realpath(path)).parent, os.W_OK)
            return None if replaceable or os.access(path, os.W_OK) else os.strerror(errno.EACCES)
        folder = next((parent for parent in Path(os.path.realpath(path)).parents if parent.exists()), None)
        if folder is None or not folder.is_dir():
            return None  # the caller, or the write, says what is wrong
        probe = folder / f".{host_digits()}-{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Returns rows as CSV with \\n after each line."""
    written: list[str] = []
    lines = SimpleNamespace(write=written.append)
    csv.writer(lines, lineterminator="\r\n").writerows(rows)  # quotes fields with \r too, in all versions of Python
    return "".join(line.removesuffix("\r\n") + "\n" for line in written)


def write_stdout(text: str) -> None:
    """Writes text to standard output: as UTF-8 to a pipe or a file, in the console's encoding to a console.

    A console receives no control characters but line feeds.
    """
    binary = None if sys.stdout.isatty() else getattr(sys.stdout, "buffer", None)
    sys.stdout.flush()
    if binary is None:  # a console, which would obey the control characters of ids
        sys.stdout.write("\n".join(CONTROL.sub("\ufffd", line) for line in text.split("\n")))
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
def open_tensors(path: Path, way_out: str = FETCH) -> Iterator[Any]:
    """Opens a memory-mapped safetensors file. Raises FileNotFoundError, or ValueError if it is truncated or damaged.

    way_out: the end of the message, "" if the caller continues it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(with_way_out(f"{path} is cut short or damaged ({show(error)})", way_out)) from error


# ----------------------------------------------------------------------------------------------- links


def check_inside(path: Path, root: Path, way_out: str) -> Path:
    """Returns a path below `root`. Raises ValueError if it leads out of `root` through a link.

    The cache of huggingface_hub has its files in blobs/, next to the folder snapshots/ that contains links to them.
    """
    allowed = [root, *(folder.parent / "blobs" for folder in root.absolute().parents if folder.name == "snapshots")]
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(os.path.realpath(folder)) for folder in allowed):
        raise ValueError(f"{show(path, 300)} is a link that leads out of {root}; it is not followed: {way_out}")
    return path
