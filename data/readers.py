"""Reads tables (delimited text, JSON, JSON lines, Parquet; plain, .gz or .zip) into a header and records of strings.

Encoding: UTF-8, or UTF-16 and UTF-32 with a byte order mark; any other encoding must be named. Compression and Parquet
are recognised by the first bytes, JSON by the ending. data/delimited.py reads delimited text.
"""

import codecs
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.delimited import READINGS, Record, read_delimited

TEXT_NAMES = ("review", "text", "sentence", "content", "comment")  # usual names of a column of texts
LABELED, UNLABELED, TEST = "labeledTrainData.tsv", "unlabeledTrainData.tsv", "testData.tsv"  # Kaggle's files
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
COMPRESSED = (".gz", ".zip")
REFUSED = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "a workbook; save the sheet as CSV"),
    **dict.fromkeys((".tar", ".tgz", ".rar", ".7z"), "an archive; unpack it and name the folder or a file of it"),
    **dict.fromkeys((".bz2", ".xz", ".zst", ".lz4"), "compressed in a form that is not read; unpack it"),
    **dict.fromkeys((".pkl", ".pickle", ".feather", ".arrow", ".h5"), "not a table in text; save it as CSV or Parquet"),
}
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Source:
    """Where the reviews come from, and how files are read.

    data: `demo`, a folder or a file;  train: a file instead of it;  validation, test: files.  The columns are found by
    their usual names if they are not named; `none` means that there is no such column.  encoding: "" is UTF-8, or by
    the byte order mark.  quoting: "" or one of READINGS.
    """

    data: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""
    text_column: str = ""
    label_column: str = ""
    id_column: str = ""
    encoding: str = ""
    skip_bad_rows: bool = False
    quoting: str = ""


class Table(NamedTuple):
    """A header and its records.

    note: what was recognised, if it is not the default for the ending of the file; otherwise "".
    """

    path: Path
    header: list[str]
    records: list[Record]
    note: str = ""


def read_table(path: Path, content: bytes, source: Source) -> Table:
    """Reads the table in the content of a file. Raises ValueError that names the file and the way out."""
    if source.quoting and source.quoting not in READINGS:
        raise ValueError(f"--quoting {source.quoting!r} is not one of {', '.join(READINGS)}")
    name, content = unpack(path, content)
    ending = PurePath(name).suffix.lower()
    if ending in REFUSED:
        raise ValueError(f"{path} is {REFUSED[ending]}")
    if content[:4] == b"PAR1" or ending in (".parquet", ".pq"):
        return read_parquet(path, content)
    text = decode(path, content, source.encoding)
    if ending in (".json", ".jsonl", ".ndjson"):
        return read_objects(path, text, as_lines=ending != ".json")
    names = {source.text_column} if source.text_column else set(TEXT_NAMES)
    default = "," if ending == ".csv" else "\t"
    kaggle = name in (LABELED, UNLABELED, TEST)
    rows, note = read_delimited(path, text, default, names, source.quoting, kaggle)
    return Table(path, rows.header, rows.records, note)


# ------------------------------------------------------------------------------------------- compression, encodings


def base_name(name: str) -> str:
    """Removes the ending of a compressed file: reviews.csv.GZ -> reviews.csv"""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in COMPRESSED else name


def unpack(path: Path, content: bytes) -> tuple[str, bytes]:
    """Returns (name, content) of the file inside a .gz or .zip, or of the file itself.

    The first bytes decide, since some programs unpack a download and keep its name. Raises ValueError for a damaged
    file, and for a .zip that does not contain exactly one file.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            return base_name(path.name), gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    if content[:4] in (b"PK\x03\x04", b"PK\x05\x06") and path.suffix.lower() not in REFUSED:
        return unpack_zip(path, content)
    if path.suffix.lower() == ".zip":
        raise ValueError(f"{path} is not a zip file, or is damaged; fetch it again")
    return base_name(path.name), content


def unpack_zip(path: Path, content: bytes) -> tuple[str, bytes]:
    """Returns (name, content) of the only file in a .zip, not counting those that macOS adds."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
            members = [m for m in members if not PurePath(m.filename).name.startswith(".")]
            if len(members) != 1:
                names = ", ".join(m.filename for m in members[:5]) + (", …" if len(members) > 5 else "")
                raise ValueError(
                    f"{path} contains {len(members)} files ({names}); unpack it and name the folder or one of them"
                )
            return PurePath(members[0].filename).name, archive.read(members[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python does not have
        raise ValueError(f"{path} cannot be unpacked ({error}); unpack it and name the file inside") from error


def check_encoding(path: Path, encoding: str, marked: str) -> None:
    """Raises ValueError for an unknown encoding, and for one that the byte order mark of the file excludes."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        known = "utf-8, utf-16, latin-1, cp1252"
        raise ValueError(f"--encoding {encoding!r} is not an encoding; usual ones are {known}") from None
    if marked and name[:6].rstrip("-") != marked[:6].rstrip("-"):
        raise ValueError(f"{path} begins with the byte order mark of {marked}; leave out --encoding {encoding}")


def decode(path: Path, content: bytes, encoding: str) -> str:
    """Decodes a file and removes its byte order mark. Raises ValueError with the offset of the first invalid byte."""
    bom, marked = next(((bom, name) for bom, name in BOMS if content.startswith(bom)), (b"", ""))
    if encoding:
        check_encoding(path, encoding, marked)
    codec = marked or encoding or "utf-8"
    try:
        text = content[len(bom) :].decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(undecodable(path, content, codec, len(bom) + error.start, encoding)) from error
    except (LookupError, UnicodeError) as error:  # a codec that is not a text encoding, or has no offset
        raise ValueError(f"{path} is not {codec} text ({error}); name another --encoding") from error
    if not encoding and not marked and "\0" in text.partition("\n")[0]:
        order = "be" if content[:1] == b"\0" else "le"
        raise ValueError(
            f"{path} has zero bytes, as UTF-16 without a byte order mark; --encoding utf-16-{order} reads it"
        )
    return text


def undecodable(path: Path, content: bytes, codec: str, start: int, encoding: str) -> str:
    """Describes the first invalid byte of a file, its line, and how other encodings read it."""
    line = content.count(b"\n", 0, start) + 1
    near = content[max(0, start - 12) : start + 12]
    problem = f"byte 0x{content[start]:02x} at offset {start:,} (line {line:,})"
    if encoding or codec != "utf-8":
        return f"{path} is not {codec} text: {problem}; name its encoding with --encoding, or fetch it again"
    ways = [f"--encoding latin-1 reads it as {near.decode('latin-1')!r}"]
    if re.search(rb"[\x80-\x9f]", content):  # control characters in Latin-1, quotes and dashes in Windows's encoding
        ways.append(f"--encoding cp1252 (Windows) as {near.decode('cp1252', 'replace')!r}")
    return f"{path} is not UTF-8 text: {problem}; {', '.join(ways)}"


# ---------------------------------------------------------------------------------------------------- JSON, Parquet


def as_text(value: Any) -> str | None:
    """Converts a value to a string: null and NaN to "", a list or an object to None."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, list | dict | bytes | np.ndarray):
        return None
    return "" if value is pd.NA or value is pd.NaT else str(value)


def from_objects(path: Path, objects: Iterable[tuple[int, Any]], note: str = "") -> Table:
    """Builds a table from numbered JSON objects. The header has the keys of all objects, in their order."""
    numbered = list(objects)
    header = list(dict.fromkeys(key for _, row in numbered if isinstance(row, dict) for key in row))
    records = [
        Record(number, [as_text(row.get(key)) for key in header])
        if isinstance(row, dict)
        else Record(number, [], row if isinstance(row, BrokenLine) else f"{type(row).__name__} instead of an object")
        for number, row in numbered
    ]
    return Table(path, header, records, note)


class BrokenLine(str):
    """Describes a line that is not JSON."""


def parse_line(line: str) -> Any:
    """Parses one line of JSON, or returns the description of its defect."""
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return BrokenLine(f"not JSON ({error})")


def read_objects(path: Path, text: str, as_lines: bool) -> Table:
    """Reads JSON lines (one object a line) or a JSON list of objects, also as the value of "data".

    The ending decides; a file that is only valid as the other form is read as such, with a note.
    """
    if not text.strip():
        return Table(path, [], [])
    lines = [(number, parse_line(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    are_objects = bool(lines) and all(isinstance(row, dict) for _, row in lines)
    if as_lines and (are_objects or not text.lstrip().startswith("[")):
        return from_objects(path, lines)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if are_objects:
            return from_objects(path, lines, "JSON lines, one object a line")
        if as_lines:
            return from_objects(path, lines)
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = f"an object with {', '.join(list(value)[:5])}" if isinstance(value, dict) else type(value).__name__
        raise ValueError(f'{path} is {found}, not a list of objects; pandas writes one with to_json(orient="records")')
    return from_objects(path, enumerate(rows, 1), "one JSON list" if as_lines else "")


def feature_names(content: bytes) -> dict[str, list[str]]:
    """Returns the class names of the columns of a Parquet file that Hugging Face's `datasets` wrote.

    The footer contains JSON: {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, …}}}
    """
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    start = footer.find(b'{"info": {"features":', footer.find(b"huggingface"))
    if b"huggingface" not in footer or start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(footer[start:].decode("utf-8", "replace"))
    except json.JSONDecodeError:
        return {}
    features = value["info"]["features"]
    return {name: f["names"] for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}


def read_parquet(path: Path, content: bytes) -> Table:
    """Reads a Parquet file. pandas needs pyarrow for it, which is optional.

    The numbers of a column become class names if the file names them.
    """
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; to read it: pip install pyarrow") from None
    except (ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged ({error}); fetch it again") from error
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    header, names = [str(name) for name in frame.columns], feature_names(content)
    columns = [[as_text(value) for value in frame.iloc[:, i].tolist()] for i in range(len(header))]
    for title, column in zip(header, columns, strict=True):
        if title in names:
            table = {str(number): name for number, name in enumerate(names[title])} | {"-1": ""}  # -1: withheld
            column[:] = [table.get(value or "", value) for value in column]
    records = [Record(number, list(fields)) for number, fields in enumerate(zip(*columns, strict=True), 1)]
    return Table(path, header, records)
