"""Batches: token ids of a corpus, length-bucketed order, right padding.

Padding to the longest review of a random batch nearly doubles the work at 512 tokens. Sorting by length inside windows
of shuffled reviews, then shuffling the batches, leaves about 3 % of padding and still a random order.

Nothing is prepared in the background: 16 reviews of up to 512 tokens are a batch after 0.1 ms, less than a thousandth
of a step on a CPU.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nn.files import replacing
from nn.runtime import derive_seed

WINDOW = 50  # batches that are sorted together


class Batch(NamedTuple):
    """B examples. Padding stands on the right and is False in the mask."""

    input_ids: Tensor  # int64 [B, T]
    mask: Tensor  # bool [B, T]
    labels: Tensor  # int64 [B], -1 where unknown
    rows: Tensor  # int64 [B], which examples of the corpus these are
    unlabelled: "Batch | None" = None  # reviews without labels beside these

    def to(self, device: torch.device) -> "Batch":
        unlabelled = self.unlabelled if self.unlabelled is None else self.unlabelled.to(device)
        return Batch(*(part.to(device, non_blocking=True) for part in self[:4]), unlabelled)


@dataclass(frozen=True)
class Corpus:
    """Token ids of N examples in one array: example i is ids[offsets[i]:offsets[i+1]]."""

    ids: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [N + 1]
    labels: np.ndarray  # int64 [N]
    pad_id: int

    @classmethod
    def from_rows(cls, rows: Iterable[list[int]], labels: Iterable[int], pad_id: int) -> "Corpus":
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        ids = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(ids, offsets, np.asarray(list(labels), dtype=np.int64), pad_id)

    @classmethod
    def cached(
        cls, path: Path, make: Callable[[], Iterable[list[int]]], labels: Iterable[int], pad_id: int
    ) -> "Corpus":
        """The ids in `path`, mapped into memory; `make` gives them, once, where the file is not there yet. Without
        `labels` they are -1.

        The file is one int32 array, .npy: the number of examples, their lengths, their ids.
        """
        if not path.exists():
            made = cls.from_rows(make(), [], pad_id)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate([[len(made.lengths)], made.lengths, made.ids]).astype(np.int32))
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        count = int(stored[0])
        offsets = np.concatenate([[0], np.cumsum(stored[1 : count + 1], dtype=np.int64)])
        labels = np.asarray(list(labels), dtype=np.int64)
        return cls(stored[count + 1 :], offsets, labels if len(labels) else np.full(count, -1), pad_id)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> Batch:
        """The examples `rows`, padded to the longest of them."""
        width = int(self.lengths[rows].max())
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        for line, row in zip(ids, rows, strict=True):
            start, end = self.offsets[row], self.offsets[row + 1]
            line[: end - start] = self.ids[start:end]
        mask = np.arange(width) < self.lengths[rows][:, None]
        return Batch(*(torch.from_numpy(array) for array in (ids, mask, self.labels[rows], np.asarray(rows))))


def cut_by_count(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]


def cut_by_tokens(rows: np.ndarray, lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Runs of `rows`, whose lengths do not fall, with at most `tokens` places each, padding included; one row at
    least."""
    batches, start = [], 0
    for at in range(len(rows)):
        if at > start and (at + 1 - start) * lengths[rows[at]] > tokens:
            batches.append(rows[start:at])
            start = at
    return [*batches, rows[start:]]


def shuffled_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int, tokens: int = 0) -> list[np.ndarray]:
    """One epoch: every example once, in batches of similar length, in random order. tokens: batches of at most so many
    places instead of batch_size examples.

    A pure function of its arguments: to resume in mid-epoch, its number and the place in it are
    all the state there is.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, f"order {epoch}"))
    shuffled = torch.randperm(len(lengths), generator=generator).numpy()
    batches, size = [], batch_size * WINDOW
    if tokens:
        size = max(1, int(tokens * WINDOW / lengths.mean()))
    for start in range(0, len(shuffled), size):
        window = shuffled[start : start + size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += cut_by_tokens(window, lengths, tokens) if tokens else cut_by_count(window, batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class Stream:
    """Endless batches of a corpus, epoch after epoch: batch `number` is a pure function of number and seed."""

    def __init__(self, corpus: Corpus, batch_size: int, seed: int) -> None:
        self.corpus, self.batch_size, self.seed = corpus, batch_size, derive_seed(seed, "unlabelled")
        self.count = -(-len(corpus) // batch_size)  # in an epoch
        self.epoch, self.order = -1, []

    def batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self.count)
        if epoch != self.epoch:
            self.order = shuffled_order(self.corpus.lengths, self.batch_size, self.seed, epoch)
            self.epoch = epoch
        return self.corpus.batch(self.order[place])


def step_batches(
    corpus: Corpus, stream: Stream | None, micro_batches: list[np.ndarray], number: int, pieces: int, places: int = 0
):
    """The batches of one optimizer step, each cut into `pieces`, or more where one would have over `places` tokens,
    padding included; number: of the first batch, counted over the whole run."""
    for place, rows in enumerate(micro_batches, number):
        needed = math.ceil(len(rows) * corpus.lengths[rows].max() / places) if places else 1
        for part in np.array_split(rows, min(max(pieces, needed), len(rows))):
            batch = corpus.batch(part)
            yield batch if stream is None else batch._replace(unlabelled=stream.batch(place))


def sorted_order(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """For scoring: every example once, longest first (memory runs out at once or never), in batches of at most `tokens`
    places, padding included."""
    order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def batches(corpus: Corpus, order: list[np.ndarray], device: torch.device) -> Iterator[Batch]:
    for rows in order:
        yield corpus.batch(rows).to(device)
