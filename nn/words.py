"""Layers that the networks over words share, and `WordClassifier` and `WordConfig`, their base classes.

    w_t ← <unk> with probability p                              word dropout (Iyyer et al. 2015, P15-1162, §3.1)
    x_t = s ⊙ E[w_t], s the same for all t of a review          variational dropout (Gal & Ghahramani 2016,
                                                                arXiv 1512.05287, Eq. (7))
    mean: Σ_t m_t h_t / Σ_t m_t      max: max over t with m_t = 1      attention: nn/attention.py, AdditiveAttention
    last: the state of each direction after its last real step

m_t is 1 for a word and 0 for padding.

Differs from the papers: a dropped word is replaced by <unk>, where Iyyer et al. remove it. The embedding of <unk> is
trained this way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Embedding, Module

from data.corpus import Corpus
from nn.attention import AdditiveAttention, check_inputs
from nn.autocast import wide
from nn.dropout import Dropout

POOLINGS = ("last", "mean", "max", "attention")


class WordEmbedding(Module):
    """Embeds word ids [B, T] -> [B, T, E], 0 at padding. E is initialized uniformly in (-a, a).

    A smaller range lets training determine more of an embedding, at the same learning rate.
    embedding_range -> a;  word_dropout -> p;  dropout: probability of dropping a column of a review's [T, E]. Raises
    ValueError for a probability outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        embedding_range: float,
        pad_id: int,
        unk_id: int,
        word_dropout: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout {word_dropout} is outside [0, 1)")
        self.word = Embedding(vocab_size, embedding_size, padding_idx=pad_id)
        self.word.weight.data.uniform_(-embedding_range, embedding_range)[pad_id] = 0
        self.unk_id, self.word_dropout = unk_id, word_dropout
        self.dropout: Dropout | None = Dropout(dropout)  # None for one-hot words

    def drop_words(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Applies word dropout in training mode. [B, T] -> [B, T]"""
        if not self.training or self.word_dropout == 0:
            return input_ids
        dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
        return input_ids.masked_fill(dropped & mask, self.unk_id)

    def drop_columns(self, x: Tensor) -> Tensor:
        """Applies variational dropout in training mode. x: [B, T, E] -> [B, T, E]"""
        if self.dropout is None or not self.dropout.active:
            return x
        return x * self.dropout(x.new_ones(len(x), 1, x.size(-1)))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Returns x: [B, T, E]."""
        return self.drop_columns(self.word(self.drop_words(input_ids, mask)))


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Averages h over the words. h: [B, T, D];  mask: bool [B, T] -> [B, D], 0 for a row without words."""
    total = (h * mask[..., None]).sum(1, dtype=wide(h.dtype))  # [B, D]; bf16 rounds counts above 256
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(h.dtype)


def masked_max(h: Tensor, mask: Tensor) -> Tensor:
    """Takes the maximum of h over the words. h: [B, T, D];  mask: bool [B, T] -> [B, D], 0 for a row without words."""
    largest = h.masked_fill(~mask[..., None], torch.finfo(h.dtype).min).amax(1)
    return largest.masked_fill(~mask.any(1, keepdim=True), 0)


def last_states(h: Tensor, mask: Tensor, bidirectional: bool = True) -> Tensor:
    """Selects the state after each direction's last real step: the forward state at the end of the review, the backward
    state at its start. h: [B, T, N·D];  mask: bool [B, T] -> [B, N·D]"""
    end = (mask.sum(1) - 1).clamp(min=0)
    at_end = h[torch.arange(h.size(0), device=h.device), end]  # [B, N·D]
    if not bidirectional:
        return at_end
    forward, _ = at_end.chunk(2, -1)
    _, backward = h[:, 0].chunk(2, -1)
    return torch.cat([forward, backward], -1)


class Pooling(Module):
    """Concatenates n poolings over time, given as `max` or `max+mean`. [B, T, D] -> [B, n·D]

    Raises ValueError for an unknown pooling.
    """

    def __init__(self, kinds: str, width: int, bidirectional: bool = True) -> None:
        super().__init__()
        self.kinds, self.bidirectional = kinds.split("+"), bidirectional
        if unknown := [kind for kind in self.kinds if kind not in POOLINGS]:
            raise ValueError(f"unknown pooling {unknown[0]!r}; known: {', '.join(POOLINGS)}, joined by +")
        self.attention = AdditiveAttention(width, width) if "attention" in self.kinds else None
        self.width = width * len(self.kinds)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, D];  mask: bool [B, T] -> [B, n·D]"""
        return torch.cat([self.pool_by(kind, h=h, mask=mask) for kind in self.kinds], -1)

    def pool_by(self, kind: str, h: Tensor, mask: Tensor) -> Tensor:
        """Applies one pooling. h: [B, T, D];  mask: bool [B, T] -> [B, D]"""
        if kind == "attention" and self.attention is not None:
            return self.attention(h, mask)[0]
        if kind == "last":
            return last_states(h, mask, bidirectional=self.bidirectional)
        return masked_mean(h, mask) if kind == "mean" else masked_max(h, mask)


class ReceptiveField(NamedTuple):
    """Describes which words a recurrent state depends on, for language modelling (losses/lm.py).

    The forward state of step s depends on the words up to stride·s + ahead, the backward state on those from
    stride·s - behind on.
    """

    directions: int
    stride: int = 1
    ahead: int = 0
    behind: int = 0


@dataclass(frozen=True, kw_only=True)
class WordConfig:
    """Settings of every network over words; a network adds its own and overrides defaults."""

    vocab_size: int = 30000
    embedding_size: int = 300
    embedding_range: float = 1.0
    word_dropout: float = 0.3
    embedding_dropout: float = 0.5
    dropout: float = 0.5
    pad_token_id: int = 0
    unk_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class WordClassifier(Module):
    """Maps word ids [B, T] to logits [B, C]; base class of the networks over words.

    x = embed(ids)    h = encode(x)    features = pool(h)    logits = classifier(features)

    The constructor of a subclass calls this one, then creates the layers. The order of creation determines which random
    numbers initialize each layer. A subclass defines `encode`, and `pool` unless it has a `pooling`.
    embedding_size: replaces the config's value.
    """

    model_type: str  # of config.json
    architecture: str  # of config.json
    Config: type[WordConfig]
    # no published checkpoints to translate (nn/encoder.py)
    KEYS: dict[str, str] = {}  # noqa: RUF012
    EXTRAS: tuple[str, ...] = ()
    CONFIG_KEYS: dict[str, str] = {}  # noqa: RUF012
    SUPPORTED: dict[str, tuple] = {}  # noqa: RUF012
    ALIASES: dict[str, str] = {}  # noqa: RUF012
    # modules of the head: language modelling does not train them, and a checkpoint may lack them
    HEAD: tuple[str, ...] = ("pooling", "classifier")
    NEW_HEAD = True  # whether a new last layer can replace that of a checkpoint

    pooling: Pooling
    dropout: Dropout
    classifier: Any  # Linear, or a module with in_features

    def __init__(self, config: WordConfig, embedding_size: int | None = None) -> None:
        super().__init__()
        self.config: Any = config  # of the subclass's Config
        self.checkpointing: bool = False  # whether training recomputes activations instead of storing them
        self.newly_initialized: frozenset[str] = frozenset()  # parameters that the checkpoint does not contain
        self.class_order: tuple[int, ...] = ()  # row of the checkpoint's head for each class
        self.source: Path | None = None  # folder of the checkpoint
        self.adapter: Any = None  # always None, like virtual and merged: adapters are for encoders
        self.virtual: Any = None
        self.merged: Any = None
        self.projection: Any = None  # SupCon's projection head, used in training only
        self.pretraining: Any = None  # heads of pretraining (losses/lm.py, losses/tv.py), used in training only
        self.layers: Any = ()  # a stack of layers; only the Transformer has one
        self.embeddings: Any = WordEmbedding(  # a subclass may have others
            vocab_size=config.vocab_size,
            embedding_size=config.embedding_size if embedding_size is None else embedding_size,
            embedding_range=config.embedding_range,
            pad_id=config.pad_token_id,
            unk_id=config.unk_token_id,
            word_dropout=config.word_dropout,
            dropout=config.embedding_dropout,
        )

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Returns which words the states depend on; None for a network that is not recurrent, by its config."""
        bidirectional = getattr(self.config, "bidirectional", None)
        return None if bidirectional is None else ReceptiveField(1 + bidirectional)

    def fit(self, corpus: Corpus) -> None:
        """Computes statistics of the training reviews before a model with random weights is trained; here none."""

    def rows(self, input_ids: Tensor) -> Tensor:
        """Embeds the words without dropout. input_ids: [B, T] or [T] -> [B, T, E] or [T, E]"""
        return self.embeddings.word(input_ids)

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Embeds the words. input_ids: [B, T];  mask: bool [B, T] -> [B, T, E]"""
        return self.embeddings(input_ids, mask)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the hidden states. x: [B, T, E];  mask: bool [B, T] -> [B, T, D]"""
        raise NotImplementedError

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools the hidden states over time. h: [B, T, D];  mask: bool [B, T] -> [B, n·D] for n poolings"""
        return self.dropout(self.pooling(h, mask))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the input of the classifier, [B, n·D]."""
        check_inputs(input_ids, mask)
        return self.pool(self.encode(self.embed(input_ids, mask), mask), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real word, padding on the right -> logits [B, C]"""
        return self.classifier(self.features(input_ids, mask))
