"""Reads tables (delimited text, JSON, JSON lines, Parquet; plain, .gz or .zip) into a header and records of strings.

Encoding: UTF-8, or UTF-16 and UTF-32 with a byte order mark; any other encoding must be named. Compression and Parquet
are recognised by the first bytes, JSON by the ending. data/delimited.py reads delimited text.
"""

import codecs
import importlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.checked import reading, show
from data.delimited import MOST_COLUMNS, READINGS, Record, Rows, read_delimited
from data.unpacking import LINES_PER_MIB, MOST_LINES, PARQUET, RATIO, REFUSED, UNCHECKED, too_large, unpack

TEXT_NAMES = ("review", "text", "sentence", "content", "comment")  # usual names of a column of texts
LABELED, UNLABELED, TEST = "labeledTrainData.tsv", "unlabeledTrainData.tsv", "testData.tsv"  # Kaggle's files
ROW_BYTES = 16  # at least, of a row of a Parquet file in memory
USUAL_COLUMNS, MOST_FIELDS = 100, 10_000_000  # a table of objects with more columns has at most so many fields
SUBMISSION = "sampleSubmission"  # the beginning of the name of Kaggle's example, which has no texts
SPLIT_NAMES = {  # names of files and folders
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised", "unsup"),
}
KAGGLE = {"train": LABELED, "test": TEST, "unlabelled": UNLABELED}  # part -> its file
NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\b")  # one of several files of a part, as Hugging Face names them
OBJECTS = (".json", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
MARK = "\ufeff"  # a decoded byte order mark
BY_CHANCE = 4  # characters that are not ASCII in a short text of another encoding that is valid UTF-8
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
    the byte order mark.  quoting: "" or one of READINGS.  max_file_mib: MiB of an unpacked file.  of_run: names of the
    settings that come from a run and not from the command line.
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
    max_file_mib: int = 4096
    of_run: tuple[str, ...] = ()


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
    name, content = unpack(path, content, source.max_file_mib)
    ending = PurePath(name).suffix.lower()
    is_parquet = content[:4] == PARQUET or ending in (".parquet", ".pq")
    kind = "Parquet" if is_parquet else "JSON"
    for flag, idle in (("quoting", is_parquet or ending in OBJECTS), ("encoding", is_parquet)):
        if idle and getattr(source, flag) and flag not in source.of_run:
            raise ValueError(f"--{flag} has no effect on {path}, which is {kind}; leave it out")
    if ending in REFUSED:
        raise ValueError(f"{path} is {REFUSED[ending]}")
    with reading(path, "a table that can be read", "correct it, or fetch it again"):
        if is_parquet:
            return read_parquet(path, content)
        text = decode_as(path, content, source)
        if (lines := text.count("\n")) > (most := max(MOST_LINES, LINES_PER_MIB * source.max_file_mib)):
            raise too_large(path, f"{lines:,} lines; {most:,} are read", source.max_file_mib)
        if ending in OBJECTS:
            return read_objects(path, text, as_lines=ending != ".json")
        names = {source.text_column} if source.text_column else set(TEXT_NAMES)
        default = "," if ending == ".csv" else "\t"
        kaggle = name in (LABELED, UNLABELED, TEST)
        rows, note = read_delimited(path, text, default, names, source.quoting, kaggle)
        if "quoting" in source.of_run and source.quoting:
            inherited = inherited_note(path, text, default, names, source.quoting, kaggle, rows)
            note = "; ".join(part for part in (note, inherited) if part)
        return Table(path, rows.header, rows.records, note)


def inherited_note(path: Path, text: str, default: str, names: set[str], quoting: str, kaggle: bool, rows: Rows) -> str:
    """Returns a note if the quoting that a run names changes the rows. The arguments: those of `read_delimited`."""
    try:
        own = read_delimited(path, text, default, names, "", kaggle)[0]
    except ValueError:  # the file has two readings
        own = None
    return "" if own == rows else f"quotes are read as the run did (--quoting {quoting})"


# ---------------------------------------------------------------------------------------------------- encodings


def check_encoding(
    path: Path | str, encoding: str, marked: str, content: bytes = b"", by_chance: int = BY_CHANCE
) -> None:
    """Raises ValueError for an unknown encoding, and for one that the byte order mark or the text excludes.

    by_chance: as in `is_utf8`.
    """
    try:
        codec = codecs.lookup(encoding)
        if not codec._is_text_encoding:  # zip, rot13, … turn bytes into bytes, or text into text
            raise LookupError(encoding)
        name = codec.name
    except LookupError:
        known = "utf-8, utf-16, latin-1, cp1252"
        raise ValueError(f"{path}: --encoding {encoding!r} is not an encoding; usual ones are {known}") from None
    if marked and name[:6].rstrip("-") != marked[:6].rstrip("-"):
        raise ValueError(f"{path} begins with the byte order mark of {marked}; --encoding {marked} reads it")
    if name.startswith(("utf-16", "utf-32")):  # in which spaces and Latin letters have zero bytes
        is_other = not by_chance and b"\0" not in content and is_utf8(content, by_chance=-1)
    else:
        is_other = not name.startswith("utf") and is_utf8(content, by_chance)
    if content and is_other:
        raise ValueError(f"{path} is UTF-8 text, not {encoding}; --encoding utf-8 reads it")


def is_utf8(content: bytes, by_chance: int) -> bool:
    """Returns whether a text is valid UTF-8 with more than `by_chance` characters that are not ASCII.

    Texts in other encodings practically never are, except short ones.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    return sum(not char.isascii() for char in text) > by_chance


def decode_as(path: Path, content: bytes, source: Source) -> str:
    """Decodes a file with the encoding of a source. One that only a run names must not be contradicted by the text."""
    return decode(path, content, source.encoding, by_chance=0 if "encoding" in source.of_run else BY_CHANCE)


def decode(path: Path, content: bytes, encoding: str, whole: bool = True, by_chance: int = BY_CHANCE) -> str:
    """Decodes a file and removes its byte order mark. Raises ValueError with the offset of the first invalid byte.

    whole: False for one file of many, which is too short to show its encoding.  by_chance: as in `is_utf8`
    """
    bom, marked = next(((bom, name) for bom, name in BOMS if content.startswith(bom)), (b"", ""))
    if encoding:
        check_encoding(path, encoding, marked, content if whole else b"", by_chance)
    codec = marked or encoding or "utf-8"
    if not (encoding or marked):
        check_zeros(path, content)
    try:
        text = content[len(bom) :].decode(codec)
        text = text.removeprefix(MARK).replace(f"\n{MARK}", "\n")  # of files that were joined
    except UnicodeDecodeError as error:
        raise ValueError(undecodable(path, content, codec, len(bom) + error.start, encoding)) from error
    except (LookupError, UnicodeError) as error:  # a codec that is not a text encoding, or has no offset
        raise ValueError(f"{path} is not {codec} text ({error}); name another --encoding") from error
    return text


def check_zeros(path: Path, content: bytes) -> None:
    """Raises ValueError for UTF-16 without a byte order mark: every second byte of its first line is zero."""
    if name := utf_16_of(content):
        raise ValueError(f"{path} has zero bytes, as UTF-16 without a byte order mark; --encoding {name} reads it")


def utf_16_of(content: bytes) -> str:
    """Returns utf-16-le or utf-16-be if the first line has the zero bytes of UTF-16, else ""."""
    first = content.partition(b"\n")[0]
    order = "be" if content[:1] == b"\0" else "le"
    return f"utf-16-{order}" if max(first[::2].count(0), first[1::2].count(0)) > 0.2 * len(first) else ""


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


def decoded_or_none(value: bytes) -> str | None:
    """Decodes UTF-8; None for other bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def as_text(value: Any) -> str | None:
    """Converts a value to a string: null and NaN to "", a list, an object or bytes that are no UTF-8 to None."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bytes):
        value = decoded_or_none(value)
    if value is None or isinstance(value, list | dict | np.ndarray):
        return None
    return "" if value is pd.NA or value is pd.NaT else str(value)


def from_objects(path: Path, objects: Iterable[tuple[int, Any]], note: str = "") -> Table:
    """Builds a table from numbered JSON objects. The header has the keys of all objects, in their order."""
    numbered = list(objects)
    header = list(dict.fromkeys(key for _, row in numbered if isinstance(row, dict) for key in row))
    check_width(path, len(header), len(numbered))
    records = [
        Record(number, [], defect)
        if (defect := object_defect(row))
        else Record(number, [as_text(row.get(key)) for key in header])
        for number, row in numbered
    ]
    return Table(path, header, records, note)


def check_width(path: Path, width: int, count: int) -> None:
    """Raises ValueError for objects with too many different keys: each row of the table has a field for each key."""
    if width > MOST_COLUMNS or (width * count > MOST_FIELDS and width > USUAL_COLUMNS):
        raise ValueError(
            f"{path}: its {count:,} objects have {width:,} different keys, too many for a table; keep the text, the "
            "label and the id"
        )


class BrokenLine(str):
    """Describes a line that is not JSON."""


class Repeated(dict[str, Any]):
    """An object with a key twice; `key` is its name."""

    key = ""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object with these keys, a Repeated one if a key occurs twice."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated, names = Repeated(found), [name for name, _ in pairs]
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def object_defect(row: Any) -> str:
    """Returns why a parsed line is not an object that can be read, "" if it is one."""
    if isinstance(row, Repeated):
        return f"the key {show(row.key)!r} twice"
    if isinstance(row, dict):
        return ""
    return row if isinstance(row, BrokenLine) else f"{type(row).__name__} instead of an object"


def parse_rows(text: str) -> Any:
    """Parses JSON; numbers with a point or an exponent stay as they are spelled, since they may be ids."""
    return json.loads(text, object_pairs_hook=object_of, parse_float=str)


def parse_line(line: str) -> Any:
    """Parses one line of JSON, or returns the description of its defect."""
    try:
        return parse_rows(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        return BrokenLine(f"not JSON ({show(error)})")


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
        value = parse_rows(text)
    except (ValueError, RecursionError) as error:
        if are_objects:
            return from_objects(path, lines, "JSON lines, one object a line")
        if as_lines:
            return from_objects(path, lines)
        way_out = 'each line, or the whole file, must be JSON: pandas writes it with to_json(orient="records")'
        raise ValueError(f"{path} is not valid JSON ({show(error)}); {way_out}") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if (
        are_objects
        and not isinstance(rows, list)
        and not any(isinstance(field, dict | list) for field in value.values())
    ):
        return from_objects(path, lines, "JSON lines, one object a line")
    if not isinstance(rows, list) or (rows and not any(isinstance(row, dict) for row in rows)):
        found = (
            f"an object with {show(', '.join(list(value)[:5]))}" if isinstance(value, dict) else type(value).__name__
        )
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
    except (ValueError, RecursionError):
        raise ValueError("the class names in its footer are not valid JSON") from None
    features = value["info"]["features"]
    labels = {name: f for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    names = {name: label["names"] for name, label in labels.items() if "names" in label}
    if not all(isinstance(found, list) and all(isinstance(n, str) for n in found) for found in names.values()):
        raise ValueError("the class names in its footer are not lists of names")
    return names


def check_parquet(content: bytes) -> None:
    """Raises ValueError for a Parquet file with two columns of one name, and for one of far more rows or bytes than its
    size, since equal values need no space. Does nothing without pyarrow.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        metadata, names = file.metadata, file.schema_arrow.names
    except (ValueError, OSError):  # read_parquet describes it
        return
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it has {names.count(repeated[0])} columns {repeated[0]!r}; rename all but one")
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    for what, count in (("rows", metadata.num_rows * ROW_BYTES), ("bytes", unpacked)):
        if count > max(UNCHECKED, RATIO * len(content)):
            raise ValueError(f"it has far more {what} than its size of {len(content):,} bytes can hold; save it as CSV")


def read_parquet(path: Path, content: bytes) -> Table:
    """Reads a Parquet file. pandas needs pyarrow for it, which is optional.

    The numbers of a column become class names if the file names them.
    """
    check_parquet(content)
    try:
        # the default turns a column of integers with a missing one into floats
        frame = pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; to read it: pip install pyarrow") from None
    except (ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged ({show(error)}); fetch it again") from error
    levels = [name for name in frame.index.names if name is not None]
    if levels:
        frame = frame.reset_index([name for name in levels if name not in frame.columns])
    header, names = [str(name) for name in frame.columns], feature_names(content)
    columns = [[as_text(value) for value in frame.iloc[:, i].tolist()] for i in range(len(header))]
    for title, column in zip(header, columns, strict=True):
        if title in names:
            table = {str(number): name for number, name in enumerate(names[title])} | {"-1": "", "": ""}  # -1: withheld
            if unnamed := [value for value in column if value is not None and value not in table]:
                raise ValueError(
                    f"{path}: column {title!r} has the class {show(unnamed[0])}, which the file does not name"
                )
            column[:] = [None if value is None else table[value] for value in column]
    records = [Record(number, list(fields)) for number, fields in enumerate(zip(*columns, strict=True), 1)]
    return Table(path, header, records)
