"""Divergences between the class probabilities of two models or passes, and the entropy.

    p = softmax(logits_p),   q = softmax(logits_q)
    KL(p ‖ q) = Σ_c p_c (log p_c - log q_c)                      Kullback & Leibler 1951
    symmetric:  ½ [KL(p ‖ q) + KL(q ‖ p)] = ½ Σ_c (p_c - q_c)(log p_c - log q_c)
    H(p) = -Σ_c p_c log p_c                                      Shannon 1948

All are computed for each example, in fp32 or wider. A class with p_c = 0 adds 0 to KL(p ‖ q) and to H(p).
"""

import torch.nn.functional as F
from torch import Tensor

from nn.autocast import at_least_fp32


def log_probabilities(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Computes log p and log q. [B, C], [B, C] -> [B, C], [B, C]

    A class that both exclude (logits of -inf) has log p = log q = 0, so that its term p log(p/q) is 0, not NaN. Raises
    ValueError for logits of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"logits {list(first.shape)} and {list(second.shape)} differ")
    log_p, log_q = (F.log_softmax(at_least_fp32(logits), -1) for logits in (first, second))
    excluded = log_p.isneginf() & log_q.isneginf()
    return log_p.masked_fill(excluded, 0), log_q.masked_fill(excluded, 0)


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Computes KL(p ‖ q). logits_p, logits_q: [B, C] -> [B], at least 0 up to rounding"""
    log_p, log_q = log_probabilities(logits_p, logits_q)
    ratios = (log_p - log_q).masked_fill(log_p.isneginf(), 0)  # before the product: its gradient would be 0 · ∞
    return (log_p.exp() * ratios).sum(-1)


def symmetric_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Computes ½ [KL(p ‖ q) + KL(q ‖ p)]. logits_p, logits_q: [B, C] -> [B], at least 0"""
    log_p, log_q = log_probabilities(logits_p, logits_q)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Computes H(p). logits: [B, C] -> [B]"""
    log_p = F.log_softmax(at_least_fp32(logits), -1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)
