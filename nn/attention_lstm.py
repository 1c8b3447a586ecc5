"""BiLSTM under additive attention (Yang et al. 2016, N16-1174, §2.2, the word level; Zhou et al. 2016, P16-2034).

    h = BiLSTM(x),   u_t = tanh(W h_t + b),   α_t = softmax_t(u_t·v),   r = Σ_t α_t h_t       Eq. (5)–(7)
    features = dropout([r; max_t h_t])  or  dropout(r)

α_t says how much the word t counts; `attention_weights` gives it for display.

Differs from the papers: an LSTM (Yang et al. have a GRU), one level for the whole review, and max over time beside r,
without which the attention has to find every opinion word by itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module

from nn.attention import AdditiveAttention
from nn.dropout import Dropout
from nn.lstm import LSTM
from nn.words import WordEmbedding, masked_max


@dataclass(frozen=True)
class AttentionLSTMConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    hidden_size: int = 128
    num_layers: int = 1
    attention_size: int = 128
    with_max: bool = True  # max over time beside r
    word_dropout: float = 0.3
    embedding_dropout: float = 0.5
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class AttentionLSTM(Module):
    """[B, T] word ids -> [B, C] logits."""

    model_type, architecture = "attention_lstm", "AttentionLSTM"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = AttentionLSTMConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: AttentionLSTMConfig) -> None:
        super().__init__()
        c = self.config = config
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.lstm = LSTM(c.embedding_size, c.hidden_size, c.num_layers, dropout=c.dropout)
        self.attention = AdditiveAttention(2 * c.hidden_size, c.attention_size)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(2 * c.hidden_size * (1 + c.with_max), len(c.labels))

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T, 2D]"""
        return self.lstm(x, mask)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, 2D] -> [B, 2D], or [B, 4D] with the maximum"""
        r, _ = self.attention(h, mask)
        return self.dropout(torch.cat([r, masked_max(h, mask)], -1) if self.config.with_max else r)

    def attention_weights(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """α: [B, T], 0 at padding; rows sum to 1."""
        return self.attention(self.encode(self.embed(input_ids, mask), mask), mask)[1]

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
