"""Convolution, max-pooling, then an LSTM over what is left of time (C-LSTM: Zhou et al. 2015, arXiv 1511.08630).

    c_t = ReLU(W·[x_{t-e}; …; x_{t+e}] + b),   e = (k - 1) / 2      one place for each word
    p_s = max(c_{s·q}, …, c_{s·q+q-1})                             q words become one step
    h = BiLSTM(p),   features = dropout(pool_s h_s)

The LSTM runs over time: its input at step s is the vector p_s of all filters.

Differs from the paper: pooling before the LSTM (theirs has none), both directions, pooling over all states.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import pad

from nn.cnn import Conv1d
from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import Pooling, WordEmbedding


@dataclass(frozen=True)
class CNNLSTMConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    filters: int = 128
    width: int = 3  # k, odd
    window: int = 2  # q
    hidden_size: int = 128
    num_layers: int = 1
    pooling: str = "max+mean"  # last, mean, max, attention, or several: max+mean
    word_dropout: float = 0.3
    embedding_dropout: float = 0.5
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class CNNLSTM(Module):
    """[B, T] word ids -> [B, C] logits."""

    model_type, architecture = "cnn_lstm", "CNNLSTM"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = CNNLSTMConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: CNNLSTMConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.width % 2 == 0:
            raise ValueError(f"width {c.width} must be odd, so that each window has a word in its middle")
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.convolution = Conv1d(c.embedding_size, c.filters, c.width)
        self.lstm = LSTM(c.filters, c.hidden_size, c.num_layers, dropout=c.dropout)
        self.pooling = Pooling(c.pooling, 2 * c.hidden_size)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def steps(self, mask: Tensor) -> Tensor:
        """bool [B, T] -> bool [B, S], S = ⌈T / q⌉: the steps that hold a word."""
        return mask[:, :: self.config.window]

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, S, 2D]"""
        c, edge = self.config, self.config.width // 2
        x = pad(x.masked_fill(~mask[..., None], 0), (0, 0, edge, edge))  # [B, T + k - 1, E]
        local = self.convolution(x).relu().masked_fill(~mask[..., None], 0)  # [B, T, F]: at least 0 where words stand
        local = pad(local, (0, 0, 0, -local.size(1) % c.window))  # [B, S·q, F]
        return self.lstm(local.unflatten(1, (-1, c.window)).amax(2), self.steps(mask))  # [B, S, 2D]

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, S, 2D];  mask: bool [B, T] -> [B, n·2D], n poolings side by side."""
        return self.dropout(self.pooling(h, self.steps(mask)))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
