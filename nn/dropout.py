"""Inverted dropout (Srivastava et al. 2014, JMLR 15, §4 and §10).

    y = x · m / (1 - p),   m_i ~ Bernoulli(1 - p) independently,   so that E[y] = x

torch's `bernoulli_` costs about 8 ns an element on a CPU, which makes dropout 40 % of a fine-tuning step there.
A mask cut from random bytes costs a fraction of that: one 64-bit draw decides eight elements.

Differs from the paper: on CPU p is rounded to the nearest multiple of 1/256, and the scale uses the rounded p, so the
expectation is exact and only the drop rate is off, by at most 1/512.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

LEVELS = 256  # one random byte an element


def keep_mask(shape: torch.Size, threshold: int) -> Tensor:
    """uint8 mask of `shape` on CPU, each element 1 with probability 1 - threshold/256, else 0, from torch's generator.

    threshold: 1 … 255. Integer arithmetic on bytes is several times faster here than a comparison that yields bool.
    """
    count = shape.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    below = threshold - 1
    return words.view(torch.uint8)[:count].clamp_(below, threshold).sub_(below).view(shape)


def checked(p: float) -> float:
    """Raises ValueError where p is no rate of dropout."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout {p} is outside [0, 1)")
    return p


class Dropout(Module):
    """y = x · m / (1 - p) while training, y = x otherwise.

    p: probability of dropping an element, 0 <= p < 1. The mask comes from torch's default generator, so a run's seed
    fixes it and activation checkpointing replays it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = checked(p)

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    @property
    def threshold(self) -> int:
        return min(LEVELS - 1, max(1, round(self.p * LEVELS)))

    def mask(self, x: Tensor) -> tuple[Tensor, float]:
        """m as uint8 like x, and p as it is where x lives: for those that apply it themselves."""
        if x.device.type != "cpu":
            return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1 - self.p), self.p
        return keep_mask(x.shape, self.threshold), self.threshold / LEVELS

    def thin(self, x: Tensor) -> tuple[Tensor, float]:
        """x · m, and 1 / (1 - p) for those that would rather scale something smaller than x; a GPU does it at once."""
        if not self.active:
            return x, 1.0
        if x.device.type != "cpu":
            return F.dropout(x, self.p), 1.0
        return x * keep_mask(x.shape, self.threshold), LEVELS / (LEVELS - self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        y, scale = self.thin(x)
        return y if scale == 1 else y.mul_(scale)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_dropout(model: Module, p: float) -> None:
    """The rate of every dropout in `model`, whatever its config says. Raises ValueError."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = checked(p)
