"""Holds the token ids of a corpus in one array, in memory or in a memory-mapped file, and makes them from reviews."""

import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

from data.batches import Batch
from data.checksums import is_intact, seal_file
from data.files import replacing
from data.tokenization import Tokenizer
from data.windows import WHOLE, Truncation, first_windows, pool, window_positions

MANY_UNKNOWN = 1 / 3  # fraction of the tokens of texts
SAMPLE = 2**20  # tokens that are looked at


@dataclass(frozen=True)
class Corpus:
    """Token ids of N examples in one array: example i is ids[offsets[i]:offsets[i+1]].

    An example is a review, or one of the windows of a review. Labels are those of the R reviews.
    """

    ids: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [N + 1]
    labels: np.ndarray  # int64 [R]
    pad_id: int
    review: np.ndarray | None = None  # int64 [N], the review of each window, ascending; None: R = N
    pooling: str = "mean"  # of the logits of a review's windows
    class_weights: np.ndarray | None = None  # fp32 [C], of every batch
    teacher: np.ndarray | None = None  # fp32 [R, C], logits of a teacher for the reviews

    @classmethod
    def from_rows(cls, rows: Iterable[list[int]], labels: Iterable[int], pad_id: int) -> "Corpus":
        """Concatenates the token ids of examples."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        ids = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(ids=ids, offsets=offsets, labels=np.asarray(list(labels), dtype=np.int64), pad_id=pad_id)

    @classmethod
    def cached(
        cls, path: Path, make: Callable[[], Iterable[list[int]]], labels: Iterable[int], pad_id: int
    ) -> "Corpus":
        """Maps the ids of the file `path` into memory. If the file does not exist or is damaged, it is written from
        `make()`.

        Empty `labels` become -1. The file is one int32 array in .npy format: number of examples, lengths, ids.
        """
        if not is_intact(path):
            with replacing(path) as temporary:
                write_rows(temporary, make())
            seal_file(path)
        return cls.mapped(path, labels, pad_id)

    @classmethod
    def mapped(cls, path: Path, labels: Iterable[int], pad_id: int) -> "Corpus":
        """Maps the ids of a file of `write_rows` into memory. Empty `labels` become -1."""
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        count = int(stored[0])
        offsets = np.concatenate([[0], np.cumsum(stored[1 : count + 1], dtype=np.int64)])
        labels = np.asarray(list(labels), dtype=np.int64)
        labels = labels if len(labels) else np.broadcast_to(np.int64(-1), count)  # takes no memory
        return cls(ids=stored[count + 1 :], offsets=offsets, labels=labels, pad_id=pad_id)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def reviews_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the reviews, which are rows of the frame, of the examples `rows`."""
        return rows if self.review is None else self.review[rows]

    def pool(self, logits: np.ndarray) -> np.ndarray:
        """Returns the logits of the reviews, [R, C], from those of the examples, [N, C]."""
        return logits if self.review is None else pool(logits, self.review, self.pooling)

    def sum_by_review(self, values: np.ndarray) -> np.ndarray:
        """Sums a number of each example, int64 [N], over the windows of each review: int64 [R]"""
        return values if self.review is None else np.add.reduceat(values, first_windows(self.review))

    @property
    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each example: int64 [N]."""
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns the examples `rows`, padded to the longest of them. Raises IndexError for rows out of range."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} … {rows.max()} are outside 0 … {len(self) - 1}")
        lengths = self.offsets[rows + 1] - self.offsets[rows]  # of these rows only: a corpus may have millions
        width = int(lengths.max())
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)  # [B, T]
        for line, row in zip(ids, rows, strict=True):
            start, end = self.offsets[row], self.offsets[row + 1]
            line[: end - start] = self.ids[start:end]
        mask = np.arange(width) < lengths[:, None]  # [B, T]
        return Batch(
            input_ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            labels=torch.from_numpy(self.labels[self.reviews_of(rows)]),
            rows=torch.from_numpy(np.asarray(rows)),
            class_weights=None if self.class_weights is None else torch.from_numpy(self.class_weights),
            teacher=None if self.teacher is None else torch.from_numpy(self.teacher[self.reviews_of(rows)]),
        )

    def joined(self, other: "Corpus") -> "Corpus":
        """Returns the examples of both, those of `other` last; the settings are those of this corpus."""
        review = None
        if self.review is not None and other.review is not None:
            review = np.concatenate([self.review, len(self.labels) + other.review])
        return replace(
            self,
            ids=np.concatenate([self.ids, other.ids]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            labels=np.concatenate([self.labels, other.labels]),
            review=review,
        )

    def balanced(self, num_classes: int) -> "Corpus":
        """Returns the same examples with the class weights N / (C·N_c), so that every class has the same total weight.

        Raises ValueError for a class without examples.
        """
        counts = np.bincount(self.labels[self.reviews_of(np.arange(len(self)))], minlength=num_classes)
        if not counts.all():
            raise ValueError(f"--class-weights balanced: class {int(counts.argmin())} has no training example")
        weights = len(self) / (num_classes * counts)
        return replace(self, class_weights=weights.astype(np.float32))


def write_rows(path: Path, rows: Iterable[list[int]]) -> None:
    """Writes the token ids of examples as `Corpus.cached` reads them, and holds one example at a time in memory.

    The lengths precede the ids in the file, so the ids go through a second, temporary file.
    """
    lengths = array("i")  # int32
    with tempfile.TemporaryFile(dir=path.parent) as ids, path.open("wb") as file:
        for row in rows:
            lengths.append(len(row))
            array("i", row).tofile(ids)
        write_header(file, len(lengths), sum(lengths))
        lengths.tofile(file)
        ids.seek(0)
        shutil.copyfileobj(ids, file)


def write_header(file: IO[bytes], count: int, total: int) -> None:
    """Writes the .npy header of 1 + count + total int32 numbers, and count."""
    descr = dtype_to_descr(np.dtype(np.int32))
    write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (1 + count + total,)})
    array("i", [count]).tofile(file)


def merge_rows(path: Path, parts: list[Path]) -> None:
    """Concatenates files of `write_rows`. One file at a time is open."""

    def stored(part: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns (lengths, ids) of a part."""
        values = np.load(part, mmap_mode="r", allow_pickle=False)
        return values[1 : values[0] + 1], values[values[0] + 1 :]

    sizes = [tuple(map(len, stored(part))) for part in parts]
    count, total = sum(size for size, _ in sizes), sum(size for _, size in sizes)
    with path.open("wb") as file:
        write_header(file, count, total)
        for field in (0, 1):  # lengths, then ids
            for part in parts:
                file.write(stored(part)[field].data)


def build_corpus(
    tokenizer: Tokenizer, frame: pd.DataFrame, max_length: int, truncate: str, cache: Path | None
) -> Corpus:
    """Tokenizes reviews. With `cache`, the ids are stored there under the hash of all that determines them.

    max_length: tokens of an example, special tokens included. truncate: as in `Tokenizer.encode`; with `chunks` a
    review becomes several examples, which have no labels.
    """

    def encode() -> Iterator[list[int]]:
        """Yields the ids of each example."""
        return tokenizer.encode(frame["review"], max_length=max_length, truncate=truncate)

    labels = [] if truncate == "chunks" else frame["sentiment"]
    if cache is None:
        return Corpus.from_rows(encode(), labels=labels, pad_id=tokenizer.pad_id)
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {max_length} {truncate} ".encode())
    for text in frame["review"]:
        digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    path = cache / f"{digest.hexdigest()[:24]}.npy"
    return Corpus.cached(path, make=encode, labels=labels, pad_id=tokenizer.pad_id)


def cut_into_windows(corpus: Corpus, tokenizer: Tokenizer, truncation: Truncation) -> Corpus:
    """Returns the windows of the whole reviews in `corpus` as examples, all in memory."""
    windows, review = [], []
    for number, (start, length) in enumerate(zip(corpus.offsets, corpus.lengths.tolist(), strict=False)):
        cut = window_positions(tokenizer, length, truncation.max_length, truncation.stride)
        windows += [corpus.ids[start + positions] for positions in cut]
        review += [number] * len(cut)
    examples = Corpus.from_rows(windows, labels=corpus.labels, pad_id=corpus.pad_id)
    return replace(examples, review=np.asarray(review, dtype=np.int64), pooling=truncation.pooling)


def unknown_share(tokenizer: Tokenizer, corpus: Corpus, has_text: np.ndarray | None = None) -> float:
    """Returns the fraction of unknown tokens among the first million tokens, special tokens excluded.

    It is 0 if the tokenizer has no unk. has_text: bool [R], False for empty reviews, whose token may be unk. They do
    not count.
    """
    ids = corpus.ids[:SAMPLE]
    if has_text is not None:
        rows = np.arange(np.searchsorted(corpus.offsets, len(ids)))  # the examples of these tokens
        ids = ids[np.repeat(has_text[corpus.reviews_of(rows)], corpus.lengths[rows])[: len(ids)]]
    own = [tokenizer.id_of(token) for token in (*tokenizer.template[0], *tokenizer.template[1])]
    texts = ids[~np.isin(ids, [number for number in own if number is not None])]
    unknown = tokenizer.role_id("unk")
    return 0.0 if unknown is None or not len(texts) else float((texts == unknown).mean())


def warn_unknown(tokenizer: Tokenizer, corpus: Corpus, way_out: str = "", has_text: np.ndarray | None = None) -> None:
    """Prints a warning if more than a third of the tokens are unknown, since the model reads them as the same token.

    has_text: as in `unknown_share`
    """
    if (share := unknown_share(tokenizer, corpus, has_text)) > MANY_UNKNOWN:
        print(f"warning: {share:.0%} of the tokens of these texts are unknown to {tokenizer.source}{way_out}")


def examples_of(tokenizer: Tokenizer, frame: pd.DataFrame, truncation: Truncation, cache: Path | None) -> Corpus:
    """Tokenizes reviews as `build_corpus` does, or into windows. The cache holds the ids of the whole reviews then."""
    if truncation.truncate != "windows":
        return build_corpus(tokenizer, frame, truncation.max_length, truncation.truncate, cache)
    tokenizer.text_limit(truncation.max_length)  # checked before the reviews are read
    return cut_into_windows(build_corpus(tokenizer, frame, WHOLE, "head", cache), tokenizer, truncation)
