"""Convolution over words (Kim 2014, arXiv 1408.5882, §2).

    c_t = ReLU(W·[x_t; …; x_{t+k-1}] + b)      Eq. (2): F filters of width k, here for every t at once
    ĉ = max_t c_t                              Eq. (3): max over time
    features = dropout([ĉ for each width k])

K - 1 zeros stand before and behind every review, K the largest width, so that the shortest review has windows too.

Differs from the paper: no limit on the norm of the classifier's weights; one channel; pooling may be other than max, or
more, which tells how often a window's pattern occurs, not only whether.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch.nn.functional import linear, pad

from nn.dropout import Dropout
from nn.words import Pooling, WordEmbedding


class Conv1d(Module):
    """y_t = W·[x_t; …; x_{t+k-1}] + b, unfold × weight;   W -> weight [F, k, E], b -> bias [F].

    W starts as Glorot & Bengio 2010 have it.
    """

    def __init__(self, input_size: int, filters: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = Parameter(torch.empty(filters, width, input_size))
        self.bias = Parameter(torch.zeros(filters))
        bound = (6 / (width * (input_size + filters))) ** 0.5
        self.weight.data.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T - k + 1, F]"""
        windows = x.unfold(1, self.width, 1).transpose(2, 3)  # [B, T - k + 1, k, E]
        return linear(windows.flatten(2), self.weight.flatten(1), self.bias)


def parse_widths(widths: str) -> list[int]:
    """`3,4,5` -> [3, 4, 5]. Raises ValueError."""
    parts = widths.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"widths {widths!r} are not numbers with commas between them, like 3,4,5")
    return [int(part) for part in parts]


@dataclass(frozen=True)
class CNNConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 0.5
    filters: int = 100  # F of each width
    widths: str = "3,4,5"
    pooling: str = "max"  # or mean, attention, or several: max+mean
    word_dropout: float = 0.3
    embedding_dropout: float = 0.3
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class CNN(Module):
    """[B, T] word ids -> [B, C] logits."""

    model_type, architecture = "cnn", "CNN"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = CNNConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        c = self.config = config
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        widths = parse_widths(c.widths)
        self.widest = max(widths)
        self.convolutions = ModuleList(Conv1d(c.embedding_size, c.filters, width) for width in widths)
        self.pooling = Pooling(c.pooling, c.filters * len(widths))
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T + K - 1, n·F] for n widths, the largest K; place t saw the words t - k + 1 … t."""
        edge = self.widest - 1
        x = pad(x.masked_fill(~mask[..., None], 0), (0, 0, edge, edge))  # [B, T + 2K - 2, E]
        return torch.cat([layer(x[:, self.widest - layer.width :]) for layer in self.convolutions], -1).relu()

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T + K - 1, n·F] -> [B, n·F], of each pooling"""
        return self.dropout(self.pooling(h, pad(mask, (self.widest - 1, 0), value=True)))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
