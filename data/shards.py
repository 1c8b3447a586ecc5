"""Tokenizes texts that are larger than memory, in several processes, into the file that `Corpus.mapped` maps.

    files -> parts of about 8 MiB -> clean and tokenize, several processes -> ids of each part -> ids of the corpus

Each process holds some documents of one part at a time in memory (data/shard_reader.py reads them). The ids of a
finished part are a sealed file, so an interrupted build continues with the next part. The result does not depend on the
number of processes.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.bars import progress_bar
from data.checked import show
from data.checksums import is_intact, seal_file
from data.corpus import Corpus, merge_rows, write_rows
from data.files import discard, replacing, stamp
from data.locks import waiting_lock
from data.readers import Source
from data.shard_reader import PART_BYTES, Part, cut_into_parts, documents, find_shards
from data.tokenization import Tokenizer, load_tokenizer

VERSION = 1  # part of the cache key: increase it when reading or cleaning changes
SAMPLE = 2**25  # characters of the documents on which a tokenizer is trained
GROUP = 2**16  # characters in one call of the tokenizer: its results take up to 100 bytes a token
WORKER_WORDS = 2**15  # that a worker remembers the ids of; each takes about 200 bytes
MOST_PROCESSES = 16


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
        if stamp(part.path) != part.stamp:
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


def start_worker(job: Job, tokenizer: Tokenizer | None) -> None:
    """Prepares a worker process, which ends with its parent and leaves Ctrl-C to it.

    tokenizer: None if it cannot be inherited, and is read from the job's folder.
    """
    gc.freeze()  # a collection would write to, and so copy, the memory that is shared with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process for each core
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    tokenizer = tokenizer or load_tokenizer(job.folder / "tokenizer")
    for words in (tokenizer.words, *([tokenizer.spm.words] if tokenizer.spm else [])):
        words.limit = WORKER_WORDS
    WORKER.append((job, tokenizer))


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

    @classmethod
    def find(cls, source: Source, table: Path | None, cache: Path | None) -> "Shards | None":
        """Returns the shards of a source, None for one that is read into memory. table: see `find_shards`."""
        if cache is None or not (files := find_shards(source, table)):
            return None
        parts, digest = cut_into_parts(source, files, cache / "shards")
        return cls(source, parts, digest, {str(Path(source.train or source.data).expanduser().absolute()): digest})

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
        for path in list(job.folder.glob(".*.tmp")):  # of processes that were killed
            discard(path)
        waiting = [number for number in range(len(self.parts)) if not all(map(is_intact, job.paths(number)))]
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only: the cores that this process may use
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        processes = min(processes or cores, MOST_PROCESSES, len(waiting))
        print(f"tokenizing {len(waiting)} of {len(self.parts)} parts in {max(1, processes)} processes")
        count, example = 0, ""
        results = self.results(job, tokenizer, waiting, processes)
        with progress_bar(results, total=len(waiting), desc="tokenizing", unit=" parts") as bar:
            for found in bar:
                count, example = count + len(found), example or "".join(found[:1])
        if count:
            print(f"{count:,} broken rows skipped ({show(example, 200)}, …)")
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
        inherited = tokenizer if sys.platform == "linux" else None
        if inherited is None:
            tokenizer.save(job.folder / "tokenizer")
        # A fork shares the memory of torch and of the tokenizer. It has no other thread of its parent; workers call
        # neither torch nor the threads of `tokenizers`. Forks of other systems are unsafe or missing.
        context = multiprocessing.get_context("fork" if inherited else "spawn")
        before = multiprocessing.active_children()
        pool = ProcessPoolExecutor(processes, context, start_worker, (job, inherited))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
                results = pool.map(encode_part, waiting, [self.parts[number] for number in waiting])
            yield from results
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in before:
                    process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
