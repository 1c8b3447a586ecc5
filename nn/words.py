"""What the networks over words share: their embeddings with word dropout, and pooling over time.

    w_t ← <unk> with probability p                              word dropout (Iyyer et al. 2015, P15-1162, §4)
    x_t = s ⊙ E[w_t],   s the same for all t of a review        variational dropout (Gal & Ghahramani 2016,
                                                                arXiv 1512.05287, §4.2)
    mean: Σ_t m_t h_t / Σ_t m_t      max: max over t with m_t      attention: nn/attention.py, AdditiveAttention
    last: each direction's state behind its last step

m_t is 1 for a word and 0 for padding.

Differs from the papers: a dropped word becomes <unk>, which so learns what an unknown word means, where Iyyer et al.
leave it out.
"""

import torch
from torch import Tensor
from torch.nn import Embedding, Module

from nn.attention import AdditiveAttention
from nn.dropout import Dropout

POOLINGS = ("last", "mean", "max", "attention")


class WordEmbedding(Module):
    """[B, T] word ids -> [B, T, E], 0 at padding. E starts uniform in (-a, a): the smaller a, the more of what a
    word comes to mean is learned from the labels, at the same learning rate.

    scale -> a;  word_dropout -> p;  dropout: of whole columns of a review's [T, E].
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        scale: float,
        pad_id: int,
        unk_id: int,
        word_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout {word_dropout} is outside [0, 1)")
        self.word = Embedding(vocab_size, embedding_size, padding_idx=pad_id)
        self.word.weight.data.uniform_(-scale, scale)[pad_id] = 0
        self.unk_id, self.word_dropout = unk_id, word_dropout
        self.dropout = Dropout(dropout)

    def drop_words(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Word dropout, while training. [B, T] -> [B, T]"""
        if not self.training or self.word_dropout == 0:
            return input_ids
        dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
        return input_ids.masked_fill(dropped & mask, self.unk_id)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.word(self.drop_words(input_ids, mask))  # [B, T, E]
        return x * self.dropout(x.new_ones(len(x), 1, x.size(-1))) if self.dropout.active else x


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """h: [B, T, D];  mask: bool [B, T] -> [B, D]"""
    m = mask[..., None].to(h.dtype)  # [B, T, 1]
    return (h * m).sum(1) / m.sum(1).clamp(min=1)


def masked_max(h: Tensor, mask: Tensor) -> Tensor:
    """h: [B, T, D];  mask: bool [B, T] -> [B, D]; 0 for a row without any word."""
    largest = h.masked_fill(~mask[..., None], torch.finfo(h.dtype).min).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0)


def last_states(h: Tensor, mask: Tensor, bidirectional: bool = True) -> Tensor:
    """The state after each direction's last real step: the forward one at the review's end, the backward one at its
    start. h: [B, T, N·D] -> [B, N·D]"""
    end = (mask.sum(1) - 1).clamp(min=0)
    at_end = h[torch.arange(len(h), device=h.device), end]  # [B, N·D]
    if not bidirectional:
        return at_end
    forward, _ = at_end.chunk(2, -1)
    _, backward = h[:, 0].chunk(2, -1)
    return torch.cat([forward, backward], -1)


class Pooling(Module):
    """[B, T, D] -> [B, n·D] by n poolings, given as `max` or `max+mean`: their results stand side by side."""

    def __init__(self, kinds: str, width: int, bidirectional: bool = True) -> None:
        super().__init__()
        self.kinds, self.bidirectional = kinds.split("+"), bidirectional
        if unknown := [kind for kind in self.kinds if kind not in POOLINGS]:
            raise ValueError(f"unknown pooling {unknown[0]!r}; known: {', '.join(POOLINGS)}, joined by +")
        self.attention = AdditiveAttention(width, width) if "attention" in self.kinds else None
        self.width = width * len(self.kinds)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([self.one(kind, h, mask) for kind in self.kinds], -1)  # [B, n·D]

    def one(self, kind: str, h: Tensor, mask: Tensor) -> Tensor:
        if kind == "attention":
            return self.attention(h, mask)[0]
        if kind == "last":
            return last_states(h, mask, self.bidirectional)
        return masked_mean(h, mask) if kind == "mean" else masked_max(h, mask)
