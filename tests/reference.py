"""The plain forms that tests hold the project against: loops written straight from the equations, in float64."""

import math
from collections.abc import Callable

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


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, weights: list[float]) -> Tensor:
    """Szegedy et al. 2016, §7, by loops. weights: of the classes."""
    total = logits.new_zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = row.exp() / row.exp().sum()
        for c in range(len(row)):
            q = (1 - smoothing) * (c == label) + smoothing / len(row)
            total = total - weights[label] * q * p[c].log()
    return total / len(labels)


def relative_scores(
    q: Tensor, k: Tensor, k_r: Tensor, q_r: Tensor, kinds: tuple[str, ...], span: int, limit: int
) -> Tensor:
    """Computes He et al. 2021, Eq. (4), for one head, pair by pair: the sum of the n terms (content, and c2p or p2c if
    in `kinds`) over √(K·n). q: [T, K];  k: [S, K];  k_r, q_r: [2s, K];  span, limit: s and M -> [T, S]"""
    scores = []
    for i in range(len(q)):
        for j in range(len(k)):
            row = min(max(bucket(i - j, span, limit) + span, 0), 2 * span - 1)
            terms = [q[i] @ k[j]]
            if "c2p" in kinds:
                terms.append(q[i] @ k_r[row])
            if "p2c" in kinds:
                terms.append(k[j] @ q_r[row])
            scores.append(sum(terms) / math.sqrt(q.size(1) * len(terms)))
    return torch.stack(scores).view(len(q), len(k))


def bilstm(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
    """Computes a bidirectional LSTM layer (Hochreiter & Schmidhuber 1997) for one text, gate by gate. x: [T, in];
    weight: [2, 4D, in];  recurrent: [2, 4D, D];  bias: [2, 4D], rows in the order i, f, g, o -> [T, 2D]"""
    directions = []
    for n, order in enumerate((range(len(x)), range(len(x) - 1, -1, -1))):
        w, u, b = weight[n].chunk(4), recurrent[n].chunk(4), bias[n].chunk(4)
        h = c = x.new_zeros(recurrent.size(2))
        states = {}
        for t in order:
            i, f, g, o = (w[k] @ x[t] + u[k] @ h + b[k] for k in range(4))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = states[t] = o.sigmoid() * c.tanh()
        directions.append(torch.stack([states[t] for t in range(len(x))]))
    return torch.cat(directions, 1)


def kl_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Computes KL(P ‖ Q) of each row, class by class. [B, C], [B, C] -> [B]"""
    rows = []
    for a, b in zip(logits_p, logits_q, strict=True):
        p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        rows.append(sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(p))))
    return torch.stack(rows)


def entropy(logits: Tensor) -> Tensor:
    """Computes -Σ p log p of each row, class by class. [B, C] -> [B]"""
    rows = []
    for row in logits:
        p = row.exp() / row.exp().sum()
        rows.append(-sum(p[c] * p[c].log() for c in range(len(p))))
    return torch.stack(rows)


def scale_reviews(direction: Tensor, mask: Tensor, lengths: list[float]) -> Tensor:
    """Scales the real tokens of each review to a given norm; padding becomes 0. direction: [B, T, E];  mask: [B, T]"""
    out = torch.zeros_like(direction)
    for b, length in enumerate(lengths):
        real = direction[b, mask[b]]
        out[b, mask[b]] = real * (length / real.square().sum().sqrt())
    return out


def adversarial_perturbation(
    log_p: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor, lengths: list[float]
) -> Tensor:
    """Miyato et al. 2017, Eq. (5): r = -ε g/‖g‖ with g = ∇ log p(y|s), review by review. x: [B, T, E];  mask: [B, T];
    log_p: embeddings -> log p(y|s), [B];  lengths: ε of each review -> [B, T, E]"""
    s = x.detach().requires_grad_()
    values = log_p(s)
    g = torch.stack([torch.autograd.grad(values[b], s, retain_graph=True)[0][b] for b in range(len(s))])
    return -scale_reviews(g, mask, lengths)


@torch.no_grad()
def virtual_perturbation(
    logits: Callable[[Tensor], Tensor], d: Tensor, mask: Tensor, lengths: list[float], step: float = 1e-4
) -> Tensor:
    """Miyato et al. 2017, Eq. (7), one power iteration: r = ε g/‖g‖ with g = ∇_d KL[p(·|s) ‖ p(·|s + d)], by central
    differences, one coordinate at a time. logits: shift of the embeddings -> [B, C];  d: [B, T, E];  mask: [B, T];
    lengths: ε of each review -> [B, T, E]"""
    clean, g = logits(torch.zeros_like(d)), torch.zeros_like(d)
    for t in range(d.size(1)):
        for e in range(d.size(2)):
            move = torch.zeros_like(d)
            move[:, t, e] = step  # reviews do not influence one another
            ahead, back = (kl_divergence(clean, logits(d + sign * move)) for sign in (1, -1))
            g[:, t, e] = (ahead - back) / (2 * step)
    return scale_reviews(g, mask, lengths)


def bigru(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, recurrent_bias: Tensor) -> Tensor:
    """Computes a bidirectional GRU layer (Cho et al. 2014, Eq. 5–8, with r after U_n) for one text, gate by gate.
    x: [T, in];  weight: [2, 3D, in];  recurrent: [2, 3D, D];  bias: [2, 3D], rows in the order r, z, n;
    recurrent_bias: d_n, [2, D] -> [T, 2D]"""
    directions = []
    for side, order in enumerate((range(len(x)), range(len(x) - 1, -1, -1))):
        w, u, b = weight[side].chunk(3), recurrent[side].chunk(3), bias[side].chunk(3)
        h = x.new_zeros(recurrent.size(2))
        states = {}
        for t in order:
            r, z = ((w[k] @ x[t] + u[k] @ h + b[k]).sigmoid() for k in range(2))
            n = (w[2] @ x[t] + b[2] + r * (u[2] @ h + recurrent_bias[side])).tanh()
            h = states[t] = (1 - z) * n + z * h
        directions.append(torch.stack([states[t] for t in range(len(x))]))
    return torch.cat(directions, 1)


def additive_attention(h: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, query: Tensor) -> Tensor:
    """Computes Yang et al. 2016, Eq. (5)–(7), word by word. h: [B, T, D];  mask: [B, T];  weight: W [A, D];
    bias: b [A];  query: v [A] -> r [B, D]"""
    rows = []
    for b in range(len(h)):
        words = [h[b, t] for t in range(h.size(1)) if mask[b, t]]
        powers = [(query @ (weight @ word + bias).tanh()).exp() for word in words]
        rows.append(sum(power * word for power, word in zip(powers, words, strict=True)) / sum(powers))
    return torch.stack(rows)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes W·[x_t; …; x_{t+k-1}] + b, filter by filter. x: [B, T, E];  weight: [F, k, E];  bias: [F] ->
    [B, T - k + 1, F]"""
    filters, width, _ = weight.shape
    rows = []
    for b in range(len(x)):
        for t in range(x.size(1) - width + 1):
            for f in range(filters):
                rows.append(sum(weight[f, p] @ x[b, t + p] for p in range(width)) + bias[f])
    return torch.stack(rows).view(len(x), -1, filters)


def squash(s: Tensor) -> Tensor:
    """Computes Sabour et al. 2017, Eq. (1), for one vector. s: [K] -> [K]"""
    norm = sum(value * value for value in s).sqrt()
    return norm**2 / (1 + norm**2) * s / norm


def route(u: Tensor, mask: Tensor, iterations: int) -> Tensor:
    """Computes Sabour et al. 2017, Procedure 1, with s_j as a weighted mean, for one pair (t, j) at a time.
    u: û [B, T, J, K];  mask: [B, T] -> v [B, J, K]"""
    rows, capsules = [], range(u.size(2))
    for b in range(len(u)):
        real = [t for t in range(u.size(1)) if mask[b, t]]
        logits = {(t, j): u.new_zeros(()) for t in real for j in capsules}
        for _ in range(iterations):
            c = {}
            for t in real:
                total = sum(logits[t, j].exp() for j in capsules)
                c |= {(t, j): logits[t, j].exp() / total for j in capsules}
            v = [squash(sum(c[t, j] * u[b, t, j] for t in real) / sum(c[t, j] for t in real)) for j in capsules]
            logits = {(t, j): logits[t, j] + u[b, t, j] @ v[j] for t in real for j in capsules}
        rows.append(torch.stack(v))
    return torch.stack(rows)


def rotary(x: Tensor, position: int, base: float) -> Tensor:
    """Rotates the pairs (i, i + K/2) of one vector by position · base^(-2i/K) (Su et al. 2021, Eq. 15). [K] -> [K]"""
    half = len(x) // 2
    first, second = [], []
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        first.append(x[i] * math.cos(angle) - x[i + half] * math.sin(angle))
        second.append(x[i + half] * math.cos(angle) + x[i] * math.sin(angle))
    return torch.stack(first + second)


def rotary_attention(
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    heads: int,
    mask: Tensor,
    base: float,
    reach: float,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Computes ModernBERT's attention without biases, by loops over queries and keys. x: [B, T, D];  mask: [B, T];
    weights: W_q, W_k, W_v in one matrix [3D, D], and W_o [D, D];  reach: the largest visible distance;
    prefix: keys and values [1, H, P, K], not rotated and always visible -> [B, T, D], 0 for a query without a key"""
    batch, tokens, width = x.shape
    rows = []
    for b in range(batch):
        q, k, v = ([(w @ x[b, t]).view(heads, -1) for t in range(tokens)] for w in weights[0].chunk(3))
        for t in range(tokens):
            context = []
            for h in range(heads):
                query, seen = rotary(q[t][h], t, base), [s for s in range(tokens) if mask[b, s] and abs(t - s) <= reach]
                keys, values = [rotary(k[s][h], s, base) for s in seen], [v[s][h] for s in seen]
                if prefix is not None:
                    keys, values = [*prefix[0][0, h], *keys], [*prefix[1][0, h], *values]
                powers = [(query @ key / math.sqrt(width / heads)).exp() for key in keys]
                total = sum((p * value for p, value in zip(powers, values, strict=True)), torch.zeros_like(query))
                context.append(total / sum(powers) if powers else total)
            rows.append(weights[1] @ torch.cat(context))
    return torch.stack(rows).view(batch, tokens, width)


def riemann_gradients(function: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, steps: int) -> Tensor:
    """Integrated gradients by the midpoint rule: [T]. function: [n, T, E] -> [n];  x, baseline: [T, E]"""
    total = torch.zeros(len(x), dtype=torch.float64)
    for part in ((torch.arange(steps) + 0.5) / steps).split(500):
        point = (baseline + part[:, None, None] * (x - baseline)).requires_grad_()
        (g,) = torch.autograd.grad(function(point).sum(), point)
        total += (g * (x - baseline)).sum((0, 2)).double() / steps
    return total


def ia3_linear(x: Tensor, weight: Tensor, bias: Tensor, l: Tensor, scales_input: bool) -> Tensor:
    """l ⊙ (W x + b), or W (l ⊙ x) + b, one element at a time (Liu et al. 2022, §3.3). x: [B, T, in]"""
    y = []
    for row in x.flatten(0, 1):
        for i in range(len(weight)):
            terms = (weight[i, j] * row[j] * (l[j] if scales_input else 1) for j in range(len(row)))
            y.append((sum(terms) + bias[i]) * (1 if scales_input else l[i]))
    return torch.stack(y).unflatten(0, (x.size(0), x.size(1), len(weight)))


def bottleneck(u: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """u + W_up gelu(W_down u + b_down) + b_up, one row at a time (Houlsby et al. 2019, §2.1). u: [N, D]"""
    rows = []
    for row in u:
        z = torch.stack([sum(w[j] * row[j] for j in range(len(row))) + b for w, b in zip(down, down_bias, strict=True)])
        z = z * (1 + torch.erf(z / math.sqrt(2))) / 2  # gelu
        inner = [sum(w[j] * z[j] for j in range(len(z))) + b for w, b in zip(up, up_bias, strict=True)]
        rows.append(row + torch.stack(inner))
    return torch.stack(rows)


def quantize_blocks(x: Tensor, size: int, values: list[float]) -> tuple[Tensor, Tensor]:
    """Index of the value nearest to x / max |x| of its block, element by element, and the maxima (Dettmers et al. 2023,
    Eq. 1). x: [n] -> int64 [n], fp64 [blocks]"""
    indices, maxima = [], []
    for start in range(0, len(x), size):
        block = [float(v) for v in x[start : start + size]]
        maxima.append(max(abs(v) for v in block))
        for v in block:
            distances = [abs(value - v / (maxima[-1] or 1)) for value in values]
            indices.append(distances.index(min(distances)))
    return torch.tensor(indices), torch.tensor(maxima, dtype=torch.float64)


def nf4_weight(w: Tensor, values: list[float], dynamic: list[float]) -> Tensor:
    """W from its 4-bit codes and 8-bit constants, element by element (Dettmers et al. 2023, Eq. 6). w: [N, K]"""
    codes, c = quantize_blocks(w.flatten(), 64, values)
    codes_of_c, s = quantize_blocks(c - c.mean(), 256, dynamic)
    out = []
    for i, code in enumerate(codes.tolist()):
        block = i // 64
        out.append(values[code] * (dynamic[codes_of_c[block]] * s[block // 256] + c.mean()))
    return torch.stack(out).view(w.shape)


def distillation(
    logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, weights: list[float]
) -> Tensor:
    """Hinton et al. 2015, §2, with KL for the soft term. weights: of the classes in the cross-entropy."""
    total = logits.new_zeros(())
    for z, v, label in zip(logits, teacher, labels.tolist(), strict=True):
        p, q = ((row / temperature).exp() / (row / temperature).exp().sum() for row in (v, z))
        soft = sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(z)))
        hard = -weights[label] * (z.exp() / z.exp().sum())[label].log()
        total = total + alpha * temperature**2 * soft + (1 - alpha) * hard
    return total / len(labels)
