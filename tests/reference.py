"""The plain forms that tests hold the project against: loops written straight from the equations, in float64."""

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Vaswani et al. 2017, Eq. (1). q: [B, H, T, K];  k, v: [B, H, S, K];  mask: [B, S]."""
    batch, heads, tokens, width = q.shape
    rows = []
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                scores = [(q[b, h, t] * k[b, h, s]).sum() / math.sqrt(width) for s in range(k.size(2)) if mask[b, s]]
                seen = [v[b, h, s] for s in range(k.size(2)) if mask[b, s]]
                powers = [score.exp() for score in scores]
                rows.append(sum(p * value for p, value in zip(powers, seen, strict=True)) / sum(powers))
    return torch.stack(rows).view(batch, heads, tokens, v.size(-1))


def bucket(distance: int, buckets: int, max_position: int) -> int:
    """DeBERTa-v2's log-spaced bucket of a relative distance."""
    middle = buckets // 2
    if abs(distance) <= middle:
        return distance
    ratio = math.log(abs(distance) / middle) / math.log((max_position - 1) / middle)
    return int(math.copysign(math.ceil(ratio * (middle - 1)) + middle, distance))


def disentangled_attention(
    x: Tensor, table: Tensor, weights: dict[str, tuple[Tensor, Tensor]], heads: int, mask: Tensor, span: int, limit: int
) -> Tensor:
    """He et al. 2021, Eq. (4), by loops over queries and keys. x: [B, T, D];  table: [2s, D];  mask: [B, T];
    weights: query, key, value, output -> (W [out, in], b). Buckets of `span`, distances up to `limit`."""

    def project(name: str, y: Tensor) -> Tensor:
        w, b = weights[name]
        return (w @ y + b).view(heads, -1)  # [H, K]

    batch, tokens, _ = x.shape
    out = []
    for b in range(batch):
        q, k, v = ([project(name, x[b, t]) for t in range(tokens)] for name in ("query", "key", "value"))
        for i in range(tokens):
            context = []
            for h in range(heads):
                scores, values = [], []
                for j in range(tokens):
                    if not mask[b, j]:
                        continue
                    row = min(max(bucket(i - j, span, limit) + span, 0), 2 * span - 1)
                    k_r, q_r = project("key", table[row])[h], project("query", table[row])[h]
                    c2c, c2p, p2c = q[i][h] @ k[j][h], q[i][h] @ k_r, k[j][h] @ q_r
                    scores.append((c2c + c2p + p2c) / math.sqrt(3 * len(k_r)))
                    values.append(v[j][h])
                p = torch.stack(scores).softmax(0)
                context.append(sum(p_j * v_j for p_j, v_j in zip(p, values, strict=True)))
            w, bias = weights["output"]
            out.append(w @ torch.cat(context) + bias)
    return torch.stack(out).view(batch, tokens, -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x: [..., D]"""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Szegedy et al. 2016, §7, by loops."""
    total = logits.new_zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = row.exp() / row.exp().sum()
        for c in range(len(row)):
            q = (1 - smoothing) * (c == label) + smoothing / len(row)
            total = total - q * p[c].log()
    return total / len(labels)
