"""The tensors that ranks exchange: gradients, the features of a contrastive loss, and moments (data/ranks.py).

    g = Σ_r g_r                          all-reduce of the gradients, in buckets of 25 MiB
    F = [f_1; …; f_R],  ∂L/∂f_r = rows of r in ∂L/∂F,  L = Σ_r L(F)/R         features with gradients

R is the number of ranks. A ring all-reduce of n bytes sends 2 (R - 1)/R n bytes from each rank (Patarasuk & Yuan 2009,
JPDC 69, §3).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module, Parameter

from data.batches import Share
from data.ranks import alone, check_others, size
from nn.autocast import at_least_fp32

BUCKET_BYTES = 25 * 2**20  # as in torch's DistributedDataParallel


def broadcast_model(model: Module) -> None:
    """Copies the parameters and buffers of rank 0 to all ranks, in place.

    Other machines may round differently.
    """
    if not alone():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, src=0)


def buckets(parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    """Yields neighbouring parameters of one dtype, at most BUCKET_BYTES together, or one larger parameter."""
    members: list[Parameter] = []
    num_bytes = 0
    for p in parameters:
        fits = num_bytes + p.numel() * p.element_size() <= BUCKET_BYTES
        if members and not (fits and p.dtype == members[0].dtype):
            yield members
            members, num_bytes = [], 0
        members.append(p)
        num_bytes += p.numel() * p.element_size()
    if members:
        yield members


class GradientSum:
    """Replaces gradients with their sums over the ranks, bucket by bucket, in place.

    After `start`, a bucket is sent as soon as the backward pass has computed its gradients, while it computes the
    others (Li et al. 2020, PyTorch Distributed, VLDB 13, §3.2). All ranks send the buckets in one order, from the last
    parameters to the first, as the gradients are computed.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        self.buckets = [] if alone() else list(buckets(parameters[::-1]))
        self.sent: list[tuple[Tensor, dist.Work]] = []
        self.missing: list[int] = []  # for each bucket the number of gradients to come, after `start`
        for number, members in enumerate(self.buckets):
            for p in members:
                p.register_post_accumulate_grad_hook(partial(self.count, number))

    def start(self) -> None:
        """Lets the next backward pass, the last one of a step, send the buckets."""
        self.missing = [len(members) for members in self.buckets]

    def count(self, number: int, _: Tensor) -> None:
        """Notes that a gradient of a bucket is complete, and sends all buckets whose turn it is."""
        if self.missing:
            self.missing[number] -= 1
            while len(self.sent) < len(self.buckets) and not self.missing[len(self.sent)]:
                self.send()

    def send(self) -> None:
        """Sends the next bucket, with a flag for each parameter: 1 if it has a gradient, else 0."""
        members = self.buckets[len(self.sent)]
        has_gradient = members[0].new_tensor([p.grad is not None for p in members])
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in members]
        flat = torch.cat([has_gradient, *gradients])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Sends the other buckets, waits for all, and sets the gradients.

        A gradient that no rank has stays None, so that the optimizer skips that parameter as in one process.
        """
        self.missing = []
        while len(self.sent) < len(self.buckets):
            self.send()
        for members, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            sums = flat[len(members) :].split([p.numel() for p in members])
            for p, exists, total in zip(members, flat[: len(members)].tolist(), sums, strict=True):
                if exists:
                    p.grad = total.view_as(p)
        self.sent = []


class GatherRows(Function):
    """f_r [V, n_r, D] of all ranks -> F [V, N, D].

    Every rank computes the same L(F)/R from F. The gradient of their sum is therefore R times that of one rank, and
    the backward pass exchanges nothing.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, start: int, total: int) -> Tensor:
        """start: first row of this rank;  total: N"""
        ctx.start, ctx.count = start, rows.size(1)
        whole = rows.new_zeros(rows.size(0), total, rows.size(2))  # [V, N, D]
        whole[:, start : start + ctx.count] = rows
        dist.all_reduce(whole)  # of zeros and one rank's rows: exact
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return size() * gradient[:, ctx.start : ctx.start + ctx.count], None, None


def gather_features(features: Tensor, share: Share) -> Tensor:
    """Gathers the features of all ranks, with gradients: fp32 or wider [V n, D] -> [V N, D].

    V views of an example are separate rows, one view after the other. A loss of the result counts 1/size() times on
    each rank. Raises Elsewhere if the step failed on another rank.
    """
    check_others()
    wide = at_least_fp32(features)
    examples, total = max(1, share.stop - share.start), len(share.whole.labels)
    views = wide.unflatten(0, (-1, examples))[:, : share.stop - share.start]  # [V, n, D], n = 0 without rows
    gathered: Tensor = GatherRows.apply(views, share.start, total)
    return gathered.flatten(0, 1)  # [V N, D]


def standard_deviation(values: Tensor, share: Share) -> Tensor:
    """Computes the standard deviation of the values of all ranks, as `Tensor.std`. [n] -> scalar

    A rank without rows adds nothing. Raises Elsewhere if the step failed on another rank.
    """
    check_others()
    wide = values.double() if share.stop > share.start else values[:0].double()
    moments = torch.stack([wide.new_tensor(wide.numel()), wide.sum(), wide.square().sum()])
    dist.all_reduce(moments)
    count, total, squares = moments
    squared_deviations = (squares - total.square() / count).clamp(min=0)  # rounding may make it negative
    return (squared_deviations / (count - 1)).sqrt().to(values.dtype)


def draw_normal(x: Tensor, share: Share) -> Tensor:
    """Draws the rows of this rank of a standard normal tensor that all ranks draw for the whole batch: fp32.

    x: embeddings [B, T, E] -> [B, T, E]
    """
    shape = (*share.whole.input_ids.shape, x.size(-1))
    return share.own(torch.randn(shape, generator=share.generator(x.device), device=x.device))[:, : x.size(1)]
