"""Transformer encoder trained from random weights (Vaswani et al. 2017, arXiv 1706.03762).

    PE(t, 2i) = sin(t / 10000^(2i/D)),   PE(t, 2i+1) = cos(t / 10000^(2i/D))      §3.5
    post-norm:  x ← LN(x + attention(x)),    x ← LN(x + ffn(x))                   §3.1
    pre-norm:   x ← x + attention(LN(x)),    x ← x + ffn(LN(x)),   LN at the end  Xiong et al. 2020, arXiv 2002.04745
    features = dropout(Σ_t m_t x_t / Σ_t m_t)

Differs from the paper: encoder only; embeddings are projected to D, not scaled by √D, so that word vectors of any width
can be used. Dropout acts on columns of the word vectors, before the projection (nn/words.py), where §5.4 drops
elements of the sum of embeddings and positions. Attention weights are dropped too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleList

from nn.attention import MultiHeadAttention
from nn.autocast import wide
from nn.dropout import Dropout
from nn.encoder import FeedForward, checkpointed
from nn.words import Pooling, WordClassifier, WordConfig


def sinusoids(length: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Computes PE: [T, D] of `dtype`. Raises ValueError for an odd width."""
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}")
    rate = 10000 ** (-torch.arange(0, width, 2, dtype=dtype) / width)  # [D/2]
    angle = torch.arange(length)[:, None] * rate  # [T, D/2]
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # [T, D]


class TransformerBlock(Module):
    """Computes one layer, pre-norm or post-norm, with dropout on the output of each sublayer (§5.4)."""

    def __init__(
        self, hidden_size: int, num_heads: int, feed_forward_size: int, pre_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size=hidden_size, num_heads=num_heads, dropout=dropout)
        self.attention_norm = LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size=hidden_size, feed_forward_size=feed_forward_size, act="relu")
        self.feed_forward_norm = LayerNorm(hidden_size)
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, D];  mask: bool [B, T] -> [B, T, D]"""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(WordConfig):
    embedding_dropout: float = 0.3
    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    feed_forward_size: int = 256
    pre_norm: bool = True
    pooling: str = "mean"  # mean, max, attention, last, or several: max+mean
    layer_dropout: float = 0.1  # on attention weights and the output of sublayers


class Transformer(WordClassifier):
    """Classifies a review by its Transformer states, pooled over time."""

    model_type, architecture = "transformer", "Transformer"
    Config = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        c = config
        self.project = Linear(c.embedding_size, c.hidden_size)
        self.layers = ModuleList(
            TransformerBlock(
                hidden_size=c.hidden_size,
                num_heads=c.num_heads,
                feed_forward_size=c.feed_forward_size,
                pre_norm=c.pre_norm,
                dropout=c.layer_dropout,
            )
            for _ in range(c.num_layers)
        )
        self.norm = LayerNorm(c.hidden_size) if c.pre_norm else None
        self.pooling = Pooling(c.pooling, c.hidden_size, bidirectional=False)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes all matrices except the embeddings as Glorot & Bengio 2010."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embeddings"):
                torch.nn.init.xavier_uniform_(parameter)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the states of the last layer. x: [B, T, E];  mask: bool [B, T] -> [B, T, D], 0 at padding"""
        x = self.project(x)  # [B, T, D]
        x = x + sinusoids(x.size(1), x.size(2), wide(x.dtype)).to(x)
        for layer in self.layers:
            x = checkpointed(layer, self.checkpointing)(x, mask)
        return (x if self.norm is None else self.norm(x)).masked_fill(~mask[..., None], 0)
