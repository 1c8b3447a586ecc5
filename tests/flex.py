"""Disentangled attention by torch's FlexAttention: a second opinion on nn/triton_attention.py, in tests and benchmarks.

FlexAttention (Dong et al. 2024, arXiv 2412.05496) compiles a function of the score and the position of a pair into its
kernel. The relative terms are read from products with all rows of the tables, [B, H, T, N], which it cannot compute by
itself. It has no dropout.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


@cache
def compiled() -> Callable[..., Tensor]:
    """Returns FlexAttention as one compiled kernel. Uncompiled, torch computes it with a [T, S] matrix."""
    return torch.compile(flex_attention, dynamic=False)


def flex_disentangled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_r: Tensor,
    q_r: Tensor,
    index: Tensor,
    mask: Tensor,
    num_prefix: int = 0,
    attend: Callable[..., Tensor] = flex_attention,
) -> Tensor:
    """Computes `nn.triton_attention.disentangled_attention` without dropout. Same arguments and result."""
    c2p = q @ k_r.transpose(-1, -2)  # [B, H, T, N]
    p2c = k @ q_r.transpose(-1, -2)  # [B, H, P + S, N]
    num_queries = q.size(2)

    def add_relative(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Returns A[t,s] from q[t]·k[s]; -inf at a masked key."""
        distance = t - torch.clamp(s - num_prefix, min=0)
        row = index[num_queries - 1 - distance]
        relative = torch.where(s >= num_prefix, c2p[b, h, t, row] + p2c[b, h, s, row], 0.0)
        return torch.where(mask[b, s], score + relative, -float("inf"))

    return attend(q, k, v, score_mod=add_relative, scale=1.0)
