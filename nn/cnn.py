"""Convolution over word vectors (Kim 2014, arXiv 1408.5882, §2) or over one-hot words (Johnson & Zhang 2015, arXiv
1412.1058, §2.2, seq-CNN).

    c_t = ReLU(W·[x_t; …; x_{t+k-1}] + b)      Eq. (2), (3): F filters of width k, for all t at once
    ĉ = max_t c_t                              §2: max over time
    features = dropout([ĉ for each width k])

For one-hot x_t, W·[x_t; …] is a sum of k columns of W, one for each word w of the window:

    c_t = ReLU(Σ_p W_p[w_{t+p}] + b),   p = 0 … k - 1

A word has a separate vector for each position in each window, and the embedding table holds W itself.

Region embeddings u (Johnson & Zhang 2015b, arXiv 1504.01255, Eq. (3)) are learned from texts without labels, then
frozen (nn/regions.py, losses/tv.py). The region around the middle word is a further input of a window:

    c_t = ReLU(W·[x_t; …; x_{t+k-1}] + V·u_{t+⌊k/2⌋}/√D + b)

The division by √D is not in the paper. It makes u shorter than a one-hot vector (data/results/SEARCH.md, "Two-view
embeddings").

Each review is padded with K - 1 zeros at both ends, where K is the largest width, so that the shortest review has
windows too.

Differs from the papers: no limit on the norm of the classifier's weights; one channel of vectors; other poolings. Mean
pooling also measures how often the pattern of a window occurs. Johnson & Zhang's seq-CNN has one width, their parallel
CNN several, as here; they use a square loss and SGD.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module, ModuleList, Parameter
from torch.nn.functional import embedding_bag, linear, pad

from nn.attention import check_inputs
from nn.dropout import Dropout
from nn.regions import RegionEmbedding
from nn.words import Pooling, WordClassifier, WordConfig


class Conv1d(Module):
    """Computes y_t = W·[x_t; …; x_{t+k-1}] + b as a matrix product with unfolded windows.

    W -> weight [F, k, E], b -> bias [F]. Initialization: W as Glorot & Bengio 2010, b = 0.
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
    """Computes y_t = Σ_p W_p[w_{t+p}] + b.

    The embedding table has M·F columns, M the sum of all widths; W_p is column block first + p, with F columns.
    b -> bias [F], initially 0.
    """

    def __init__(self, filters: int, width: int, first: int) -> None:
        super().__init__()
        self.width, self.first = width, first
        self.bias = Parameter(torch.zeros(filters))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, M·F], the embedded words -> [B, T - k + 1, F]"""
        blocks, count = x.unflatten(-1, (-1, len(self.bias))), x.size(1) - self.width + 1
        return sum((blocks[:, p : p + count, self.first + p] for p in range(self.width)), self.bias)

    def convolve_ids(self, input_ids: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """Computes `forward` from word ids, without storing x: each window is summed while it is read from the table.
        input_ids, mask: [B, T];  table: [V, M·F] -> [B, T - k + 1, F]"""
        table = table.unflatten(1, (-1, len(self.bias)))  # [V, M, F]
        blocks = torch.arange(self.first, self.first + self.width, device=input_ids.device)
        rows = input_ids.long().unfold(1, self.width, 1) * table.size(1) + blocks  # [B, T - k + 1, k]
        real = mask.unfold(1, self.width, 1).to(table.dtype)
        rows, real, shape = rows.flatten(0, 1), real.flatten(0, 1), rows.shape[:2]
        sums = embedding_bag(rows, table.flatten(0, 1), mode="sum", per_sample_weights=real)
        return sums.unflatten(0, shape) + self.bias


def parse_widths(widths: str) -> list[int]:
    """Parses `3,4,5` into [3, 4, 5]. Raises ValueError unless all are positive integers."""
    numbers = widths.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"widths {widths!r} are not numbers with commas between them, like 3,4,5")
    return [int(number) for number in numbers]


@dataclass(frozen=True, kw_only=True)
class CNNConfig(WordConfig):
    embedding_range: float = 0.5
    embedding_dropout: float = 0.3
    filters: int = 100  # F of each width
    widths: str = "3,4,5"
    one_hot: bool = False  # the embedding table is W; embedding_size and embedding_dropout are unused
    pooling: str = "max"  # or mean, attention, or several: max+mean
    region_width: int = 0  # D of the region embeddings; 0: none
    region_radius: int = 2  # r of the region embeddings


class CNN(WordClassifier):
    """Classifies a review by its convolution windows, pooled over time.

    Raises ValueError for unknown poolings and pooling `last`, and for widths that are not positive integers.
    """

    model_type, architecture = "cnn", "CNN"
    Config = CNNConfig

    def __init__(self, config: CNNConfig) -> None:
        c, widths = config, parse_widths(config.widths)
        if c.one_hot:
            super().__init__(config, embedding_size=c.filters * sum(widths))
            self.embeddings.dropout = None
            pairs = zip(widths, accumulate(widths, initial=0), strict=False)
            layers: list[Module] = [OneHotConv1d(filters=c.filters, width=width, first=first) for width, first in pairs]
        else:
            super().__init__(config)
            layers = [Conv1d(input_size=c.embedding_size, filters=c.filters, width=width) for width in widths]
        if "last" in c.pooling.split("+"):
            raise ValueError("pooling last is for recurrent networks; the windows of a CNN have no last state")
        self.widest = max(widths)
        self.regions: Any = None  # a RegionEmbedding
        self.convolutions: Any = ModuleList(layers)  # of Conv1d or OneHotConv1d
        if c.region_width:
            self.regions = RegionEmbedding(c.vocab_size, c.region_width, c.region_radius, c.pad_token_id)
            self.regions.requires_grad_(False)  # trained by losses/tv.py
            self.views = ModuleList(Linear(c.region_width, c.filters, bias=False) for _ in widths)  # V of each width
        self.pooling = Pooling(c.pooling, c.filters * len(widths))
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def rows(self, input_ids: Tensor) -> Tensor:
        """Embeds the words without dropout. [B, T] or [T] -> [..., E], or [..., E + D] with regions"""
        x = super().rows(input_ids)
        return x if self.regions is None else torch.cat([x, self.regions.word(input_ids)], -1)

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Embeds the words; with regions, D further columns are rows of the region table. [B, T] -> [B, T, E (+ D)]"""
        input_ids = self.embeddings.drop_words(input_ids, mask)
        x = self.embeddings.drop_columns(self.embeddings.word(input_ids))
        return x if self.regions is None else torch.cat([x, self.regions.word(input_ids)], -1)

    def add_regions(self, windows: list[Tensor], rows: Tensor) -> list[Tensor]:
        """Adds V·u/√D to the windows of each width. windows: [B, T + K - 1, F];  rows: of the table E
        of nn/regions.py, [B, T + 2K - 2, D]"""
        u, count = self.regions(rows) * self.config.region_width**-0.5, windows[0].size(1)
        sums = []
        for window, view, layer in zip(windows, self.views, self.convolutions, strict=True):
            middle = self.widest - layer.width + layer.width // 2  # of the first window
            sums.append(window + view(u[:, middle : middle + count]))
        return sums

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes all windows. x: what `embed` returns;  mask: bool [B, T] -> [B, T + K - 1, n·F] for n widths.

        Index t of the result covers words t - k + 1 … t.
        """
        edge = self.widest - 1
        x = pad(x.masked_fill(~mask[..., None], 0), (0, 0, edge, edge))  # [B, T + 2K - 2, E]
        x, rows = x.tensor_split([x.size(-1) - self.config.region_width], -1)
        windows = [layer(x[:, self.widest - layer.width :]) for layer in self.convolutions]
        return torch.cat(self.add_regions(windows, rows) if self.regions is not None else windows, -1).relu()

    def encode_ids(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Computes `encode` of `embed` for one-hot words, 2 × faster. [B, T] -> [B, T + K - 1, n·F]"""
        edge, table = self.widest - 1, self.embeddings.word.weight
        input_ids, mask = pad(input_ids, (edge, edge)), pad(mask, (edge, edge))  # [B, T + 2K - 2]
        windows = []
        for layer in self.convolutions:
            start = self.widest - layer.width
            windows.append(layer.convolve_ids(input_ids[:, start:], mask=mask[:, start:], table=table))
        if self.regions is not None:
            windows = self.add_regions(windows, self.regions.word(input_ids).masked_fill(~mask[..., None], 0))
        return torch.cat(windows, -1).relu()

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools over the first n + K - 1 windows of each width, where n is the number of words: all windows of the
        largest width K that contain a word.

        The last K - k windows of a narrower width k cover no word; without regions they are ReLU(b).

        h: [B, T + K - 1, n·F];  mask: bool [B, T] -> [B, n·F] of each pooling, concatenated
        """
        return super().pool(h, pad(mask, (self.widest - 1, 0), value=True))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the input of the classifier: [B, n·F] of each pooling, concatenated."""
        if not (self.config.one_hot and isinstance(self.embeddings.word, Embedding)):  # it takes no 8-bit rows
            return super().features(input_ids, mask)
        check_inputs(input_ids, mask)
        input_ids = self.embeddings.drop_words(input_ids, mask)
        return self.pool(self.encode_ids(input_ids, mask), mask)
