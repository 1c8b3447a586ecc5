"""Orders the examples of a corpus into batches, bucketed by length and padded on the right.

Padding to the longest review of a random batch nearly doubles the work at 512 tokens. Sorting by length inside buckets
of shuffled reviews, then shuffling the batches, leaves less than 2 % of padding and still a random order.

Batches are not prepared in the background: 16 reviews of up to 512 tokens take 0.1 ms, less than a thousandth of a
training step on a CPU.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from data.batches import Batch
from data.corpus import Corpus
from data.seeds import derive_seed

BUCKET = 50  # batches whose reviews are sorted by length together


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
    if tokens_per_batch and len(lengths):
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
    """Returns batches for scoring: every example once, longest first, at most max_tokens in a batch, padding included.

    An example that is longer than max_tokens is a batch of its own. The first batch needs the most memory, so a run
    that is too large fails at once.
    """
    order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        size = max(1, max_tokens // max(1, int(lengths[order[start]])))
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
    n / tokens_per_pass passes. Their number is 1 or even, so that two threads compute equally many. A pass has at least
    one example. stream: adds to each pass the whole unlabelled batch of its micro-batch. number: of the first
    micro-batch, counted over the whole run.
    """
    for index, rows in enumerate(micro_batches, number):
        longest = (corpus.offsets[rows + 1] - corpus.offsets[rows]).max()
        needed = math.ceil(len(rows) * longest / tokens_per_pass) if tokens_per_pass else 1
        needed += needed % 2 if needed > 1 else 0
        for split in np.array_split(rows, min(max(num_splits, needed), len(rows))):
            batch = corpus.batch(split)
            yield batch if stream is None else batch._replace(unlabelled=stream.batch(index))


def batches(corpus: Corpus, order: list[np.ndarray], device: torch.device) -> Iterator[Batch]:
    """Yields the batches of an order on a device."""
    for rows in order:
        yield corpus.batch(rows).to(device)
