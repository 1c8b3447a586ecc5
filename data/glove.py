"""GloVe (Pennington, Socher & Manning 2014, D14-1162) fits the logarithm of how often two words meet:

    X_ij = Σ 1/d  over all places where i and j stand d <= window words apart                   §3, §4.2
    J = Σ_ij f(X_ij) (w_iᵀ w̃_j + b_i + b̃_j - log X_ij)²                                        Eq. (8)
    f(x) = min(1, (x / x_max)^α)                                                                Eq. (9)
    G ← G + g²,   θ ← θ - η g / √G     AdaGrad (Duchi et al. 2011), for each number θ with gradient g; G starts at 1

The vector of word i is w_i + w̃_i (§4.2).

Differs from the paper: x_max is 1, not 100, which suits corpora of 10⁹ words and more; in 17 million, most words that
belong together meet a few times. Differs from the published program: it steps after each pair, in random order; here a
step takes all pairs of a block of rows and a block of columns, whose gradients are three dense products, blocks in
random order.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1_000_000  # words whose pairs are counted together
BLOCK = 256  # words in a block of GloVe's training: with larger ones a word's vector moves too seldom


class Pairs(NamedTuple):
    """X_ij for every pair that occurs, both (i, j) and (j, i), in blocks of BLOCK × BLOCK words."""

    rows: np.ndarray  # uint16 [N]: i within its block
    columns: np.ndarray  # uint16 [N]: j within its block
    count: np.ndarray  # fp32 [N]: X_ij
    blocks: list[tuple[int, int, slice]]  # (block of i, block of j, its pairs)


def count_chunk(ids: np.ndarray, vocab_size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ 1/d of each pair in one text. ids: int64 [M], negative where no word stands, reviews parted by `window` of
    those -> (keys lo·V + hi, sorted; sums)."""
    keys = []
    for d in range(1, window + 1):
        left, right = ids[:-d], ids[d:]
        both = (left >= 0) & (right >= 0)
        left, right = left[both], right[both]
        keys.append((np.minimum(left, right) * vocab_size + np.maximum(left, right)) * (window + 1) + d)
    keys = np.concatenate(keys)
    keys.sort()
    keys, distances = np.divmod(keys, window + 1)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat((1.0 / distances).astype(np.float32), starts)


def merge_counts(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two sorted lists of (keys, sums)."""
    keys, sums = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    order = keys.argsort(kind="stable")
    keys, sums = keys[order], sums[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(sums, starts)


def count_pairs(reviews: Iterable[list[int]], vocab_size: int, window: int = 10, first_word: int = 2) -> Pairs:
    """X_ij over all reviews (lists of ids; ids below `first_word` are no words, but take a place)."""
    levels: list[tuple[np.ndarray, np.ndarray]] = []  # like binary carries: each list is about half of the one before
    gap = [-1] * window
    waiting: list[int] = []

    def add(ids: list[int]) -> None:
        array = np.asarray(ids, dtype=np.int64)
        levels.append(count_chunk(np.where(array < first_word, -1, array), vocab_size, window))
        while len(levels) > 1 and len(levels[-1][0]) * 2 > len(levels[-2][0]):
            levels.append(merge_counts(levels.pop(), levels.pop()))

    for ids in reviews:
        waiting += ids
        waiting += gap
        if len(waiting) >= CHUNK:
            add(waiting)
            waiting = []
    add(waiting + gap)
    while len(levels) > 1:
        levels.append(merge_counts(levels.pop(), levels.pop()))
    return into_blocks(*levels[0], vocab_size)


def into_blocks(keys: np.ndarray, sums: np.ndarray, vocab_size: int) -> Pairs:
    low, high = (part.astype(np.int32) for part in np.divmod(keys, vocab_size))
    same = low == high
    i = np.concatenate([low, high[~same]])
    j = np.concatenate([high, low[~same]])
    x = np.concatenate([np.where(same, 2 * sums, sums), sums[~same]])  # i beside i: once from each side
    across = -(-vocab_size // BLOCK)
    block = i // BLOCK * across + j // BLOCK
    order = block.argsort(kind="stable")
    ends = np.bincount(block, minlength=across * across).cumsum()
    blocks = [(k // across, k % across, slice(int(end - size), int(end))) for k, (end, size) in
              enumerate(zip(ends, np.diff(ends, prepend=0), strict=True)) if size]  # fmt: skip
    return Pairs((i % BLOCK).astype(np.uint16)[order], (j % BLOCK).astype(np.uint16)[order], x[order], blocks)


def weight(x: Tensor, x_max: float, alpha: float) -> Tensor:
    """f of Eq. (9)."""
    return (x / x_max).pow(alpha).clamp(max=1)


class Glove:
    """w, w̃ as vectors[0], vectors[1] [V, D] and b, b̃ as biases[0], biases[1] [V], each with its sum of squares G."""

    def __init__(self, vocab_size: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vectors = [(torch.rand(vocab_size, width, generator=generator) - 0.5) / width for _ in range(2)]
        self.biases = [torch.zeros(vocab_size) for _ in range(2)]
        self.squares = [torch.ones_like(t) for t in (*self.vectors, *self.biases)]

    def step(self, rows: slice, columns: slice, i: Tensor, j: Tensor, x: Tensor, rate: float, f: Tensor) -> float:
        """AdaGrad on the pairs (rows.start + i, columns.start + j) with counts x and weights f. Returns their part of
        J before the step."""
        (w, c), (b, d) = self.vectors, self.biases
        w_r, c_c = w[rows], c[columns]
        place = i * len(c_c) + j
        error = (w_r @ c_c.T).flatten()[place] + b[rows][i] + d[columns][j] - x.log()  # [n]
        slope = torch.zeros(len(w_r) * len(c_c))
        slope[place] = f * error  # half of ∂J/∂(wᵀw̃ + b + b̃): the published program leaves out the 2 as well
        slope = slope.view(len(w_r), len(c_c))
        gradients = (slope @ c_c, slope.T @ w_r, slope.sum(1), slope.sum(0))
        parts = (w_r, c_c, b[rows], d[columns])
        for theta, g, total, part in zip(parts, gradients, self.squares, (rows, columns) * 2, strict=True):
            total[part].addcmul_(g, g)
            theta.addcdiv_(g, total[part].sqrt(), value=-rate)
        return float((f * error * error).sum())


def train_glove(
    pairs: Pairs,
    vocab_size: int,
    width: int = 300,
    epochs: int = 25,
    rate: float = 0.07,
    x_max: float = 1.0,
    alpha: float = 0.75,
    seed: int = 42,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Tensor:
    """w + w̃ of every word, fp32 [V, D]. report(epoch, J over the number of pairs) is called after each epoch."""
    glove, generator = Glove(vocab_size, width, seed), torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        loss = 0.0
        for number in torch.randperm(len(pairs.blocks), generator=generator).tolist():
            row, column, part = pairs.blocks[number]
            rows, columns = (slice(k * BLOCK, min((k + 1) * BLOCK, vocab_size)) for k in (row, column))
            i, j = (torch.from_numpy(array[part].astype(np.int64)) for array in (pairs.rows, pairs.columns))
            x = torch.from_numpy(pairs.count[part])
            loss += glove.step(rows, columns, i, j, x, rate, weight(x, x_max, alpha))
        report(epoch + 1, loss / len(pairs.count))
    return glove.vectors[0] + glove.vectors[1]
