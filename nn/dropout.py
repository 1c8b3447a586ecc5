"""Inverted dropout (Srivastava et al. 2014, JMLR 15, §4 and §10).

    y = x · m / (1 - p),   m_i ~ Bernoulli(1 - p) independently,   so that E[y] = x

On a CPU, torch's `bernoulli_` takes about 8 ns per element, which makes dropout 40 % of a fine-tuning step. Here the
mask is computed from random bytes at a fraction of that cost: one 64-bit random number gives the mask of eight
elements. numpy's SFC64 (Doty-Humphrey 2010, PractRand) draws such numbers 1.5 × faster than torch's Mersenne Twister;
its seed comes from torch's default generator, or from the generator of the thread (`mask_generator`).

Differs from the paper: on a CPU, p is rounded to the nearest of 1/256 … 255/256. The scale uses the rounded p, so the
expectation is exact; the drop rate is off by at most 1/512 for p in [1/512, 511/512].
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from nn.tracing import is_traced

LEVELS = 256  # number of values of one random byte
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Source(threading.local):
    """The generator from which the masks of this thread are drawn on a CPU; None: torch's default generator."""

    generator: torch.Generator | None = None


SOURCE = Source()


@contextmanager
def mask_generator(generator: torch.Generator | None) -> Iterator[None]:
    """Sets the generator of this thread in a block.

    The order in which threads draw from the default generator is a matter of chance. With generators of their own,
    their masks do not depend on it.
    """
    before, SOURCE.generator = SOURCE.generator, generator
    try:
        yield
    finally:
        SOURCE.generator = before


def keep_bits(shape: torch.Size, threshold: int) -> Tensor:
    """Draws m on the CPU: int8 of `shape`, -1 (all bits are 1) with probability 1 - threshold/256, else 0.

    threshold: 1 … 255. Integer arithmetic on bytes is several times faster here than a comparison that returns bool.
    torch cannot compile or trace numpy's generator. Such a model draws from torch's generator instead.
    """
    if torch.compiler.is_compiling() or is_traced():
        return (torch.rand(shape) >= threshold / LEVELS).to(torch.int8).neg()
    count, seed = shape.numel(), int(torch.randint(2**63 - 1, (), generator=SOURCE.generator))
    words = torch.from_numpy(np.random.SFC64(seed).random_raw(max(1, (count + 7) // 8)))
    dropped = LEVELS - threshold  # the smallest byte that drops its element
    kept = words.view(torch.uint8)[:count].clamp_(dropped - 1, dropped).sub_(dropped)  # 255 or 0
    return kept.view(torch.int8).view(shape)


def keep_mask(shape: torch.Size, threshold: int) -> Tensor:
    """Draws m as `keep_bits` does: uint8, 1 or 0."""
    return keep_bits(shape, threshold).neg_().view(torch.uint8)


def masked(x: Tensor, bits: Tensor) -> Tensor:
    """Computes x · m without gradients: the bitwise and, in the memory of the widened mask.

    Multiplication by an int8 tensor is slower: torch converts the mask, and writes the product to a third tensor.
    bits: of `keep_bits`
    """
    integer = INTEGERS[x.element_size()]
    return bits.to(integer).bitwise_and_(x.view(integer)).view(x.dtype)


def check_rate(p: float) -> float:
    """Returns p. Raises ValueError if it is outside [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout {p} is outside [0, 1)")
    return p


class Dropout(Module):
    """y = x · m / (1 - p) in training mode, y = x in evaluation mode.

    p: probability of dropping an element, 0 <= p < 1. The seed of the mask is drawn from a generator of torch, so the
    seed of a run determines the mask and activation checkpointing reproduces it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_rate(p)

    @property
    def active(self) -> bool:
        """Returns whether forward changes its input."""
        return self.training and self.p > 0

    @property
    def threshold(self) -> int:
        """p in units of 1/256, rounded, 1 … 255."""
        return min(LEVELS - 1, max(1, round(self.p * LEVELS)))

    def mask(self, x: Tensor) -> tuple[Tensor, float]:
        """Draws m for a caller that applies it itself. Returns m (uint8, shape of x) and p, rounded on a CPU."""
        if x.device.type != "cpu":
            return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1 - self.p), self.p
        return keep_mask(x.shape, self.threshold), self.threshold / LEVELS

    def mask_unscaled(self, x: Tensor) -> tuple[Tensor, float]:
        """Returns x · m and the scale 1 / (1 - p), for a caller that applies the scale to a smaller tensor than x.

        On devices other than the CPU, one kernel does both: the first result is y, and the scale is 1.
        """
        if not self.active:
            return x, 1.0
        if x.device.type != "cpu":
            return F.dropout(x, self.p), 1.0
        return x * keep_mask(x.shape, self.threshold), LEVELS / (LEVELS - self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> y, same shape"""
        y, scale = self.mask_unscaled(x)
        return y if scale == 1 else y.mul_(scale)

    def extra_repr(self) -> str:
        """Returns what torch prints for this layer."""
        return f"p={self.p}"


def set_dropout(model: Module, p: float, skip: Iterable[Module] = ()) -> None:
    """Sets the rate of every Dropout in `model` to p, except within the modules `skip`.

    Raises ValueError if p is outside [0, 1).
    """
    skipped = {id(module) for part in skip for module in part.modules()}
    for module in model.modules():
        if isinstance(module, Dropout) and id(module) not in skipped:
            module.p = check_rate(p)
