"""BiLSTM with additive attention (Yang et al. 2016, N16-1174, §2.2, the word level; Zhou et al. 2016, P16-2034).

    h = BiLSTM(x),   u_t = tanh(W h_t + b),   α_t = softmax_t(u_t·v),   r = Σ_t α_t h_t       Eq. (5)–(7)
    features = dropout([r; max_t h_t])  or  dropout(r)

α_t is the weight of word t in r; `attention_weights` returns it for display.

Differs from the papers: an LSTM (Yang et al. use a GRU); one attention level for the whole review; r is concatenated
with the maximum over time, so that a word can affect the features without a large attention weight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear

from nn.attention import AdditiveAttention
from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import WordClassifier, WordConfig, masked_max


@dataclass(frozen=True, kw_only=True)
class AttentionLSTMConfig(WordConfig):
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    attention_size: int = 128
    with_max: bool = True  # concatenate r with the maximum over time


class AttentionLSTM(WordClassifier):
    """Classifies a review by the attention-weighted mean of its LSTM states."""

    model_type, architecture = "attention_lstm", "AttentionLSTM"
    Config = AttentionLSTMConfig
    HEAD = ("attention", "classifier")

    def __init__(self, config: AttentionLSTMConfig) -> None:
        super().__init__(config)
        c = config
        self.lstm = LSTM(
            input_size=c.embedding_size,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
        )
        width = c.hidden_size * (1 + c.bidirectional)
        self.attention = AdditiveAttention(width, c.attention_size)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(width * (1 + c.with_max), len(c.labels))

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the LSTM states. x: [B, T, E];  mask: bool [B, T] -> [B, T, N·D]"""
        return self.lstm(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools by attention. h: [B, T, N·D];  mask: bool [B, T] -> [B, N·D], or [B, 2N·D] with the maximum"""
        r, _ = self.attention(h, mask)
        return self.dropout(torch.cat([r, masked_max(h, mask)], -1) if self.config.with_max else r)

    def attention_weights(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Computes α: [B, T], 0 at padding; rows sum to 1."""
        return self.attention(self.encode(self.embed(input_ids, mask), mask), mask)[1]
