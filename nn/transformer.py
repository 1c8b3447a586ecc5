"""Transformer encoder trained from nothing (Vaswani et al. 2017, arXiv 1706.03762).

    PE(t, 2i) = sin(t / 10000^(2i/D)),   PE(t, 2i+1) = cos(t / 10000^(2i/D))      §3.5
    post-norm:  x ← LN(x + attention(x)),    x ← LN(x + ffn(x))                   §3.1
    pre-norm:   x ← x + attention(LN(x)),    x ← x + ffn(LN(x)),   LN at the end  Xiong et al. 2020, arXiv 2002.04745
    features = dropout(Σ_t m_t x_t / Σ_t m_t)

Differs from the paper: encoder only; embeddings are projected to D instead of scaled by √D, so that word vectors of any
width fit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleList

from nn.attention import MultiHeadAttention
from nn.dropout import Dropout
from nn.encoder import FeedForward, run_layer
from nn.words import Pooling, WordEmbedding


def sinusoids(length: int, width: int) -> Tensor:
    """PE: [T, D]. Raises ValueError for an odd width."""
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}")
    rate = 10000 ** (-torch.arange(0, width, 2) / width)  # [D/2]
    angle = torch.arange(length)[:, None] * rate  # [T, D/2]
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # [T, D]


class TransformerBlock(Module):
    """One layer, pre- or post-norm; dropout on each sublayer's output (§5.4)."""

    def __init__(
        self, hidden_size: int, num_heads: int, feed_forward_size: int, pre_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.attention_norm = LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, feed_forward_size, "relu")
        self.feed_forward_norm = LayerNorm(hidden_size)
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, D];  mask: bool [B, T] -> [B, T, D]"""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


@dataclass(frozen=True)
class TransformerConfig:
    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    feed_forward_size: int = 256
    pre_norm: bool = True
    pooling: str = "mean"  # mean, max, attention, or several: max+mean
    layer_dropout: float = 0.1  # on attention weights and the output of sublayers
    word_dropout: float = 0.3
    embedding_dropout: float = 0.3
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class Transformer(Module):
    """[B, T] word ids -> [B, C] logits."""

    model_type, architecture = "transformer", "Transformer"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = TransformerConfig, {}, (), {}, {}
    HEAD = ("classifier",)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = self.config = config
        special = (c.pad_token_id, c.unk_token_id)
        dropouts = (c.word_dropout, c.embedding_dropout)
        self.embeddings = WordEmbedding(c.vocab_size, c.embedding_size, c.embedding_range, *special, *dropouts)
        self.project = Linear(c.embedding_size, c.hidden_size)
        self.layers = ModuleList(
            TransformerBlock(c.hidden_size, c.num_heads, c.feed_forward_size, c.pre_norm, c.layer_dropout)
            for _ in range(c.num_layers)
        )
        self.norm = LayerNorm(c.hidden_size) if c.pre_norm else None
        self.pooling = Pooling(c.pooling, c.hidden_size)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))
        self.checkpointing = False
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embeddings"):
                torch.nn.init.xavier_uniform_(parameter)

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, E] -> [B, T, D]"""
        x = self.project(x)  # [B, T, D]
        x = x + sinusoids(x.size(1), x.size(2)).to(x)
        for layer in self.layers:
            x = run_layer(layer, self.checkpointing, x, mask)
        return x if self.norm is None else self.norm(x)

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, n·D], n poolings side by side."""
        return self.dropout(self.pooling(h, mask))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees."""
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
