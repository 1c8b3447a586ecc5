"""Finds the files of a corpus that is larger than memory (shards), cuts them into parts, and reads their documents.

A .txt file holds one document a line, a .jsonl file one object a line, a Parquet file one document a row (pyarrow reads
it row group by row group; it is optional). A part is about 8 MiB of whole lines, or one row group.

A shard whose path has the word validation, valid, val or dev is held out, one with the word test is not read; this is
the rule of Hugging Face's `datasets`. Without shards that are held out, single documents are: those whose hash of shard
name and line is below HELD_OUT, the same on every machine.

Differs from the reading of small files: the held-out share; lines of a .txt file end in a line feed only; the first
line of a .jsonl file, which names the column, must be an object with the text.
"""

import codecs
import hashlib
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data.bars import progress_bar
from data.checked import read_object, reading, show
from data.checksums import seal, unseal
from data.cleaning import clean
from data.columns import ABSENT, Columns, find_columns
from data.delimited import FIRST_LINE, Record
from data.files import check_inside, stamp, write_json
from data.imdb import parse_record
from data.locks import waiting_lock
from data.readers import (
    BOMS,
    MARK,
    SPLIT_NAMES,
    BrokenLine,
    Source,
    Table,
    as_text,
    check_encoding,
    object_defect,
    parse_line,
    utf_16_of,
)
from data.text_lines import check_not_json, first_line
from data.unpacking import LINE_BYTES

LINES, OBJECTS, PARQUETS = (".txt",), (".jsonl", ".ndjson"), (".parquet", ".pq")
STREAM_BYTES = 2**26  # a single file above this size is streamed; smaller ones are read into memory
PART_BYTES = 2**23  # of text: the unit of work, and what a kill loses
HELD_OUT = 0.01  # fraction of the documents


class Part(NamedTuple):
    """A range of a shard: bytes start … end of text, row groups start … end of Parquet."""

    path: Path
    name: str  # of the shard, relative to the folder
    column: str
    start: int
    end: int
    first: int  # number of its first line or row
    stamp: list[int]  # of the file, see data/files.py
    held_out: float  # fraction of its documents


class Document(NamedTuple):
    held_out: bool
    text: str


# ------------------------------------------------------------------------------------------------------ the files


def find_shards(source: Source, table: Path | None) -> list[Path]:
    """Returns the shards of a source, sorted by name; [] if reading the source into memory is right.

    table: the table named train of a folder, or None. Into memory go a file that is no shard, a file of at most
    STREAM_BYTES, and a folder with such a table and without a larger shard.
    """
    root = Path(source.train or source.data).expanduser().absolute()
    if (source.train and source.data) or not root.exists():
        return []  # the in-memory readers report the error
    if not root.is_dir():
        return [root] if is_shard(root) and root.stat().st_size > STREAM_BYTES else []
    paths = [path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    files = sorted(path for path in paths if path.is_file())
    found = [check_inside(path, root, "copy it") for path in files if is_shard(path)]
    if table is not None and (table not in found or max(path.stat().st_size for path in found) <= STREAM_BYTES):
        return []
    if found and (others := [path.name for path in files if not is_shard(path)]):
        print(f"{root}: not read, since they are not .txt, .jsonl, .ndjson, .parquet or .pq: {first_three(others)}")
    return found


def is_shard(path: Path) -> bool:
    """Returns whether the ending of a file is that of a shard."""
    return path.suffix.lower() in (*LINES, *OBJECTS, *PARQUETS)


def split_of(name: str) -> str:
    """Returns the split that a word of a shard's path names: `validation`, `test`, or `train` for all others."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split in ("validation", "test") if words & set(SPLIT_NAMES[split])), "train")


def choose_shards(source: Source, files: list[Path]) -> list[tuple[Path, str, float]]:
    """Returns (path, name, fraction of the documents that is held out) of each shard that is read, and prints the rule.

    --validation replaces the shards of the validation split. Raises ValueError if no shard is left to train on.
    """
    root = Path(source.train or source.data).expanduser().absolute()
    base = root if root.is_dir() else root.parent
    named = [(path, path.relative_to(base).as_posix()) for path in files]
    splits = {name: split_of(name) if root.is_dir() else "train" for _, name in named}
    if not (train := [(path, name) for path, name in named if splits[name] == "train"]):
        raise ValueError(f"{root} holds only files of validation and test splits ({show(named[0][1])}, …)")
    held_out = [(path, name) for path, name in named if splits[name] == "validation"]
    left_out = [name for name, split in splits.items() if split == "test"]
    if source.validation:
        path = Path(source.validation).expanduser().absolute()
        if not path.is_file() or not is_shard(path):
            raise ValueError(f"--validation {path} must be a .txt, .jsonl or .parquet file, as the shards are")
        left_out += [name for _, name in held_out]
        held_out = [(path, path.name)]
    validation = first_three([name for _, name in held_out]) if held_out else f"{HELD_OUT:.0%} of them"
    unread = f"; not read: {first_three(left_out)}" if left_out else ""
    print(f"documents of {len(train)} files; held out: {validation}{unread}")
    note_shard_flags(source, [path for path, _ in train + held_out])
    share = 0.0 if held_out else HELD_OUT
    return [(path, name, share) for path, name in train] + [(path, name, 1.0) for path, name in held_out]


def note_shard_flags(source: Source, files: list[Path]) -> None:
    """Prints the flags of columns and quotes that have no effect on shards."""
    no_columns = all(path.suffix.lower() in LINES for path in files)
    for name in ("id_column", "quoting", *(("text_column",) if no_columns else ())):
        if getattr(source, name) not in ("", ABSENT) and name not in source.of_run:
            kind = "a .txt shard holds one text a line" if no_columns else "only the texts of shards are read"
            print(f"note: --{name.replace('_', '-')} has no effect here: {kind}")


def first_three(names: list[str]) -> str:
    """Returns the first three names of a list, and the number of the others."""
    return ", ".join(map(show, names[:3])) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def cut_into_parts(source: Source, files: list[Path], cache: Path) -> tuple[list[Part], str]:
    """Returns (the parts of all shards that are read, the digest of their names and contents)."""
    parts, digest = [], hashlib.sha256()
    chosen = choose_shards(source, files)
    cache.mkdir(parents=True, exist_ok=True)
    with waiting_lock(cache), progress_bar(chosen, desc="indexing", unit=" files") as bar:
        for path, name, share in bar:
            index, column = indexed(path, cache), find_column(path, source)
            places, found = index["parts"], index["stamp"]
            parts += [Part(path, name, column, start, end, first, found, share) for start, end, first in places]
            digest.update(f"{name}\0{index['digest']}\0{share}\n".encode("utf-8", "surrogateescape"))
    return parts, digest.hexdigest()


def find_column(path: Path, source: Source) -> str:
    """Returns the name of the column of texts, "" for a .txt file and for one without text.

    Raises ValueError if it is not found.
    """
    check_line_ends(path, source)
    if path.suffix.lower() in LINES:
        with path.open("rb") as file:
            check_not_json(path, first_line(file.read(FIRST_LINE).decode(source.encoding or "utf-8-sig", "replace")))
        return ""
    if path.suffix.lower() in PARQUETS:
        names = [str(name) for name in open_parquet(path).schema_arrow.names]
    else:
        number, line = first_text(path, source.encoding or "utf-8")
        if not line:
            return ""
        value = parse_line(line)
        if not isinstance(value, dict):
            what = value if isinstance(value, BrokenLine) else f"{type(value).__name__} instead of an object"
            raise ValueError(f"{path}: line {number:,}: {what}; correct it")
        names = list(value)
    table, texts = Table(path, names, [Record(1, [])]), replace(source, label_column=ABSENT, id_column=ABSENT)
    return names[find_columns(table, texts).text]


def first_text(path: Path, encoding: str) -> tuple[int, str]:
    """Returns (number, text) of the first line that is not blank, with text "" if there is none."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES):
            number += 1
            if text := line.decode(encoding, "replace").removeprefix(MARK).strip():
                return number, text
    return number, ""


def check_line_ends(path: Path, source: Source) -> None:
    """Raises ValueError for a file whose line ends are not the byte of a line feed, at which a shard is cut: in UTF-16,
    UTF-32, and with carriage returns alone. Also for an encoding that the byte order mark excludes."""
    if path.suffix.lower() in PARQUETS:
        return
    with path.open("rb") as file:
        start = file.read(FIRST_LINE)
    marked = next((name for bom, name in BOMS if start.startswith(bom)), "")
    if source.encoding:
        check_encoding(path, source.encoding, marked)
    name = codecs.lookup(source.encoding or marked or utf_16_of(start) or "utf-8").name
    if name.startswith(("utf-16", "utf-32")):
        raise ValueError(f"{path} is {name}; shards must be UTF-8: iconv -f {name} -t utf-8 FILE")
    if b"\r" in start and b"\n" not in start:
        raise ValueError(rf"{path} ends its lines with carriage returns; shards need line feeds: tr '\r' '\n' < FILE")


def open_parquet(path: Path) -> Any:
    """Opens a Parquet file without reading its rows. Raises ValueError if pyarrow is missing or the file damaged."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; to read it: pip install pyarrow") from None
    with reading(path, "a Parquet file"):
        return parquet.ParquetFile(path, buffer_size=2**20)


def indexed(path: Path, cache: Path) -> dict[str, Any]:
    """Returns the index of a shard: its stamp, its digest, and its parts [start, end, first].

    It is computed once: a file with the same `stamp` is not read again.
    """
    now = stamp(path)
    stored = cache / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.json"
    if stored.is_file():
        try:
            index = unseal(read_object(stored, way_out=""), stored)
            if index.get("stamp") == now:
                return index
        except ValueError as error:
            print(f"{show(error)}; it is made again")
    parts, digest = index_text(path)
    if path.suffix.lower() in PARQUETS:
        parts = index_parquet(path)
    index = {"stamp": now, "digest": digest, "parts": parts}
    write_json(stored, seal(index))
    return index


def index_text(path: Path) -> tuple[list[tuple[int, int, int]], str]:
    """Reads a file once: returns (its parts, each but the last ending after a line feed; its SHA-256).

    Raises ValueError for a line of text that is too long.
    """
    digest, parts = hashlib.sha256(), []
    start, first, line, position, newline = 0, 1, 1, 0, 0
    is_text = path.suffix.lower() not in PARQUETS
    with path.open("rb") as file:
        while block := file.read(min(2**20, PART_BYTES)):
            digest.update(block)
            if (end := block.rfind(b"\n")) >= 0:
                newline, line = position + end + 1, line + block.count(b"\n")
            position += len(block)
            if is_text and position - newline > LINE_BYTES:
                raise ValueError(f"{path}: line {line:,} has more than {LINE_BYTES:,} bytes; split it")
            if newline - start >= PART_BYTES:
                parts.append((start, newline, first))
                start, first = newline, line
    return [*parts, (start, position, first)] if position > start else parts, digest.hexdigest()


def index_parquet(path: Path) -> list[tuple[int, int, int]]:
    """Returns the parts of a Parquet file: one for each row group."""
    metadata, first, parts = open_parquet(path).metadata, 1, []
    for group in range(metadata.num_row_groups):
        parts.append((group, group + 1, first))
        first += metadata.row_group(group).num_rows
    return parts


# -------------------------------------------------------------------------------------------------- the documents


def records(part: Part, encoding: str) -> Iterator[Record]:
    """Yields the lines or rows of a part, blank lines left out, each with one field or a defect."""
    ending = part.path.suffix.lower()
    if ending in PARQUETS:
        yield from parquet_records(part)
        return
    with part.path.open("rb") as file:
        file.seek(part.start)
        number = part.first - 1
        while file.tell() < part.end and (line := file.readline()):
            number += 1
            try:
                text = line.decode(encoding or "utf-8").removeprefix(MARK).strip()
            except (UnicodeDecodeError, LookupError) as error:
                yield Record(number, [], f"not {encoding or 'UTF-8'} text ({error}); --encoding names another one")
                continue
            if text:
                yield Record(number, [text]) if ending in LINES else object_record(number, text, part.column)


def object_record(number: int, line: str, column: str) -> Record:
    """Parses one line of JSON."""
    value = parse_line(line)
    if defect := object_defect(value):
        return Record(number, [], defect)
    if column not in value:
        return Record(number, [], f"no field {column!r}")
    return Record(number, [as_text(value[column])])


def parquet_records(part: Part) -> Iterator[Record]:
    """Yields the rows of some row groups."""
    number, groups = part.first, list(range(part.start, part.end))
    with reading(part.path, "a Parquet file"):
        for batch in open_parquet(part.path).iter_batches(256, row_groups=groups, columns=[part.column]):
            for value in batch.column(0).to_pylist():
                yield Record(number, [as_text(value)])
                number += 1


def documents(part: Part, source: Source, skipped: list[str]) -> Iterator[Document]:
    """Yields the cleaned documents of a part. Raises ValueError that names file and line of a broken one, or appends
    it to `skipped`."""
    unit = "row" if part.path.suffix.lower() in PARQUETS else "line"
    for record in records(part, source.encoding):
        parsed = parse_record(record, Columns(0, None, None), width=1, keep_empty=False)
        text, defect = ("", parsed.partition(": ")[2]) if isinstance(parsed, str) else (parsed[1], "")
        try:
            text = text if part.column == "" else clean(text)  # lines of text are plain, as in small files
        except ValueError as error:
            defect = str(error)
        if text and not defect:
            yield Document(is_held_out(part, record.number), text)
            continue
        skipped.append(f"{part.path}: {unit} {record.number:,}: {defect or 'empty'}")
        if not source.skip_bad_rows:
            raise ValueError(f"{skipped[-1]}; correct it, or leave it out with --skip-bad-rows")


def is_held_out(part: Part, number: int) -> bool:
    """Returns whether a document is held out, by the hash of shard and line."""
    digest = hashlib.sha256(f"held out:{part.name}:{number}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < part.held_out * 2**64
