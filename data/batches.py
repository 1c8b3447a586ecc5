"""Builds batches from the token ids of a corpus, bucketed by length and padded on the right.

Padding to the longest review of a random batch nearly doubles the work at 512 tokens. Sorting by length inside buckets
of shuffled reviews, then shuffling the batches, leaves about 3 % of padding and still a random order.

Batches are not prepared in the background: 16 reviews of up to 512 tokens take 0.1 ms, less than a thousandth of a
training step on a CPU.
"""

import hashlib
import math
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from torch import Tensor

from data.checksums import is_intact, seal_file
from data.files import replacing
from data.seeds import derive_seed
from data.tokenization import Tokenizer
from data.windows import WHOLE, Truncation, first_windows, pool, window_positions

BUCKET = 50  # batches whose reviews are sorted by length together


def no_check() -> None:
    """Does nothing between batches."""


class Batch(NamedTuple):
    """B examples, padded on the right. The mask is True for real tokens."""

    input_ids: Tensor  # int64 [B, T]
    mask: Tensor  # bool [B, T]
    labels: Tensor  # int64 [B], -1 if unknown
    rows: Tensor  # int64 [B], numbers of the examples in the corpus
    unlabelled: "Batch | None" = None  # a batch of unlabelled reviews for the same step
    class_weights: Tensor | None = None  # fp32 [C], weight of an example's loss by its class
    teacher: Tensor | None = None  # fp32 [B, C], logits of a teacher
    share: "Share | None" = None  # where these rows are in a batch that several ranks compute together

    def to(self, device: torch.device) -> "Batch":
        """Copies all tensors to a device. A GPU copies from pinned memory, so that the CPU does not wait for it."""

        def copy(x: Tensor) -> Tensor:
            """Copies one tensor."""
            return (x.pin_memory() if device.type == "cuda" and not x.is_cuda else x).to(device, non_blocking=True)

        return Batch(
            input_ids=copy(self.input_ids),
            mask=copy(self.mask),
            labels=copy(self.labels),
            rows=copy(self.rows),
            unlabelled=None if self.unlabelled is None else self.unlabelled.to(device),
            class_weights=None if self.class_weights is None else copy(self.class_weights),
            teacher=None if self.teacher is None else copy(self.teacher),
            share=None if self.share is None else self.share._replace(whole=self.share.whole.to(device)),
        )

    @property
    def whole(self) -> "Batch":
        """The batch of all ranks."""
        return self if self.share is None else self.share.whole

    @property
    def start(self) -> int:
        """The number of the first row in `whole`."""
        return 0 if self.share is None else self.share.start

    def generator(self) -> torch.Generator | None:
        """Returns a generator for numbers that all ranks draw for `whole`; None: torch's default generator."""
        return None if self.share is None else self.share.generator(self.input_ids.device)

    def own(self, drawn: Tensor) -> Tensor:
        """Returns the rows and columns of this batch from a tensor of `whole`: [N, T'] -> [B, T].

        For a rank without rows the result is 0, which selects no token.
        """
        if self.share is None:
            return drawn
        own = self.share.own(drawn)[:, : self.input_ids.size(1)]
        return own if self.counted else torch.zeros_like(own)

    @property
    def counted(self) -> int:
        """The number of examples whose loss counts: 0 for a rank without rows."""
        return len(self.labels) if self.share is None else self.share.stop - self.share.start

    @property
    def total(self) -> int:
        """The number of examples of all ranks."""
        return len(self.labels) if self.share is None else len(self.share.whole.labels)

    def part(self, mean: Tensor) -> Tensor:
        """Computes this rank's part of a mean over examples: the parts of all ranks add up to it.

        Without ranks the part is the mean.
        """
        return mean if self.share is None else mean * (self.counted / self.total)

    def part_of(self, mean: Tensor, counted: Tensor) -> Tensor:
        """Computes this rank's part of a mean over the elements `counted`: bool [B, T], or [N, T] of all ranks."""
        if self.share is None:
            return mean
        return mean * (self.share.own(counted).sum() * min(self.counted, 1) / counted.sum().clamp(min=1))


class Share(NamedTuple):
    """The rows start … stop - 1 of a batch `whole`, which one rank computes; start = stop: none."""

    whole: Batch
    start: int
    stop: int
    seed: int | None  # of random numbers that all ranks draw for `whole`; None: torch's default generator

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Returns a generator in the same state on all ranks."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)

    def own(self, whole: Tensor) -> Tensor:
        """Returns the rows of this rank, [B, …] -> [n, …]; the first row if it has none."""
        return whole[self.start : self.stop] if self.stop > self.start else whole[:1]


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
        """Returns the examples `rows`, padded to the longest of them."""
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
        shape = (1 + len(lengths) + sum(lengths),)
        header = {"descr": dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": shape}
        write_array_header_1_0(file, header)
        array("i", [len(lengths)]).tofile(file)
        lengths.tofile(file)
        ids.seek(0)
        shutil.copyfileobj(ids, file)


def merge_rows(path: Path, parts: list[Path]) -> None:
    """Concatenates files of `write_rows`. One file at a time is open."""

    def stored(part: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns (lengths, ids) of a part."""
        values = np.load(part, mmap_mode="r", allow_pickle=False)
        return values[1 : values[0] + 1], values[values[0] + 1 :]

    sizes = [tuple(map(len, stored(part))) for part in parts]
    count, total = sum(size for size, _ in sizes), sum(size for _, size in sizes)
    header = {"descr": dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (1 + count + total,)}
    with path.open("wb") as file:
        write_array_header_1_0(file, header)
        array("i", [count]).tofile(file)
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
    for number, text in enumerate(frame["review"]):
        digest.update((f"\0{text}" if number else text).encode("utf-8", "surrogatepass"))
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


def examples_of(tokenizer: Tokenizer, frame: pd.DataFrame, truncation: Truncation, cache: Path | None) -> Corpus:
    """Tokenizes reviews as `build_corpus` does, or into windows. The cache holds the ids of the whole reviews then."""
    if truncation.truncate != "windows":
        return build_corpus(tokenizer, frame, truncation.max_length, truncation.truncate, cache)
    tokenizer.text_limit(truncation.max_length)  # checked before the reviews are read
    return cut_into_windows(build_corpus(tokenizer, frame, WHOLE, "head", cache), tokenizer, truncation)


# ---------------------------------------------------------------------------------------------------------- orders


def split_by_count(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Splits `rows` into batches of batch_size; the last one may be smaller."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def split_by_tokens(rows: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Splits `rows`, sorted by ascending length, into batches of at most tokens_per_batch tokens, padding included.

    A longer row becomes a batch of one.
    """
    batches, start = [], 0
    for end in range(len(rows)):
        if end > start and (end + 1 - start) * lengths[rows[end]] > tokens_per_batch:
            batches.append(rows[start:end])
            start = end
    return [*batches, rows[start:]]


def shuffled_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, tokens_per_batch: int = 0
) -> list[np.ndarray]:
    """Returns the batches of one epoch: every example once, in batches of similar length, in random order.

    tokens_per_batch: if above 0, a batch has at most that many tokens, padding included, instead of batch_size
    examples. The order is a pure function of the arguments: to resume within an epoch, its number and the index of the
    batch are sufficient.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, f"order {epoch}"))
    shuffled = torch.randperm(len(lengths), generator=generator).numpy()
    batches, size = [], batch_size * BUCKET
    if tokens_per_batch:
        size = max(1, int(tokens_per_batch * BUCKET / lengths.mean()))
    for start in range(0, len(shuffled), size):
        bucket = shuffled[start : start + size]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        if tokens_per_batch:
            batches += split_by_tokens(bucket, lengths=lengths, tokens_per_batch=tokens_per_batch)
        else:
            batches += split_by_count(bucket, batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_order(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Returns batches for scoring: every example once, longest first, at most max_tokens a batch, padding included.

    The first batch needs the most memory, so a run that is too large fails at once.
    """
    order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


# --------------------------------------------------------------------------------------------------------- batches


class Stream:
    """Endless batches of a corpus, epoch after epoch. Batch `number` is a pure function of number and seed."""

    def __init__(self, corpus: Corpus, batch_size: int, seed: int) -> None:
        self.corpus, self.batch_size, self.seed = corpus, batch_size, derive_seed(seed, "unlabelled")
        self.count = -(-len(corpus) // batch_size)  # batches in an epoch
        self.epoch = -1
        self.order: list[np.ndarray] = []

    def batch(self, number: int) -> Batch:
        """Returns batch 0, 1, …"""
        epoch, index = divmod(number, self.count)
        if epoch != self.epoch:
            self.order = shuffled_order(self.corpus.lengths, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
            self.epoch = epoch
        return self.corpus.batch(self.order[index])


def step_batches(
    corpus: Corpus,
    stream: Stream | None,
    micro_batches: list[np.ndarray],
    number: int,
    num_splits: int,
    tokens_per_pass: int = 0,
) -> Iterator[Batch]:
    """Yields the batches of one optimizer step: each micro-batch, split into num_splits forward passes.

    tokens_per_pass: if above 0, a micro-batch of n tokens, padding included, is split into at least
    n / tokens_per_pass passes. A pass has at least one example. stream: adds an unlabelled batch to each pass.
    number: of the first micro-batch, counted over the whole run.
    """
    for index, rows in enumerate(micro_batches, number):
        longest = (corpus.offsets[rows + 1] - corpus.offsets[rows]).max()
        needed = math.ceil(len(rows) * longest / tokens_per_pass) if tokens_per_pass else 1
        for split in np.array_split(rows, min(max(num_splits, needed), len(rows))):
            batch = corpus.batch(split)
            yield batch if stream is None else batch._replace(unlabelled=stream.batch(index))


def batches(corpus: Corpus, order: list[np.ndarray], device: torch.device) -> Iterator[Batch]:
    """Yields the batches of an order on a device."""
    for rows in order:
        yield corpus.batch(rows).to(device)
