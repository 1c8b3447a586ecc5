"""The parts that BERT and its descendants share: embeddings, feed-forward, post-norm block, pooler, initialisation.

    e  = LN(word[id] + type[0] + position[t])                  Devlin et al. 2019, arXiv 1810.04805, Fig. 2
    a  = LN(x + dropout(SelfAttention(x)))                     Vaswani et al. 2017, arXiv 1706.03762, §3.1 and §5.4
    y  = LN(a + dropout(W₂ act(W₁ a + b₁) + b₂))               §3.3, Eq. (2)
    f  = act(W dropout(h_[CLS]) + b)                           the pooler

Differs from the published code: what nobody reads is not worked out. A classifier reads [CLS] alone, so the last layer
has the keys and values of all tokens, but one query, one residual and one feed-forward a review: of L layers, nearly
one less, with the same logits and gradients. Masked language modelling reads the masked tokens alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
from torch.utils.checkpoint import checkpoint

from nn.attention import Prefix, Queries, pick
from nn.dropout import Dropout

ACTIVATIONS = {
    "gelu": F.gelu,  # exact: x · Φ(x), Hendrycks & Gimpel 2016, arXiv 1606.08415
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def activation(name: str):
    """The elementwise function called `name` in a published config.json. Raises ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def init_weights(module: Module, std: float) -> None:
    """BERT's initialisation of every layer below `module`: weights N(0, std²), the padding row 0, biases 0, norms 1."""
    for layer in module.modules():
        if isinstance(layer, LayerNorm):
            layer.reset_parameters()
        elif isinstance(layer, Linear | Embedding | torch.nn.Conv1d):
            layer.weight.data.normal_(0.0, std)
            if getattr(layer, "bias", None) is not None:
                layer.bias.data.zero_()
            if isinstance(layer, Embedding) and layer.padding_idx is not None:
                layer.weight.data[layer.padding_idx].zero_()


def run_layer(layer: Module, checkpointing: bool, *inputs) -> Tensor:
    """layer(*inputs); with checkpointing, only the inputs are kept and the layer runs again in the backward pass,
    with the same random state (Chen et al. 2016, arXiv 1604.06174)."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def run_layers(
    layers: ModuleList, checkpointing: bool, x: Tensor, mask: Tensor, prefix: list[Prefix] | None, queries: Queries
) -> Tensor:
    """Layer after layer. x: [B, S, D];  mask: bool [B, S];  prefix: keys and values for each layer;
    queries: which tokens are wanted of the last -> [B, T, D]"""
    last = len(layers) - 1
    for number, layer in enumerate(layers):
        pair, wanted = prefix[number] if prefix else None, queries if number == last else None
        x = run_layer(layer, checkpointing, x, mask, pair, wanted)
    return x


class SharedEmbedding(Module):
    """E_D = sg(E_G) + E_Δ: another table's rows, as constants, plus rows of its own that start at 0
    (He et al. 2021, arXiv 2111.09543, §3.3). E_G -> base, which belongs to another module;  E_Δ -> delta [V, E].
    """

    def __init__(self, base: Embedding) -> None:
        super().__init__()
        self.base = (base,)  # in a tuple: not a part of this module
        self.delta = Parameter(torch.zeros_like(base.weight))
        self.padding_idx = base.padding_idx

    @property
    def weight(self) -> Tensor:
        """E_D, [V, E]"""
        return self.base[0].weight.detach() + self.delta

    @property
    def table(self) -> Tensor:
        """E_G, where word vectors go."""
        return self.base[0].weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, E]"""
        return self.base[0](input_ids).detach() + F.embedding(input_ids, self.delta, self.padding_idx)


class Embeddings(Module):
    """e = dropout(m · LN(W_p (word[id] + type[0] + position[t])))

    m is the mask: padding embeds to zero. positions or types of 0 leave that table out; W_p exists only where
    embedding_size differs from hidden_size. `word` gives the first summand alone, `combine` does the rest.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        positions: int,
        types: int,
        pad_id: int | None,
        eps: float,
        dropout: float,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        width = embedding_size or hidden_size
        self.word = Embedding(vocab_size, width, padding_idx=pad_id)
        self.position = Embedding(positions, width) if positions else None
        self.token_type = Embedding(types, width) if types else None
        self.project = Linear(width, hidden_size, bias=False) if width != hidden_size else None
        self.norm = LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)

    def combine(self, words: Tensor, mask: Tensor, first_position: int = 0) -> Tensor:
        """words: [B, T, E];  mask: bool [B, T] -> [B, T, D]. Raises ValueError when T exceeds the position table.

        first_position: the row of the position table for the first token.
        """
        x, length = words, words.size(1)
        if self.token_type is not None:
            x = x + self.token_type.weight[0]
        if self.position is not None:
            room = self.position.num_embeddings - first_position
            if length > room:
                raise ValueError(f"{length} tokens, but the model has {room} positions; lower --max-length")
            x = x + self.position.weight[first_position : first_position + length]
        if self.project is not None:
            x = self.project(x)  # [B, T, D]
        return self.dropout(self.norm(x).masked_fill(~mask[..., None], 0))

    def forward(self, input_ids: Tensor, mask: Tensor, first_position: int = 0) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, D]"""
        return self.combine(self.word(input_ids), mask, first_position)


class FeedForward(Module):
    """y = W₂ act(W₁ x + b₁) + b₂;   W₁ -> up [F, D], W₂ -> down [D, F]"""

    def __init__(self, hidden_size: int, feed_forward_size: int, act: str) -> None:
        super().__init__()
        self.up = Linear(hidden_size, feed_forward_size)
        self.down = Linear(feed_forward_size, hidden_size)
        self.activation = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # [B, T, D]


class EncoderBlock(Module):
    """a = LN(x + dropout(attention(x, …)));   y = LN(a + dropout(feed_forward(a)))

    attention: a module (x, mask, prefix, queries, *context) -> [B, T, D];  context is handed through to it.
    attention_dropout: the first dropout, where it differs from the second.
    """

    def __init__(
        self,
        attention: Module,
        hidden_size: int,
        feed_forward_size: int,
        act: str,
        eps: float,
        dropout: float,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(hidden_size, feed_forward_size, act)
        self.feed_forward_norm = LayerNorm(hidden_size, eps=eps)
        self.attention_dropout = Dropout(dropout if attention_dropout is None else attention_dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, prefix: Prefix | None = None, queries: Queries = None, *context
    ) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S];  queries: which tokens are worked out -> [B, T, D]"""
        y = self.attention_dropout(self.attention(x, mask, prefix, queries, *context))
        a = self.attention_norm(pick(x, queries) + y)
        return self.feed_forward_norm(a + self.dropout(self.feed_forward(a)))


class Pooler(Module):
    """f = act(W dropout(h_[CLS]) + b), where [CLS] is the first token."""

    def __init__(self, hidden_size: int, act: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = Linear(hidden_size, hidden_size)
        self.activation = activation(act)

    def forward(self, h: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, D]"""
        return self.activation(self.dense(self.dropout(h[:, 0])))
