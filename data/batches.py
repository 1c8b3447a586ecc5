"""Holds the examples of one forward pass, on one rank or on several."""

from typing import NamedTuple

import torch
from torch import Tensor


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
        """Copies all tensors to a device. CUDA copies from pinned memory, so that the CPU does not wait for it."""
        cuda = device.type == "cuda"

        def copy(x: Tensor) -> Tensor:
            """Copies one tensor."""
            return (x.pin_memory() if cuda and not x.is_cuda else x).to(device, non_blocking=cuda)

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
        """Computes this rank's part of a mean over some elements. counted: these elements, bool [N, T] of all ranks"""
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
        """Returns the rows of this rank, [N, …] -> [B, …]; the first row if it has none."""
        return whole[self.start : self.stop] if self.stop > self.start else whole[:1]
