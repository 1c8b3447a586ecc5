"""Convolution over words (Kim 2014, arXiv 1408.5882, §2), or over one-hot words (Johnson & Zhang 2015, arXiv
1412.1058, §2.2, seq-CNN).

    c_t = ReLU(W·[x_t; …; x_{t+k-1}] + b)      Eq. (2): F filters of width k, here for every t at once
    ĉ = max_t c_t                              Eq. (3): max over time
    features = dropout([ĉ for each width k])

Where x_t is one-hot, W·[x_t; …] is a sum of k columns of W, one for each word w of the window:

    c_t = ReLU(Σ_p W_p[w_{t+p}] + b),   p = 0 … k - 1

so that a word may mean something else at each place of each window, and the table of words is W itself.

K - 1 zeros stand before and behind every review, K the largest width, so that the shortest review has windows too.

Differs from the papers: no limit on the norm of the classifier's weights; one channel; pooling may be other than max,
or more, which tells how often a window's pattern occurs, not only whether. Johnson & Zhang have one width, a square
loss and SGD.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter
from torch.nn.functional import embedding_bag, linear, pad

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


class OneHotConv1d(Module):
    """y_t = Σ_p W_p[w_{t+p}] + b.   b -> bias [F]; the W_p are columns first … first + k - 1 of the words' table, which
    has J, each F numbers long."""

    def __init__(self, filters: int, width: int, first: int) -> None:
        super().__init__()
        self.width, self.first = width, first
        self.bias = Parameter(torch.zeros(filters))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, J·F], the columns of each word -> [B, T - k + 1, F]"""
        columns, count = x.unflatten(-1, (-1, len(self.bias))), x.size(1) - self.width + 1
        return sum((columns[:, p : p + count, self.first + p] for p in range(self.width)), self.bias)

    def look_up(self, input_ids: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """The same without an x: the columns of a window are added up as they are read. input_ids, mask: [B, T];
        table: [V, J·F] -> [B, T - k + 1, F]"""
        table = table.unflatten(1, (-1, len(self.bias)))  # [V, J, F]
        places = torch.arange(self.first, self.first + self.width, device=input_ids.device)
        rows = input_ids.unfold(1, self.width, 1) * table.size(1) + places  # [B, T - k + 1, k]
        real = mask.unfold(1, self.width, 1).to(table.dtype)
        rows, real, shape = rows.flatten(0, 1), real.flatten(0, 1), rows.shape[:2]
        sums = embedding_bag(rows, table.flatten(0, 1), mode="sum", per_sample_weights=real)
        return sums.unflatten(0, shape) + self.bias


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
    one_hot: bool = False  # the table of words is W; embedding_size and embedding_dropout are not used then
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
        dropouts = (c.word_dropout, 0.0 if c.one_hot else c.embedding_dropout)
        widths = parse_widths(c.widths)
        self.widest = max(widths)
        if c.one_hot:
            size, firsts = c.filters * sum(widths), accumulate(widths, initial=0)
            layers = (OneHotConv1d(c.filters, *pair) for pair in zip(widths, firsts, strict=False))
        else:
            size, layers = c.embedding_size, (Conv1d(c.embedding_size, c.filters, width) for width in widths)
        self.embeddings = WordEmbedding(c.vocab_size, size, c.embedding_range, *special, *dropouts)
        self.convolutions = ModuleList(layers)
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
        if self.config.one_hot:
            return self.pool(self.look_up(self.embeddings.drop_words(input_ids, mask), mask), mask)
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def look_up(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """`encode` of `embed` for one-hot words, in half the time: [B, T] -> [B, T + K - 1, n·F]"""
        edge, table = self.widest - 1, self.embeddings.word.weight
        input_ids, mask = (pad(part, (edge, edge)) for part in (input_ids, mask))  # [B, T + 2K - 2]
        parts = ((layer, slice(self.widest - layer.width, None)) for layer in self.convolutions)
        return torch.cat([layer.look_up(input_ids[:, at], mask[:, at], table) for layer, at in parts], -1).relu()

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
