"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, §3.2).

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V                                  Eq. (1); d_k is K in all shapes
    head_h = Attention(x W_q[h], x W_k[h], x W_v[h]),   y = concat(head_1 … head_H) W_o   §3.2.2

                  ┌─ query ── split ──▶ q [B, H, T, K] ──┐
    x [B, S, D] ──┼─ key ──── split ──▶ k [B, H, S, K] ──┼──▶ softmax(q kᵀ / √K) v ── merge ── output ──▶ y [B, T, D]
                  └─ value ── split ──▶ v [B, H, S, K] ──┘         [B, H, T, K]
                             prefix ──▶ k, v [B, H, P, K], concatenated before those of x

    u_t = tanh(W h_t + b),   α_t = softmax_t(u_t·v),   r = Σ_t α_t h_t          additive attention as pooling: Bahdanau
                                                                                 et al. 2015, arXiv 1409.0473, A.1.2;
                                                                                 Yang et al. 2016, N16-1174, Eq. (5)–(7)

A prefix is a pair of P extra keys and values that every query attends to (Li & Liang 2021, arXiv 2101.00190). T is less
than S if only some of the tokens are queries.

Differs from the paper: the projections have biases, and dropout is applied to the attention weights, as in the
published code of BERT.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module

from nn.block_attention import block_attention, mask_bias
from nn.dropout import Dropout
from nn.tracing import is_traced

Prefix = tuple[Tensor, Tensor]  # keys and values, each [B or 1, H, P, K]
Queries = int | Tensor | None  # query positions: the first n, explicit indices (int64 [B, T]), or all


def select_queries(x: Tensor, queries: Queries) -> Tensor:
    """Selects the query positions. [B, S, D] -> [B, T, D]"""
    if isinstance(queries, Tensor):
        return x.gather(1, queries[..., None].expand(-1, -1, x.size(-1)))
    return x[:, :queries]


def check_inputs(input_ids: Tensor, mask: Tensor) -> None:
    """Raises TypeError unless the mask is bool, and ValueError unless both are [B, T] with padding on the right, T > 0.

    The tokenizers of transformers return an int64 mask. A mask of another shape would be broadcast. Padding on the left
    is detected on a CPU only: on a GPU, the check would synchronize.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask is {mask.dtype}, not torch.bool; mask.bool() is True for real tokens")
    if input_ids.dim() != 2 or mask.shape != input_ids.shape:
        raise ValueError(f"the ids are {list(input_ids.shape)} and the mask is {list(mask.shape)}, not both [B, T]")
    if not input_ids.size(1):
        raise ValueError("the texts have no tokens, not even special ones")
    if mask.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        with contextlib.suppress(RuntimeError):  # under torch.func.vmap, a tensor has no truth value
            if (mask[:, 1:] & ~mask[:, :-1]).any():
                raise ValueError("the mask has padding before real tokens; padding is on the right")


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Splits the last dimension into heads. [B, T, H·K] -> [B, H, T, K]"""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenates the heads. [B, H, T, K] -> [B, T, H·K]"""
    return x.transpose(1, 2).flatten(2)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Computes the softmax over the last axis, restricted to the positions where `mask` is True.

    scores: [..., S], overwritten;  mask: bool, broadcasts to scores -> [..., S] in the dtype of scores. The sum is
    computed in fp32 or wider. The weight of a masked position is exactly 0, and a row that is masked everywhere is
    uniform. In fp16, the weight is 0 if all scores are between -16,000 and 16,000, and such a row is finite, not
    uniform, if its scores are above -32,000.
    """
    scores += mask_bias(mask, scores.dtype)
    return scores.softmax(-1).to(scores.dtype)


def weighted_sum(weights: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
    """Computes dropout(weights) v. The dropout scale is applied to v, the smaller tensor.

    weights: [B, H, T, S];  v: [B, H, S, K] -> [B, H, T, K]
    """
    kept, scale = dropout.mask_unscaled(weights)
    return kept @ (v if scale == 1 else v * scale)  # [B, H, T, K]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: Dropout | None = None) -> Tensor:
    """Computes Eq. (1). q: [B, H, T, K];  k, v: [B, H, S, K];  mask: bool [B, 1, 1 or T, S] -> [B, H, T, K]"""
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-1, -2)  # [B, H, T, S]
    weights = masked_softmax(scores, mask)
    return weights @ v if dropout is None else weighted_sum(weights, v, dropout=dropout)  # [B, H, T, K]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Computes `attention` without dropout with torch's fused kernel, which never stores the [T, S] weights.

    For scoring on a CPU, it gets no mask if there is no padding, which is faster.
    """
    scoring = q.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced()
    no_padding = scoring and bool(mask.all())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if no_padding else mask_bias(mask, q.dtype))


def fused_is_faster(q: Tensor) -> bool:
    """Returns whether torch's fused kernel is faster on a CPU than `block_attention`: in fp32 or wider, and, without
    gradients, in bf16 on a CPU with matrix units (Intel, AMX)."""
    if q.dtype == torch.bfloat16:
        return not torch.is_grad_enabled() and torch.cpu._is_amx_tile_supported()
    return q.dtype != torch.float16


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: Dropout) -> Tensor:
    """Computes `attention` in one of its equal forms. Arguments and result: `attention`.

    On a CPU: torch's fused kernel without dropout if it is faster, else `block_attention`, which needs less memory
    (times: tests/bench/attention.py). On other devices: the fused kernel without dropout, `attention` with it.
    """
    if q.device.type == "cpu" and not is_traced() and (dropout.active or not fused_is_faster(q)):
        return block_attention(q / math.sqrt(q.size(-1)), k, v, mask=mask, dropout=dropout)
    if dropout.active:
        return attention(q, k, v, mask=mask, dropout=dropout)
    return fused_attention(q, k, v, mask=mask)


def prepend_prefix(k: Tensor, v: Tensor, mask: Tensor, prefix: Prefix | None) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates the prefix and the keys and values of the tokens. The mask is True for every prefix position.

    k, v: [B, H, S, K];  mask: [B, 1, 1 or T, S] -> k, v: [B, H, P + S, K];  mask: [B, 1, 1 or T, P + S]
    """
    if prefix is None:
        return k, v, mask
    batch = k.size(0)
    prefix_k, prefix_v = (rows.to(k.dtype).expand(batch, -1, -1, -1) for rows in prefix)  # [B, H, P, K]
    visible = mask.new_ones(batch, 1, mask.size(2), prefix_k.size(2))
    return torch.cat([prefix_k, k], 2), torch.cat([prefix_v, v], 2), torch.cat([visible, mask], 3)


class MultiHeadAttention(Module):
    """y = concat(head_1 … head_H) W_o + b_o,   head_h = Attention(x W_q[h], x W_k[h], x W_v[h])

    W_q, W_k, W_v, W_o -> query, key, value, output (each with a bias);  H -> num_heads. Raises ValueError if
    hidden_size is not a multiple of num_heads.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size)
        self.value = Linear(hidden_size, hidden_size)
        self.output = Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes x W_k and x W_v, which a prefix is initialized from. [B, S, D] -> [B, S, H·K] each"""
        return self.key(x), self.value(x)

    def forward(self, x: Tensor, mask: Tensor, prefix: Prefix | None = None, queries: Queries = None) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S], True = real token;  prefix: keys and values [B or 1, H, P, K];
        queries: query positions -> [B, T, D]"""
        q = split_heads(self.query(select_queries(x, queries)), self.num_heads)  # [B, H, T, K]
        k = split_heads(self.key(x), self.num_heads)  # [B, H, S, K]
        v = split_heads(self.value(x), self.num_heads)  # [B, H, S, K]
        k, v, visible = prepend_prefix(k, v, mask=mask[:, None, None, :], prefix=prefix)  # S becomes P + S
        return self.output(merge_heads(attend(q, k, v, mask=visible, dropout=self.dropout)))  # [B, T, D]


class AdditiveAttention(Module):
    """r = Σ_t α_t h_t,   α = softmax over real tokens of v·tanh(W h_t + b);   W -> dense [A, D], v -> query [A].

    Returns α as well, for display.
    """

    def __init__(self, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.dense = Linear(hidden_size, attention_size)
        self.query = Linear(attention_size, 1, bias=False)

    def forward(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """h: [B, T, D];  mask: bool [B, T] -> r [B, D], α [B, T], 0 at padding, uniform in a row without words"""
        scores = self.query(self.dense(h).tanh()).squeeze(-1)  # [B, T]
        weights = masked_softmax(scores.clone(), mask)  # a hook on `query` keeps the layer's output
        return (weights[:, None].to(h.dtype) @ h).squeeze(1), weights  # [B, D], [B, T]
