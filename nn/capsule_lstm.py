"""BiLSTM followed by capsules with dynamic routing (Sabour, Frosst & Hinton 2017, arXiv 1710.09829).

    û_{j|t} = W_j dropout(h_t)                                    Eq. (2), W shared by all token positions t
    c_t = softmax_j(b_t),   s_j = Σ_t c_tj û_{j|t} / Σ_t c_tj     Eq. (2), (3)
    v_j = squash(s_j) = |s_j|² / (1 + |s_j|²) · s_j / |s_j|       Eq. (1)
    b_tj ← b_tj + û_{j|t}·v_j                                     Procedure 1, line 7;  b starts at 0

Padding has c_tj = 0. With head `linear` the input of the classifier is the concatenation of all v_j. With head
`capsules` the v_j are routed once more, to one capsule for each class; its length is the score of the class, for the
margin loss (losses/margin.py).

Differs from the paper: W is shared over positions, since reviews vary in length. s_j is a mean weighted by c, not a
sum: a sum over hundreds of words would make every |v_j| close to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.autocast import at_least_fp32, wide, without_autocast
from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import WordClassifier, WordConfig

HEADS = ("linear", "capsules")


def squash(s: Tensor) -> Tensor:
    """Computes Eq. (1), which shrinks the length of each vector into [0, 1), up to rounding. s, result: [..., K]"""
    square = at_least_fp32(s).square().sum(-1, keepdim=True)  # [..., 1]
    return s * (square / (1 + square) * (square + 1e-12).rsqrt()).to(s.dtype)


def route(u: Tensor, mask: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Computes Procedure 1. u: û [B, T, J, K];  mask: bool [B, T] -> v [B, J, K] and c [B, T, J].

    c sums to 1 over J at a real position and is 0 at padding.
    """
    b = u.new_zeros(u.shape[:3])  # [B, T, J]
    for number in range(iterations):
        c = b.softmax(-1) * mask[..., None]  # [B, T, J]
        total = c.sum(1, keepdim=True, dtype=wide(c.dtype)).clamp(min=1e-12)  # [B, 1, J]
        share = (c / total).to(c.dtype)  # [B, T, J]
        v = squash(torch.einsum("btj,btjk->bjk", share, u))
        if number + 1 < iterations:
            b = b + torch.einsum("btjk,bjk->btj", u, v)
    return v, c


class CapsuleLayer(Module):
    """Routes [B, T, D] to J capsules [B, J, K]. Raises ValueError for fewer than one iteration.

    W -> weight [J, K, D], initialized as Glorot & Bengio 2010.
    """

    def __init__(self, input_size: int, num_capsules: int, capsule_size: int, iterations: int) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"{iterations} routing iterations; at least 1 is needed")
        self.weight = Parameter(torch.empty(num_capsules, capsule_size, input_size))
        self.iterations = iterations
        for w in self.weight.data:
            torch.nn.init.xavier_uniform_(w)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, D];  mask: bool [B, T] -> v [B, J, K], in fp32 also under autocast"""
        return self.routing(h, mask)[0]

    def routing(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes v [B, J, K] and c [B, T, J]. h: [B, T, D];  mask: bool [B, T]"""
        u = torch.nn.functional.linear(h, self.weight.flatten(0, 1))  # [B, T, J·K]
        u = u.unflatten(-1, self.weight.shape[:2]).to(self.weight.dtype)  # [B, T, J, K]
        with without_autocast(u):
            return route(u, mask=mask, iterations=self.iterations)


class CapsuleLengths(Module):
    """Computes √(|v|² + 10⁻¹²) of each class's capsule, whose gradient is finite at 0. [B, C·K] -> [B, C]"""

    def __init__(self, classes: int, capsule_size: int) -> None:
        super().__init__()
        self.classes, self.in_features = classes, classes * capsule_size

    def forward(self, v: Tensor) -> Tensor:
        """v: [B, C·K] -> [B, C]"""
        square = at_least_fp32(v.unflatten(-1, (self.classes, -1))).square().sum(-1)
        return (square + 1e-12).sqrt().to(v.dtype)


@dataclass(frozen=True, kw_only=True)
class CapsuleLSTMConfig(WordConfig):
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    num_capsules: int = 16  # J
    capsule_size: int = 16  # K
    iterations: int = 3
    head: str = "linear"  # or capsules: one for each class, for the margin loss


class CapsuleLSTM(WordClassifier):
    """Classifies a review by capsules routed from its LSTM states. Raises ValueError for an unknown head.

    The scores are logits with head `linear`, and lengths of the class capsules with head `capsules`.
    """

    model_type, architecture = "capsule_lstm", "CapsuleLSTM"
    Config = CapsuleLSTMConfig
    HEAD = ("capsules", "classes", "classifier")

    def __init__(self, config: CapsuleLSTMConfig) -> None:
        c, classes = config, len(config.labels)
        if c.head not in HEADS:
            raise ValueError(f"unknown head {c.head!r}; known: {', '.join(HEADS)}")
        super().__init__(config)
        self.lstm = LSTM(
            input_size=c.embedding_size,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
        )
        width = c.hidden_size * (1 + c.bidirectional)
        self.capsules = CapsuleLayer(
            input_size=width,
            num_capsules=c.num_capsules,
            capsule_size=c.capsule_size,
            iterations=c.iterations,
        )
        self.dropout = Dropout(c.dropout)
        if c.head == "capsules":
            self.classes: CapsuleLayer | None = CapsuleLayer(
                input_size=c.capsule_size,
                num_capsules=classes,
                capsule_size=c.capsule_size,
                iterations=c.iterations,
            )
            self.classifier = CapsuleLengths(classes, c.capsule_size)
        else:
            self.classes = None
            self.classifier = Linear(c.num_capsules * c.capsule_size, classes)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the LSTM states. x: [B, T, E];  mask: bool [B, T] -> [B, T, N·D]"""
        return self.lstm(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Computes the capsules. h: [B, T, N·D];  mask: bool [B, T] -> [B, J·K], or [B, C·K] with class capsules"""
        v = self.capsules(self.dropout(h), mask)  # [B, J, K]
        if self.classes is not None:
            v = self.classes(v, v.new_ones(v.shape[:2], dtype=torch.bool))  # [B, C, K]
        return v.flatten(1)

    def routing(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the capsules v, [B, J, K], and the routing coefficients c, [B, T, J], of each review."""
        return self.capsules.routing(self.dropout(self.encode(self.embed(input_ids, mask), mask)), mask)

    def capsule_scores(self, v: Tensor) -> Tensor:
        """Computes the contribution of each capsule to the logit of each class, minus its mean over classes.

        With class capsules, returns the routing coefficients. v: [B, J, K] -> [B, J, C]
        """
        if self.classes is not None:
            return self.classes.routing(v, v.new_ones(v.shape[:2], dtype=torch.bool))[1]
        weight = self.classifier.weight.unflatten(1, v.shape[1:])  # [C, J, K]
        return torch.einsum("bjk,cjk->bjc", v, weight - weight.mean(0))
