"""BiLSTM under capsules with dynamic routing (Sabour, Frosst & Hinton 2017, arXiv 1710.09829).

    û_{j|t} = W_j h_t                                             Eq. (2), W shared by all places t
    c_t = softmax_j(b_t),   s_j = Σ_t c_tj û_{j|t} / Σ_t c_tj     Eq. (2), (3)
    v_j = squash(s_j) = |s_j|² / (1 + |s_j|²) · s_j / |s_j|       Eq. (1)
    b_tj ← b_tj + û_{j|t}·v_j                                     Procedure 1, line 7;  b starts at 0

Padding has c_tj = 0. With head `linear` the classifier sees all v_j side by side; with head `capsules` they are routed
once more, to one capsule a class, whose length is the class's score: what the margin loss (losses/margin.py) is for.

Differs from the paper: W is shared over places, since reviews have any length, and s_j is a mean weighted by c instead
of a sum: a sum over hundreds of words would put every length next to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import WordEmbedding

HEADS = ("linear", "capsules")


def squash(s: Tensor) -> Tensor:
    """Eq. (1): shrinks the length of each vector into [0, 1). s: [..., K] -> [..., K]"""
    square = s.square().sum(-1, keepdim=True)  # [..., 1]
    return s * (square / (1 + square)) * (square + 1e-12).rsqrt()


def route(u: Tensor, mask: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Procedure 1. u: û [B, T, J, K];  mask: bool [B, T] -> v [B, J, K], c [B, T, J] (sums to 1 over J at a real place,
    0 at padding)."""
    b = u.new_zeros(u.shape[:3])  # [B, T, J]
    for number in range(iterations):
        c = b.softmax(-1) * mask[..., None]  # [B, T, J]
        share = c / c.sum(1, keepdim=True).clamp(min=1e-12)  # [B, T, J]
        v = squash(torch.einsum("btj,btjk->bjk", share, u))
        if number + 1 < iterations:
            b = b + torch.einsum("btjk,bjk->btj", u, v)
    return v, c


class CapsuleLayer(Module):
    """[B, T, D] -> J capsules [B, J, K];   W -> weight [J, K, D], Glorot & Bengio 2010."""

    def __init__(self, input_size: int, num_capsules: int, capsule_size: int, iterations: int) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"{iterations} routing iterations; at least 1 is needed")
        self.weight = Parameter(torch.empty(num_capsules, capsule_size, input_size))
        self.iterations = iterations
        for w in self.weight.data:
            torch.nn.init.xavier_uniform_(w)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        u = torch.nn.functional.linear(h, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
        return route(u.to(self.weight.dtype), mask, self.iterations)[0]


class CapsuleLengths(Module):
    """The length of each class's capsule: [B, C·K] -> [B, C], in [0, 1)."""

    def __init__(self, classes: int, capsule_size: int) -> None:
        super().__init__()
        self.classes, self.in_features = classes, classes * capsule_size

    def forward(self, v: Tensor) -> Tensor:
        return (v.unflatten(-1, (self.classes, -1)).square().sum(-1) + 1e-12).sqrt()


@dataclass(frozen=True)
class CapsuleLSTMConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    hidden_size: int = 128
    num_layers: int = 1
    num_capsules: int = 16  # J
    capsule_size: int = 16  # K
    iterations: int = 3
    head: str = "linear"  # or capsules: one for each class, for the margin loss
    word_dropout: float = 0.3
    embedding_dropout: float = 0.5
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class CapsuleLSTM(Module):
    """[B, T] word ids -> [B, C] logits, or lengths of class capsules."""

    model_type, architecture = "capsule_lstm", "CapsuleLSTM"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = CapsuleLSTMConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: CapsuleLSTMConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.head not in HEADS:
            raise ValueError(f"unknown head {c.head!r}; known: {', '.join(HEADS)}")
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.lstm = LSTM(c.embedding_size, c.hidden_size, c.num_layers, dropout=c.dropout)
        self.capsules = CapsuleLayer(2 * c.hidden_size, c.num_capsules, c.capsule_size, c.iterations)
        self.dropout = Dropout(c.dropout)
        if c.head == "capsules":
            self.classes = CapsuleLayer(c.capsule_size, len(c.labels), c.capsule_size, c.iterations)
            self.classifier = CapsuleLengths(len(c.labels), c.capsule_size)
        else:
            self.classes = None
            self.classifier = Linear(c.num_capsules * c.capsule_size, len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T, 2D]"""
        return self.lstm(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, 2D] -> [B, J·K], or [B, C·K] with class capsules"""
        v = self.capsules(self.dropout(h), mask)  # [B, J, K]
        if self.classes is not None:
            v = self.classes(v, v.new_ones(v.shape[:2], dtype=torch.bool))  # [B, C, K]
        return v.flatten(1)

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
