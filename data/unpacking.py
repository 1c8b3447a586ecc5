"""Reads data files, plain, .gz and .zip, with limits: an archive of some megabytes can contain terabytes.

A file is read in parts, and reading stops at the first limit: MiB of the unpacked file (`--max-file-mib`), bytes of a
line, and, beyond UNCHECKED bytes, the ratio of unpacked to packed bytes. English text has a ratio of 2 to 5.
"""

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from data.checked import reading, show

CHUNK = 2**20  # bytes
KIND_BYTES = 256  # at the beginning of a file, which show that it is no text
LINE_BYTES = 2**25  # of a line of text
UNCHECKED = 2**24  # unpacked bytes of any ratio
RATIO = 100  # unpacked bytes for a packed one
MOST_LINES, LINES_PER_MIB = 2**22, 2**10  # of a file; above 4,096 MiB: for each MiB of the limit
COMPRESSED = (".gz", ".zip")
GZIP, ZIP, EMPTY_ZIP, PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06", b"PAR1"  # first bytes
NO_LINES = (".json", ".parquet", ".pq")  # files that may have a single line
REFUSED = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "a workbook; save the sheet as CSV"),
    **dict.fromkeys((".tar", ".tgz", ".rar", ".7z"), "an archive; unpack it and name the folder or a file of it"),
    **dict.fromkeys((".bz2", ".xz", ".zst", ".lz4"), "compressed in a form that is not read; unpack it"),
    **dict.fromkeys((".pkl", ".pickle", ".feather", ".arrow", ".h5"), "not a table in text; save it as CSV or Parquet"),
}
# first bytes of such files under another name
BINARY = {
    b"BZh": REFUSED[".bz2"], b"\xfd7zXZ": REFUSED[".xz"], b"\x28\xb5\x2f\xfd": REFUSED[".zst"],
    b"\x04\x22\x4d\x18": REFUSED[".lz4"], b"7z\xbc\xaf\x27\x1c": REFUSED[".7z"], b"Rar!": REFUSED[".rar"],
    b"\xd0\xcf\x11\xe0": REFUSED[".xls"], b"ORC": REFUSED[".arrow"], b"ARROW1": REFUSED[".arrow"],
    b"\x89HDF": REFUSED[".h5"], b"SQLite format 3\0": REFUSED[".h5"], GZIP: "compressed twice; unpack it",
    ZIP: "compressed twice; unpack it",
}  # fmt: skip


def base_name(name: str) -> str:
    """Removes the ending of a compressed file: reviews.csv.GZ -> reviews.csv"""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in COMPRESSED else name


def too_large(path: Path, size: str, limit: int) -> ValueError:
    """Returns the error for a file above the limit in MiB."""
    return ValueError(f"{path} has {size}; --max-file-mib {limit} is the limit, and a larger value raises it")


def read_stream(path: Path, file: Any, limit: int, lines: bool, packed: Callable[[], int] | None = None) -> bytes:
    """Reads a stream to its end. lines: whether it is text in lines.  packed: returns the compressed bytes so far.

    Raises ValueError that names `path` for more than `limit` MiB, for a line that is too long, and for a ratio of
    unpacked to packed bytes that text does not have.
    """
    content, size, line = io.BytesIO(), 0, 0
    while chunk := file.read(CHUNK):
        size += content.write(chunk)
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        line = line + len(chunk) if end < 0 else len(chunk) - end
        if size > limit * 2**20:
            raise too_large(path, f"more than {limit:,} MiB", limit)
        if lines and line > LINE_BYTES:
            raise ValueError(f"{path} has a line of more than {LINE_BYTES:,} bytes; split it")
        if packed is not None and size > max(UNCHECKED, RATIO * packed()):
            raise ValueError(unlike_text(path, size, packed()))
    return content.getvalue()


def unlike_text(path: Path, size: int, packed: int) -> str:
    """Describes a compressed file that is no text."""
    return (
        f"{path} unpacks to {size / packed:,.0f} times its size, which text does not; if it is sound, unpack it first"
    )


def read_content(path: Path, limit: int) -> bytes:
    """Reads a file as it is, at most `limit` MiB. Raises OSError, or ValueError that names a file beyond a limit."""
    with path.open("rb") as file:
        if (size := path.stat().st_size) > limit * 2**20:
            raise too_large(path, f"{math.ceil(size / 2**20):,} MiB", limit)
        start = file.peek(4)
        packed = start.startswith((GZIP, ZIP, EMPTY_ZIP, PARQUET)) or path.suffix.lower() in (*NO_LINES, *REFUSED)
        return read_stream(path, file, limit, lines=not packed)


def unpack(path: Path, content: bytes, limit: int) -> tuple[str, bytes]:
    """Returns (name, content) of the file inside a .gz or .zip, or of the file itself.

    The first bytes decide, since some programs unpack a download and keep its name. limit: MiB of the unpacked file.
    Raises ValueError for a damaged file, for one beyond a limit, for a .zip that does not contain exactly one file, and
    for content that is not text.
    """
    name = base_name(path.name)
    if content[:2] == GZIP:
        content = unpack_gzip(path, content, limit)
    elif content[:4] in (ZIP, EMPTY_ZIP) and path.suffix.lower() not in REFUSED:
        with reading(path, "a zip file"):
            name, content = unpack_zip(path, content, limit)
    elif path.suffix.lower() == ".zip":
        raise ValueError(f"{path} is not a zip file, or is damaged; fetch it again")
    if content[257:262] == b"ustar" and not is_plain_text(content[:KIND_BYTES]):
        raise ValueError(f"{path} is {REFUSED['.tar']}")
    if PurePath(name).suffix.lower() not in REFUSED:  # read_table names these by their ending
        for start, kind in BINARY.items():
            if content.startswith(start) and not is_plain_text(content[:KIND_BYTES]):
                raise ValueError(f"{path} is {kind}")
    return name, content


def is_plain_text(start: bytes) -> bool:
    """Returns whether the beginning of a file has no control characters but white space: `ORC` may begin a text."""
    return not any(byte < 32 and byte not in b"\t\n\v\f\r" for byte in start)


def has_lines(name: str) -> bool:
    """Returns whether the ending of a file name is that of text in lines."""
    return PurePath(name).suffix.lower() not in NO_LINES


def unpack_gzip(path: Path, content: bytes, limit: int) -> bytes:
    """Returns the content of a .gz."""
    packed = io.BytesIO(content)
    try:
        with gzip.GzipFile(fileobj=packed) as file:
            return read_stream(path, file, limit, has_lines(base_name(path.name)), packed.tell)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def unpack_zip(path: Path, content: bytes, limit: int) -> tuple[str, bytes]:
    """Returns (name, content) of the only file in a .zip, not counting those that macOS adds."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
            members = [m for m in members if not PurePath(m.filename).name.startswith(".")]
            if any(m.filename == "[Content_Types].xml" for m in members):
                is_workbook = any(m.filename.startswith("xl/") for m in members)
                kind = REFUSED[".xlsx"] if is_workbook else "an Office document; save its table as CSV"
                raise ValueError(f"{path} is {kind}")
            if len(members) != 1:
                names = show(", ".join(m.filename for m in members[:5])) + (", …" if len(members) > 5 else "")
                raise ValueError(
                    f"{path} contains {len(members)} files ({names}); unpack it and name the folder or one of them"
                )
            (member,) = members
            if member.file_size > limit * 2**20:
                raise too_large(path, f"{math.ceil(member.file_size / 2**20):,} MiB unpacked", limit)
            if member.file_size > max(UNCHECKED, RATIO * member.compress_size):
                raise ValueError(unlike_text(path, member.file_size, max(1, member.compress_size)))
            name = PurePath(member.filename).name
            with archive.open(member) as file:
                return name, read_stream(path, file, limit, has_lines(name))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut short ({show(error)}); fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python does not have
        raise ValueError(f"{path} cannot be unpacked ({show(error)}); unpack it and name the file inside") from error
