"""Trains GloVe word vectors (Pennington, Socher & Manning 2014, D14-1162): a weighted least-squares fit of the
logarithms of co-occurrence counts.

    X_ij = Σ 1/d  over all occurrences of i and j at a distance of d <= window words            §3, §4.2
    J = Σ_ij f(X_ij) (w_iᵀ w̃_j + b_i + b̃_j - log X_ij)²                                        Eq. (8)
    f(x) = min(1, (x / x_max)^α),   α = 3/4                                                     Eq. (9)
    G ← G + g²,   θ ← θ - η g / √G     AdaGrad (Duchi et al. 2011) for each number θ;  g = ½ ∂J/∂θ;  G starts at 1

The vector of word i is w_i + w̃_i (§4.2).

Differs from the paper: x_max is 1 instead of 100, η is 0.07 instead of 0.05, and there are 25 epochs instead of 50 or
100. The paper trains on 10⁹ words and more. In 17 million words, most related words co-occur only a few times.
Differs from the published program, which takes a step for each pair, in random order. Here a step takes all pairs of a
block of rows and a block of columns, so that the gradients are dense matrix products. The order of blocks is random.
The program divides by √G before it updates G, to which it adds (η g)².
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1_000_000  # words whose pairs are counted in one call
BLOCK = 256  # words of a block; with larger blocks each vector gets too few updates


class Pairs(NamedTuple):
    """X_ij of every pair that co-occurs, as (i, j) and as (j, i), in blocks of BLOCK × BLOCK words."""

    rows: np.ndarray  # uint16 [N]: i within its block
    columns: np.ndarray  # uint16 [N]: j within its block
    counts: np.ndarray  # fp32 [N]: X_ij
    blocks: list[tuple[int, int, slice]]  # (block of i, block of j, slice of the three arrays)


# -------------------------------------------------------------------------------------------------------- counts

Counts = tuple[np.ndarray, np.ndarray]  # keys lo·V + hi in ascending order, int64 [N]; Σ 1/d of each, fp32 [N]


def count_chunk(ids: np.ndarray, vocab_size: int, window: int) -> Counts:
    """Counts the pairs of one array of word ids, int64 [M].

    Negative ids mark positions without a word. At least `window` of them separate two reviews.
    """
    parts = []
    for d in range(1, window + 1):
        left, right = ids[:-d], ids[d:]
        both = (left >= 0) & (right >= 0)
        left, right = left[both], right[both]
        parts.append((np.minimum(left, right) * vocab_size + np.maximum(left, right)) * (window + 1) + d)
    keys = np.concatenate(parts)
    keys.sort()
    keys, distances = np.divmod(keys, window + 1)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat((1.0 / distances).astype(np.float32), starts)


def merge_counts(a: Counts, b: Counts) -> Counts:
    """Adds two counts."""
    keys, sums = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    order = keys.argsort(kind="stable")
    keys, sums = keys[order], sums[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(sums, starts)


def merge_small(levels: list[Counts], all_levels: bool = False) -> None:
    """Merges the last two counts, in place, until the last has at most half the length of the one before it.

    The total cost of counting is then O(N log N). all_levels: merge until one is left.
    """
    while len(levels) > 1 and (all_levels or len(levels[-1][0]) * 2 > len(levels[-2][0])):
        levels.append(merge_counts(levels.pop(), levels.pop()))


def count_pairs(reviews: Iterable[list[int]], vocab_size: int, window: int = 10, first_word: int = 2) -> Pairs:
    """Computes X_ij over all reviews, lists of word ids.

    Ids below `first_word` (padding, unknown) are not counted, but take a position in the distance.
    """
    levels: list[Counts] = []
    gap = [-1] * window
    waiting: list[int] = []

    def count(ids: list[int]) -> None:
        array = np.asarray(ids, dtype=np.int64)
        levels.append(count_chunk(np.where(array < first_word, -1, array), vocab_size=vocab_size, window=window))
        merge_small(levels)

    for ids in reviews:
        waiting += ids
        waiting += gap
        if len(waiting) >= CHUNK:
            count(waiting)
            waiting = []
    count(waiting + gap)
    merge_small(levels, all_levels=True)
    return into_blocks(levels[0], vocab_size)


def into_blocks(counts: Counts, vocab_size: int) -> Pairs:
    """Converts counts of unordered pairs into both ordered pairs, sorted by block."""
    keys, sums = counts
    low, high = (half.astype(np.int32) for half in np.divmod(keys, vocab_size))
    same = low == high
    i = np.concatenate([low, high[~same]])
    j = np.concatenate([high, low[~same]])
    x = np.concatenate([np.where(same, 2 * sums, sums), sums[~same]])  # i next to i counts from both sides
    across = -(-vocab_size // BLOCK)
    block = i // BLOCK * across + j // BLOCK
    order = block.argsort(kind="stable")
    sizes = np.bincount(block, minlength=across * across)
    blocks = [
        (*divmod(number, across), slice(end - size, end))
        for number, (end, size) in enumerate(zip(sizes.cumsum().tolist(), sizes.tolist(), strict=True))
        if size
    ]
    rows, columns = ((ids % BLOCK).astype(np.uint16)[order] for ids in (i, j))
    return Pairs(rows=rows, columns=columns, counts=x[order], blocks=blocks)


# ------------------------------------------------------------------------------------------------------ training


def weight(x: Tensor, x_max: float, alpha: float) -> Tensor:
    """Computes f(x), Eq. (9)."""
    return (x / x_max).pow(alpha).clamp(max=1)


class Glove:
    """The parameters of Eq. (8), each with its sum of squared gradients G.

    w, w̃ -> vectors[0], vectors[1] [V, D];  b, b̃ -> biases[0], biases[1] [V];  G -> squares, in the same order
    """

    def __init__(self, vocab_size: int, width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vectors = [(torch.rand(vocab_size, width, generator=generator) - 0.5) / width for _ in range(2)]
        self.biases = [torch.zeros(vocab_size) for _ in range(2)]
        self.squares = [torch.ones_like(t) for t in (*self.vectors, *self.biases)]

    def step(self, rows: slice, columns: slice, i: Tensor, j: Tensor, x: Tensor, f: Tensor, rate: float) -> float:
        """Takes an AdaGrad step on the pairs (rows.start + i, columns.start + j). Returns their sum in J before it.

        i, j: int64 [n];  x: counts fp32 [n];  f: weights fp32 [n];  rate -> η
        """
        (w, c), (b, d) = self.vectors, self.biases
        w_r, c_c = w[rows], c[columns]  # [R, D], [C, D]
        at = i * len(c_c) + j
        error = (w_r @ c_c.T).flatten()[at] + b[rows][i] + d[columns][j] - x.log()  # [n]
        slope = torch.zeros(len(w_r) * len(c_c))
        slope[at] = f * error  # half of ∂J/∂(wᵀw̃ + b + b̃): the published program omits the 2 as well
        slope = slope.view(len(w_r), len(c_c))  # [R, C]
        gradients = (slope @ c_c, slope.T @ w_r, slope.sum(1), slope.sum(0))
        parameters = (w_r, c_c, b[rows], d[columns])
        for theta, g, squares, span in zip(parameters, gradients, self.squares, (rows, columns) * 2, strict=True):
            squares[span].addcmul_(g, g)
            theta.addcdiv_(g, squares[span].sqrt(), value=-rate)
        return float((f * error * error).sum())


def train_glove(
    pairs: Pairs,
    vocab_size: int,
    *,
    width: int = 300,
    epochs: int = 25,
    rate: float = 0.07,
    x_max: float = 1.0,
    alpha: float = 0.75,
    seed: int = 42,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Tensor:
    """Trains w + w̃ of every word: fp32 [V, D]. width -> D, rate -> η.

    report(epoch, J divided by the number of pairs) is called after each epoch.
    """
    glove, generator = Glove(vocab_size, width=width, seed=seed), torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        loss = 0.0
        for number in torch.randperm(len(pairs.blocks), generator=generator).tolist():
            row, column, span = pairs.blocks[number]
            rows, columns = (slice(k * BLOCK, min((k + 1) * BLOCK, vocab_size)) for k in (row, column))
            i, j = (torch.from_numpy(array[span].astype(np.int64)) for array in (pairs.rows, pairs.columns))
            x = torch.from_numpy(pairs.counts[span])
            f = weight(x, x_max=x_max, alpha=alpha)
            loss += glove.step(rows, columns, i=i, j=j, x=x, f=f, rate=rate)
        report(epoch + 1, loss / len(pairs.counts))
    return glove.vectors[0] + glove.vectors[1]
