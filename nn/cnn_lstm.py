"""Convolution and max pooling followed by an LSTM over time (C-LSTM: Zhou et al. 2015, arXiv 1511.08630).

    c_t = ReLU(W·[x_{t-e}; …; x_{t+e}] + b),   e = (k - 1) / 2      one window for each word
    p_s = max(c_{s·q}, …, c_{s·q+q-1})                             one step for q words
    h = BiLSTM(p),   features = dropout(pool_s h_s)

The input of the LSTM at step s is the vector p_s of all filters.

Differs from the paper: max pooling before the LSTM, where the paper has none; both directions; pooling over all states.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import pad

from nn.cnn import Conv1d
from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import Pooling, ReceptiveField, WordClassifier, WordConfig


@dataclass(frozen=True, kw_only=True)
class CNNLSTMConfig(WordConfig):
    filters: int = 128
    width: int = 3  # k, odd
    window: int = 2  # q
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max+mean"  # last, mean, max, attention, or several: max+mean


class CNNLSTM(WordClassifier):
    """Classifies a review by LSTM states over pooled convolution windows. Raises ValueError for an even width."""

    model_type, architecture = "cnn_lstm", "CNNLSTM"
    Config = CNNLSTMConfig

    def __init__(self, config: CNNLSTMConfig) -> None:
        c = config
        if c.width % 2 == 0:
            raise ValueError(f"width {c.width} must be odd, so that each window is centred on a word")
        super().__init__(config)
        self.convolution = Conv1d(input_size=c.embedding_size, filters=c.filters, width=c.width)
        self.lstm = LSTM(
            input_size=c.filters,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
        )
        width = c.hidden_size * (1 + c.bidirectional)
        self.pooling = Pooling(c.pooling, width=width, bidirectional=c.bidirectional)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def step_mask(self, mask: Tensor) -> Tensor:
        """Returns which steps contain a word. bool [B, T] -> bool [B, S], S = ⌈T / q⌉"""
        return mask[:, :: self.config.window]

    @property
    def receptive_field(self) -> ReceptiveField:
        """Returns which words the states depend on: at step s, its q words and e more on both sides."""
        c, e = self.config, self.config.width // 2
        return ReceptiveField(1 + c.bidirectional, stride=c.window, ahead=c.window - 1 + e, behind=e)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the LSTM states of all steps. x: [B, T, E];  mask: bool [B, T] -> [B, S, N·D]"""
        c, edge = self.config, self.config.width // 2
        x = pad(x.masked_fill(~mask[..., None], 0), (0, 0, edge, edge))  # [B, T + k - 1, E]
        # ReLU is at least 0 at words, so that 0 at padding never raises the maximum
        local = self.convolution(x).relu().masked_fill(~mask[..., None], 0)  # [B, T, F]
        local = pad(local, (0, 0, 0, -local.size(1) % c.window))  # [B, S·q, F]
        return self.lstm(local.unflatten(1, (-1, c.window)).amax(2), self.step_mask(mask))  # [B, S, N·D]

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools the states over the steps. h: [B, S, N·D];  mask: bool [B, T] -> [B, n·N·D] for n poolings"""
        return super().pool(h, self.step_mask(mask))
