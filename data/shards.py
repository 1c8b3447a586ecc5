"""Streams texts that are larger than memory into token ids: a folder of .txt, .jsonl and .parquet files, or one file.

    files -> parts of about 8 MiB -> clean and tokenize, several processes -> ids of each part -> ids of the corpus

A .txt file holds one document a line, a .jsonl file one object a line, a Parquet file one document a row (pyarrow reads
it row group by row group; it is optional). Memory holds some documents of one part at a time in each process. The ids
of a finished part are a sealed file, so an interrupted build continues with the next part. The result is the file that
`Corpus.mapped` maps; it does not depend on the number of processes.

A document is held out if the hash of shard name and line is below HELD_OUT, on every machine.

Differs from the reading of small files: the held-out share, and lines of a .txt file end in a line feed only.
"""

import codecs
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.batches import Corpus, merge_rows, write_rows
from data.checked import read_object, reading, show
from data.checksums import is_intact, seal, seal_file, unseal
from data.columns import ABSENT, Columns, find_columns
from data.delimited import Record
from data.files import check_inside, replacing, write_json
from data.imdb import clean, parse_record
from data.locks import waiting_lock
from data.readers import BrokenLine, Source, Table, as_text, parse_line
from data.tokenization import Tokenizer, load_tokenizer
from data.unpacking import LINE_BYTES

LINES, OBJECTS, PARQUETS = (".txt",), (".jsonl", ".ndjson"), (".parquet", ".pq")
VERSION = 1  # part of the cache key: increase it when reading or cleaning changes
STREAM_BYTES = 2**26  # a single file above this size is streamed; smaller ones are read into memory
PART_BYTES = 2**23  # of text: the unit of work, and what a kill loses
HELD_OUT = 0.01  # fraction of the documents
SAMPLE = 2**25  # characters of the documents on which a tokenizer is trained
GROUP = 2**18  # characters in one call of the tokenizer: its results take up to 100 bytes a token
MOST_PROCESSES = 16  # each takes about 300 MiB


class Part(NamedTuple):
    """A range of a shard: bytes start … end of text, row groups start … end of Parquet."""

    path: Path
    name: str  # of the shard, relative to the folder
    column: str
    start: int
    end: int
    first: int  # number of its first line or row
    stamp: tuple[int, int]  # size and time of change of the file
    held_out: float  # fraction of its documents


class Document(NamedTuple):
    held_out: bool
    text: str


# ------------------------------------------------------------------------------------------------------ the files


def shard_files(root: Path) -> list[Path]:
    """Returns the shards of a folder, sorted by name, or the file itself; [] if reading them into memory is right.

    These are a file of another kind or below STREAM_BYTES, and a folder with a table named train.
    """
    endings = (*LINES, *OBJECTS, *PARQUETS)
    if not root.is_dir():
        return [root] if root.suffix.lower() in endings and root.stat().st_size > STREAM_BYTES else []
    if any(path.name.lower().startswith("train.") for path in root.iterdir()):
        return []
    paths = [path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    files = sorted(path for path in paths if path.is_file())
    found = [check_inside(path, root, "copy it") for path in files if path.suffix.lower() in endings]
    if found and len(found) < len(files):
        others = [path.name for path in files if path not in found]
        print(f"{root}: left out {len(others)} files that are not .txt, .jsonl or .parquet ({show(others[0])}, …)")
    return found


def find_shards(source: Source, cache: Path | None) -> "Shards | None":
    """Returns the shards of a source, None for one that is read into memory."""
    root = Path(source.train or source.data).expanduser().absolute()
    if cache is None or (source.train and source.data) or not root.exists() or not (files := shard_files(root)):
        return None
    base, parts, digest = root if root.is_dir() else root.parent, [], hashlib.sha256()
    chosen = [(path, path.relative_to(base).as_posix(), 0.0 if source.validation else HELD_OUT) for path in files]
    if source.validation:
        path = Path(source.validation).expanduser().absolute()
        if path.suffix.lower() not in (*LINES, *OBJECTS, *PARQUETS):
            raise ValueError(f"--validation {path} must be a .txt, .jsonl or .parquet file, as the shards are")
        chosen.append((path, path.name, 1.0))
    (cache / "shards").mkdir(parents=True, exist_ok=True)
    with waiting_lock(cache / "shards"):
        for path, name, share in tqdm(chosen, desc="indexing", unit=" files", leave=False, disable=None):
            index, column = indexed(path, cache / "shards"), find_column(path, source)
            stamp = (index["size"], index["changed"])
            parts += [Part(path, name, column, start, end, first, stamp, share) for start, end, first in index["parts"]]
            digest.update(f"{name}\0{index['digest']}\0{share}\n".encode("utf-8", "surrogateescape"))
    return Shards(source, parts, digest.hexdigest(), {str(root): digest.hexdigest()})


def find_column(path: Path, source: Source) -> str:
    """Returns the name of the column of texts, "" for a .txt file. Raises ValueError if it is not found."""
    if path.suffix.lower() in LINES:
        return ""
    if path.suffix.lower() in PARQUETS:
        names = [str(name) for name in open_parquet(path).schema_arrow.names]
    else:
        with path.open("rb") as file:
            value = parse_line(file.readline(LINE_BYTES).decode(source.encoding or "utf-8-sig", "replace") or "null")
        if not isinstance(value, dict):
            what = value if isinstance(value, BrokenLine) else f"{type(value).__name__} instead of an object"
            raise ValueError(f"{path}: line 1: {what}; correct it")
        names = list(value)
    table, texts = Table(path, names, [Record(1, [])]), replace(source, label_column=ABSENT, id_column=ABSENT)
    return names[find_columns(table, texts).text]


def open_parquet(path: Path) -> Any:
    """Opens a Parquet file without reading its rows. Raises ValueError if pyarrow is missing or the file damaged."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; to read it: pip install pyarrow") from None
    with reading(path, "a Parquet file"):
        return parquet.ParquetFile(path, buffer_size=2**20)


def indexed(path: Path, cache: Path) -> dict[str, Any]:
    """Returns the index of a shard: size, changed, digest, and parts [start, end, first].

    It is computed once: a file of the same size and time of change is not read again.
    """
    status = path.stat()
    stored = cache / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.json"
    if stored.is_file():
        try:
            index = unseal(read_object(stored), stored)
            if (index["size"], index["changed"]) == (status.st_size, status.st_mtime_ns):
                return index
        except ValueError as error:
            print(f"{show(error)}; it is made again")
    parts, digest = index_text(path)
    if path.suffix.lower() in PARQUETS:
        parts = index_parquet(path)
    index = {"size": status.st_size, "changed": status.st_mtime_ns, "digest": digest, "parts": parts}
    write_json(stored, seal(index))
    return index


def index_text(path: Path) -> tuple[list[tuple[int, int, int]], str]:
    """Reads a file once: returns (its parts, which end behind a line feed, its SHA-256).

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
            if part.start == 0 and number == 1 and not encoding:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode(encoding or "utf-8").strip()
            except (UnicodeDecodeError, LookupError) as error:
                yield Record(number, [], f"not {encoding or 'UTF-8'} text ({error}); --encoding names another one")
                continue
            if text:
                yield Record(number, [text]) if ending in LINES else object_record(number, text, part.column)


def object_record(number: int, line: str, column: str) -> Record:
    """Parses one line of JSON."""
    value = parse_line(line)
    if isinstance(value, BrokenLine):
        return Record(number, [], value)
    if not isinstance(value, dict):
        return Record(number, [], f"{type(value).__name__} instead of an object")
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


# ------------------------------------------------------------------------------------------------------- the ids


@dataclass(frozen=True)
class Job:
    """What each process does with a part."""

    source: Source
    folder: Path
    max_length: int
    truncate: str

    def paths(self, number: int) -> list[Path]:
        """Returns the files of a part's ids: training, held out."""
        return [self.folder / f"{number:06d}.{split}.npy" for split in ("train", "held_out")]

    def encode(self, number: int, part: Part, tokenizer: Tokenizer) -> list[str]:
        """Writes the ids of a part. Returns the broken rows that were skipped."""
        held_out: list[str] = []
        skipped: list[str] = []

        def training() -> Iterator[str]:
            for document in documents(part, self.source, skipped):
                if document.held_out:
                    held_out.append(document.text)
                else:
                    yield document.text

        for path, texts in zip(self.paths(number), (training(), iter(held_out)), strict=True):
            with replacing(path) as temporary:
                rows = (tokenizer.encode(g, self.max_length, self.truncate) for g in grouped(texts))
                write_rows(temporary, (row for group in rows for row in group))
        status = part.path.stat()
        if (status.st_size, status.st_mtime_ns) != part.stamp:
            raise ValueError(f"{part.path} changed while it was read; start again")
        for path in self.paths(number):
            seal_file(path)
        return skipped


def grouped(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yields lists of texts with about GROUP characters."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


WORKER: list[tuple[Job, Tokenizer]] = []  # of a worker process: what `start_worker` prepared


def start_worker(job: Job) -> None:
    """Prepares a worker process, which ends with its parent and leaves signals to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process for each core
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    WORKER.append((job, load_tokenizer(job.folder / "tokenizer")))


def encode_part(number: int, part: Part) -> list[str]:
    """Does one part in a worker process."""
    job, tokenizer = WORKER[0]
    return job.encode(number, part, tokenizer)


@dataclass(frozen=True)
class Shards:
    """The parts of all shards. digest: of all names and contents. files: path -> digest, as a run records them."""

    source: Source
    parts: list[Part]
    digest: str
    files: dict[str, str]

    def sample(self) -> list[str]:
        """Returns at most about SAMPLE characters of training documents, the same number from each of up to 1,024
        parts, spread evenly."""
        chosen = [part for part in self.parts if part.held_out < 1]
        chosen = chosen[:: -(-len(chosen) // 1024) or 1]
        texts = []
        for part in chosen:
            left = SAMPLE // len(chosen)
            for document in documents(part, self.source, []):
                if not document.held_out:
                    texts.append(document.text)
                    left -= len(document.text)
                if left <= 0:
                    break
        size = sum(map(len, texts))
        print(f"sample for the vocabulary: {len(texts):,} documents, {size:,} characters (at most {SAMPLE:,})")
        return texts

    def corpora(
        self, tokenizer: Tokenizer, max_length: int, truncate: str, cache: Path, processes: int = 0
    ) -> tuple[Corpus, Corpus]:
        """Returns the training and the held-out corpus, mapped from files that one process makes and others wait for.

        processes: 0 means one for each core. Raises ValueError if a corpus is empty.
        """
        how = [VERSION, tokenizer.fingerprint, max_length, truncate, self.digest, PART_BYTES]
        how += [self.source.text_column, self.source.encoding, self.source.skip_bad_rows]
        folder = cache / "shards" / hashlib.sha256(json.dumps(how).encode()).hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{split}.npy" for split in ("train", "held_out")]
        if not all(map(is_intact, paths)):
            with waiting_lock(folder):
                if not all(map(is_intact, paths)):
                    self.build(Job(self.source, folder, max_length, truncate), tokenizer, processes, paths)
        train, held_out = (Corpus.mapped(path, [], tokenizer.pad_id) for path in paths)
        if not len(train) or not len(held_out):
            raise ValueError(f"{min(self.files)}: too few documents to hold one out; --validation FILE names others")
        print(f"corpus: {len(train):,} training examples of {len(train.ids):,} tokens, {len(held_out):,} held out")
        return train, held_out

    def build(self, job: Job, tokenizer: Tokenizer, processes: int, paths: list[Path]) -> None:
        """Tokenizes the parts that are not finished, and merges all."""
        for path in job.folder.glob(".*.tmp"):  # of processes that were killed
            path.unlink()
        waiting = [number for number in range(len(self.parts)) if not all(map(is_intact, job.paths(number)))]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = min(processes or cores, MOST_PROCESSES, len(waiting))
        print(f"tokenizing {len(waiting)} of {len(self.parts)} parts in {max(1, processes)} processes")
        skipped: list[str] = []
        results = self.results(job, tokenizer, waiting, processes)
        for found in tqdm(results, total=len(waiting), desc="tokenizing", unit=" parts", leave=False, disable=None):
            skipped += found[:1000]
        if skipped:
            print(f"{len(skipped):,} broken rows skipped ({show(skipped[0], 200)}, …)")
        for split, path in enumerate(paths):
            with replacing(path) as temporary:
                merge_rows(temporary, [job.paths(number)[split] for number in range(len(self.parts))])
            seal_file(path)
        for path in job.folder.glob("??????.*.npy*"):
            path.unlink()

    def results(self, job: Job, tokenizer: Tokenizer, waiting: list[int], processes: int) -> Iterator[list[str]]:
        """Yields the skipped rows of each part, in this process or from several."""
        if processes <= 1:
            for number in waiting:
                yield job.encode(number, self.parts[number], tokenizer)
            return
        tokenizer.save(job.folder / "tokenizer")
        context, before = multiprocessing.get_context("spawn"), multiprocessing.active_children()
        pool = ProcessPoolExecutor(processes, context, start_worker, (job,))
        try:
            yield from pool.map(encode_part, waiting, [self.parts[number] for number in waiting])
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in before:
                    process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
