"""Attention on a CPU, computed block by block, so that the scores Z of a block stay in the cache. A block is some heads
of some reviews.

    Z = q kᵀ + c2p + p2c + bias,   A = softmax(Z),   Ã = m ∘ A / (1 - p),   o = Ã v;   q and q_r are already scaled

    c2p[t, s] = q[t]·k_r[T - 1 - t + s],   p2c[t, s] = k[s]·q_r[S - 1 - s + t]             the terms of nn/deberta.py

Backward, with g = ∂L/∂o and Δ_t = g_t·o_t = Σ_s Ã_ts (g vᵀ)_ts (Dao et al. 2022, arXiv 2205.14135, App. B.2):

    ∂L/∂v = Ãᵀ g,   ∂L/∂Z = Ã ∘ (g vᵀ) - A Δ,   ∂L/∂q = ∂L/∂Z k + …,   ∂L/∂k = ∂L/∂Zᵀ q + …

A and the dropout mask m, one byte per element, are stored for the backward pass, which computes m ∘ A again. Outside a
block, no other tensor has T · S elements for each head. The relative terms of n consecutive queries need S + n - 1
columns of q k_rᵀ, from which a view selects n · S scores (`skew`).

The plain forms are `attention` in nn/attention.py and, for the terms, `position_scores` in nn/deberta.py. Values and
gradients are equal up to rounding (tests/test_block_attention.py).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nn.autocast import product_dtype, wide
from nn.dropout import LEVELS, Dropout, keep_bits, masked
from nn.first_order import first_order
from nn.onednn import current_library, same_library

BLOCK = 2**20  # scores in a block, unless one head of one review has more
ROWS = 128  # rows of a relative term that are computed together

# rows of K_r or Q_r, [H, N, K]; None for a term that is not used. Here one row for each distance, N = T + S - 1: of k_r
# for T - 1 … 1 - S, of q_r for 1 - S … T - 1
Rows = Tensor | None


class Block(NamedTuple):
    """A block: some reviews and some of their heads."""

    reviews: slice
    heads: slice

    def of(self, x: Tensor) -> Tensor:
        """Selects the block and makes it contiguous. [B, H, T, K] -> [b, h, T, K]"""
        return x[self.reviews, self.heads].contiguous()

    def rows(self, table: Rows) -> Rows:
        """Selects the heads of the block. [H, N, K] -> [h, N, K]"""
        return None if table is None else table[self.heads]


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 0 where `mask` is True and half of the lowest number of `dtype` elsewhere, to be added to scores.

    With the lowest number, a negative score would overflow to -inf in fp16, and a fully masked row would be NaN.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min / 2)


def split_into_blocks(batch: int, heads: int, scores: int) -> Iterator[Block]:
    """Yields the blocks: some heads of all reviews, or one head of some reviews. scores: T · S, of one head."""
    if not batch or not scores:
        return
    pairs = max(1, BLOCK // scores)
    reviews, width = min(batch, pairs), max(1, pairs // batch)
    for head in range(0, heads, width):
        for first in range(0, batch, reviews):
            yield Block(slice(first, first + reviews), slice(head, head + width))


# --------------------------------------------------------------------------------------------------- relative terms


def skew(x: Tensor) -> Tensor:
    """Shifts row t by T - 1 - t columns: y[t, s] = x[t, T - 1 - t + s] (Huang et al. 2018, arXiv 1809.04281, §3.4).

    The result is a view whose rows are one element closer together than the rows of x.
    x: [B, H, T, T + S - 1], contiguous -> [B, H, T, S]
    """
    batch, heads, rows, width = x.shape
    strides = (heads * rows * width, rows * width, width - 1, 1)
    return x.as_strided((batch, heads, rows, width - rows + 1), strides, x.storage_offset() + rows - 1)


def bands(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Yields at most ROWS of T rows at a time, and the rows of the table that their products with S columns need."""
    for first in range(0, rows, ROWS):
        last = min(first + ROWS, rows)
        yield slice(first, last), slice(rows - last, rows - first + columns - 1)


def shifted_products(x: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Computes y[t, s] = x[t]·table[T - 1 - t + s]. x: [b, h, T, K];  table: [h, T + S - 1, K]

    Yields slices of rows with their y, [b, h, rows, S].
    """
    for rows, needed in bands(x.size(2), columns=table.size(1) - x.size(2) + 1):
        band = x[:, :, rows].transpose(0, 1)  # [h, b, rows, K]
        y = band.flatten(1, 2) @ table[:, needed].transpose(1, 2)  # [h, b · rows, S + rows - 1]
        yield rows, skew(y.unflatten(1, band.shape[1:3])).transpose(0, 1)


def shifted_gradients(g: Tensor, x: Tensor, table: Tensor, dx: Tensor | None, dtable: Rows) -> None:
    """Adds the gradients of `shifted_products` to dx and dtable, unless they are None.

    g: ∂L/∂y, [b, h, T, S];  dx: like x;  dtable: like table, in fp32 or wider
    """
    for rows, needed in bands(x.size(2), columns=g.size(3)):
        band = x[:, :, rows].transpose(0, 1)  # [h, b, rows, K]
        skewed = g.new_zeros(*band.shape[:3], needed.stop - needed.start)  # [h, b, rows, S + rows - 1]
        skew(skewed).copy_(g[:, :, rows].transpose(0, 1))
        skewed = skewed.flatten(1, 2)  # [h, b · rows, S + rows - 1]
        if dx is not None:
            dx[:, :, rows] += (skewed @ table[:, needed]).unflatten(1, band.shape[1:3]).transpose(0, 1)
        if dtable is not None:
            # skewedᵀ band, with the smaller factor transposed, because torch copies that one
            dtable[:, needed] += (band.flatten(1, 2).transpose(1, 2) @ skewed).transpose(1, 2)


def scores_of(q: Tensor, k: Tensor, k_r: Rows, q_r: Rows, prefix: int) -> Tensor:
    """Computes Z of a block without the bias. prefix: number P of the first keys, which have no position.

    q: [b, h, T, K];  k: [b, h, P + S, K] -> [b, h, T, P + S]
    """
    scores = q @ k.transpose(-1, -2)  # [b, h, T, P + S]
    relative = scores[..., prefix:]  # [b, h, T, S]
    if k_r is not None:
        for rows, term in shifted_products(q, k_r):
            relative[:, :, rows] += term
    if q_r is not None:
        for keys, term in shifted_products(k[:, :, prefix:], q_r):
            relative[..., keys] += term.transpose(-1, -2).contiguous()  # adding a transposed view is slow
    return scores


def gradients_of_scores(
    g: Tensor, q: Tensor, k: Tensor, tables: tuple[Rows, Rows], prefix: int, sums: tuple[Rows, Rows], needs: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Computes the gradients of `scores_of`.

    g: ∂L/∂Z, [b, h, T, P + S];  tables: k_r and q_r;  sums: their gradients, added to, or None if they are not needed;
    needs: whether those of q and k are needed. Returns ∂L/∂q, like q, and ∂L/∂k, like k, or None.
    """
    dq = g @ k if needs[0] else None
    dk = g.transpose(-1, -2) @ q if needs[1] else None
    (k_r, q_r), (dk_r, dq_r), relative = tables, sums, g[..., prefix:]
    if k_r is not None and (dq is not None or dk_r is not None):
        shifted_gradients(relative, q, k_r, dx=dq, dtable=dk_r)
    if q_r is not None and (dk is not None or dq_r is not None):
        dx = None if dk is None else dk[:, :, prefix:]
        shifted_gradients(relative.transpose(-1, -2), k[:, :, prefix:], q_r, dx=dx, dtable=dq_r)
    return dq, dk


# ------------------------------------------------------------------------------------------------------- attention


def transposed_like(x: Tensor) -> Tensor:
    """Allocates a tensor like x: [B, H, T, K], a view of [B, T, H, K], so that merging the heads copies nothing."""
    return x.new_empty(x.size(0), x.size(2), x.size(1), x.size(3)).transpose(1, 2)


class BlockAttention(torch.autograd.Function):
    """o of the module docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_r: Rows,
        q_r: Rows,
        bias: Tensor | None,
        prefix: int,
        threshold: int,
        stores: bool,
    ) -> Tensor:
        """q: [B, H, T, K];  k, v: [B, H, P + S, K];  bias: [B, 1, 1 or T, P + S];  prefix: P;  threshold: of
        `keep_bits`, or 0;  stores: whether to store what the backward pass needs -> [B, H, T, K]"""
        out, stored = transposed_like(q), []
        mask = keep_bits(torch.Size([*q.shape[:3], k.size(2)]), threshold) if threshold else None
        for block in split_into_blocks(q.size(0), q.size(1), scores=q.size(2) * k.size(2)):
            scores = scores_of(block.of(q), block.of(k), block.rows(k_r), block.rows(q_r), prefix=prefix)
            if bias is not None:
                scores += bias[block.reviews]
            weights = scores.softmax(-1)  # A, [b, h, T, P + S]
            kept = weights if mask is None else masked(weights, mask[block.reviews, block.heads])  # m ∘ A
            out[block.reviews, block.heads] = kept @ block.of(v)
            if stores:
                stored.append(weights)
        out *= LEVELS / (LEVELS - threshold)  # 1 / (1 - p), on the smaller tensor
        ctx.prefix, ctx.threshold = prefix, threshold
        # with several threads MKL is faster for the gradients, because it divides a batch among them
        ctx.library = current_library() if torch.get_num_threads() == 1 else nullcontext()
        ctx.save_for_backward(q, k, v, k_r, q_r, out, mask, *stored)
        return out

    @staticmethod
    @first_order
    @same_library
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """g: ∂L/∂o, [B, H, T, K]"""
        q, k, v, k_r, q_r, out, mask, *stored = ctx.saved_tensors
        delta = (g.to(wide(g.dtype)) * out).sum(-1, keepdim=True).to(g.dtype)  # Δ, [B, H, T, 1]
        g = g * (LEVELS / (LEVELS - ctx.threshold))
        needs = ctx.needs_input_grad  # False for tensors that depend on frozen weights only
        dq, dk, dv = (transposed_like(x) if need else None for x, need in zip((q, k, v), needs[:3], strict=True))
        sums = tuple(
            torch.zeros_like(r, dtype=wide(r.dtype)) if need else None
            for r, need in zip((k_r, q_r), needs[3:5], strict=True)
        )
        blocks = split_into_blocks(q.size(0), q.size(1), scores=q.size(2) * k.size(2))
        for block, weights in zip(blocks, stored, strict=True):
            kept = weights if mask is None else masked(weights, mask[block.reviews, block.heads])
            dout = block.of(g)
            if dv is not None:
                dv[block.reviews, block.heads] = kept.transpose(-1, -2) @ dout
            dz = (dout @ block.of(v).transpose(-1, -2)).mul_(kept).addcmul_(weights, block.of(delta), value=-1)  # ∂L/∂Z
            found = gradients_of_scores(
                dz,
                block.of(q),
                block.of(k),
                tables=(block.rows(k_r), block.rows(q_r)),
                prefix=ctx.prefix,
                sums=(block.rows(sums[0]), block.rows(sums[1])),
                needs=needs[:2],
            )
            for whole, gradient in zip((dq, dk), found, strict=True):
                if whole is not None and gradient is not None:
                    whole[block.reviews, block.heads] = gradient
        return dq, dk, dv, *(r if r is None else r.to(q.dtype) for r in sums), None, None, None, None


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    dropout: Dropout,
    k_r: Rows = None,
    q_r: Rows = None,
    prefix: int = 0,
) -> Tensor:
    """Computes o of the module docstring; under autocast in its dtype.

    q: [B, H, T, K], scaled;  k, v: [B, H, P + S, K];  mask: bool [B, 1, 1 or T, P + S];  k_r, q_r: [H, T + S - 1, K];
    prefix: number P of the first keys, which have no relative terms -> [B, H, T, K]
    """
    if not q.size(2) * k.size(2):
        return q @ k.transpose(-1, -2) @ v  # no scores: zeros, with gradients of 0
    threshold = dropout.threshold if dropout.active else 0
    stores = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, k_r, q_r))
    dtype = product_dtype(q)
    bias = None if mask.all() else mask_bias(mask, dtype)
    tensors = (None if x is None else x.to(dtype) for x in (q, k, v, k_r, q_r))
    with torch.autocast(q.device.type, enabled=False):
        return BlockAttention.apply(*tensors, bias, prefix, threshold, stores)
