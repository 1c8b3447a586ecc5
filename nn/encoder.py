"""The layers that BERT and its descendants share, and `Encoder`, the base class of these models.

    input_ids          embed              encode             pool           classifier
     [B, S]    ──▶   x [B, S, D]   ──▶   h [B, T, D]   ──▶   f [B, D]   ──▶   logits [B, C]
                        ▲                   ▲
          virtual tokens among words     prefix: extra keys and values in every layer

    x  = dropout(LN(word[id] + type[0] + position[t]))         Devlin et al. 2019, arXiv 1810.04805, Fig. 2: the sum
    a  = LN(x + dropout(SelfAttention(x)))                     Vaswani et al. 2017, arXiv 1706.03762, §3.1 and §5.4
    y  = LN(a + dropout(W₂ act(W₁ a + b₁) + b₂))               §3.3, Eq. (2)
    f  = act(W dropout(h_[CLS]) + b)                           the pooler

Differs from the papers: the pooler, and LN and dropout after the sum of embeddings, are those of the published code.
Differs from the published code: unused outputs are not computed. If the classifier reads [CLS] only, the last layer
has keys and values of all tokens, and one query, residual and feed-forward per review (T = 1). This saves
nearly one of L layers; logits and gradients are the same. In masked language modelling the queries of the last layer
are the predicted positions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Conv1d, Embedding, Identity, LayerNorm, Linear, Module, ModuleList, Parameter
from torch.utils.checkpoint import checkpoint

from nn.attention import MultiHeadAttention, Prefix, Queries, check_inputs, select_queries
from nn.autocast import product_dtype
from nn.dropout import SOURCE, Dropout, mask_generator
from nn.onednn import current_library

GELU_TANH = partial(F.gelu, approximate="tanh")  # ½x (1 + tanh(√(2/π) (x + 0.044715 x³))), from the paper of "gelu"


def quick_gelu(x: Tensor) -> Tensor:
    """Computes x · σ(1.702 x) (Hendrycks & Gimpel 2016, arXiv 1606.08415, §2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact: x · Φ(x), Hendrycks & Gimpel 2016, arXiv 1606.08415, §2
    "gelu_python": F.gelu,
    "gelu_new": GELU_TANH,
    "gelu_fast": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "quick_gelu": quick_gelu,
    "silu": F.silu,  # x · σ(x), ibid.
    "swish": F.silu,  # its name in Ramachandran et al. 2017, arXiv 1710.05941
    "mish": F.mish,  # x · tanh(log(1 + eˣ)), Misra 2019, arXiv 1908.08681
    "relu": F.relu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the elementwise function with this name in a published config.json. Raises ValueError if unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def init_weights(module: Module, std: float) -> None:
    """Initializes every layer in `module` as transformers does: weights N(0, std²), padding row 0, biases 0, norms 1.

    BERT's authors draw from a normal distribution that is truncated at two standard deviations.
    """
    for layer in module.modules():
        if isinstance(layer, LayerNorm):
            layer.reset_parameters()
        elif isinstance(layer, Linear | Embedding | Conv1d):
            layer.weight.data.normal_(0.0, std)
        if isinstance(layer, Linear | Conv1d) and layer.bias is not None:
            layer.bias.data.zero_()
        if isinstance(layer, Embedding) and layer.padding_idx is not None:
            layer.weight.data[layer.padding_idx].zero_()


def in_product_dtype(x: Tensor) -> Tensor:
    """Casts x to bf16 under autocast to bf16, else returns x.

    Residuals, norms and activations of the layers then have the dtype of the products, and nothing is cast between
    them. Norms and softmax compute in fp32 inside their kernels. On CUDA and MPS, autocast returns fp32 from them.
    """
    return x.bfloat16() if product_dtype(x) == torch.bfloat16 else x


def checkpointed(layer: Module, enabled: bool) -> Callable[..., Tensor]:
    """Returns a function with the arguments of `layer`, with activation checkpointing if enabled.

    With checkpointing only the inputs are stored; the backward pass runs the layer again with the same random state
    (Chen et al. 2016, arXiv 1604.06174). Without gradients there is nothing to store, and `layer` itself is returned.
    """
    if not (enabled and torch.is_grad_enabled()):
        return layer
    own = SOURCE.generator is not None  # the default generator, which all threads share, is then left alone
    return partial(
        checkpoint, layer, use_reentrant=False, preserve_rng_state=not own, context_fn=lambda: (nullcontext(), Again())
    )


class Again:
    """The context in which a checkpointed layer is computed again: the same library, and the same dropout masks if the
    thread has a generator of its own."""

    def __init__(self) -> None:
        self.library = current_library()
        self.masks = SOURCE.generator and SOURCE.generator.clone_state()

    def __enter__(self) -> None:
        self.opened = ExitStack()
        self.opened.enter_context(self.library)
        self.opened.enter_context(mask_generator(self.masks and self.masks.clone_state()))

    def __exit__(self, *error: object) -> None:
        self.opened.close()


class SharedEmbedding(Module):
    """E_D = sg(E_G) + E_Δ: the rows of another table, as constants, plus a trained difference that starts at 0
    (He et al. 2021, arXiv 2111.09543, §3.3). E_G -> base, a table of another module;  E_Δ -> delta [V, E].
    """

    def __init__(self, base: Embedding) -> None:
        super().__init__()
        self.base = (base,)  # the tuple keeps torch from registering the table as a submodule
        self.delta = Parameter(torch.zeros_like(base.weight))
        self.padding_idx = base.padding_idx

    @property
    def weight(self) -> Tensor:
        """E_D, [V, E]"""
        return self.base[0].weight.detach() + self.delta

    @property
    def table(self) -> Tensor:
        """E_G, [V, E]: the table that word vectors are copied to."""
        return self.base[0].weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, E]"""
        return self.base[0](input_ids).detach() + F.embedding(input_ids, self.delta, self.padding_idx)


class Embeddings(Module):
    """x = dropout(m · LN(W_p (word[id] + type[0] + position[t])))

    m is the mask: the embedding of padding is 0. There is no position or type table if num_positions or num_types is 0;
    there is a W_p only if embedding_size differs from hidden_size. `word` computes word[id], `combine` the rest.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_positions: int,
        num_types: int,
        pad_id: int | None,
        eps: float,
        dropout: float,
        embedding_size: int | None = None,
    ) -> None:
        super().__init__()
        width = embedding_size or hidden_size
        self.word = Embedding(vocab_size, width, padding_idx=pad_id)
        self.position = Embedding(num_positions, width) if num_positions else None
        self.token_type = Embedding(num_types, width) if num_types else None
        self.project = Linear(width, hidden_size, bias=False) if width != hidden_size else None
        self.norm = LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)

    def combine(self, words: Tensor, mask: Tensor, first_position: int = 0, positions: Tensor | None = None) -> Tensor:
        """Adds types and positions and applies projection, norm, mask and dropout.

        words: [B, T, E];  mask: bool [B, T];  first_position: row of the position table for the first token;
        positions: the row of each token, int64 [B, T]; None: consecutive rows -> [B, T, D]. Raises ValueError if T
        exceeds the position table.
        """
        x, length = words, words.size(1)
        if self.token_type is not None:
            x = x + self.token_type.weight[0]
        if self.position is not None:
            available = self.position.num_embeddings - first_position
            if length > available:
                raise ValueError(f"{length} tokens, but the model has {available} positions; lower --max-length")
            rows = slice(first_position, first_position + length) if positions is None else positions
            x = x + self.position.weight[rows]
        if self.project is not None:
            x = self.project(x)  # [B, T, D]
        return self.dropout(self.norm(x).masked_fill(~mask[..., None], 0))

    def forward(self, input_ids: Tensor, mask: Tensor, first_position: int = 0) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T] -> [B, T, D]"""
        return self.combine(self.word(input_ids), mask=mask, first_position=first_position)


class FeedForward(Module):
    """y = W₂ act(W₁ x + b₁) + b₂;   W₁ -> up [F, D], W₂ -> down [D, F]"""

    def __init__(self, hidden_size: int, feed_forward_size: int, act: str) -> None:
        super().__init__()
        self.up = Linear(hidden_size, feed_forward_size)
        self.down = Linear(feed_forward_size, hidden_size)
        self.activation = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        return self.down(self.activation(self.up(x)))


class EncoderBlock(Module):
    """a = LN(x + dropout(attention(x)));   y = LN(a + dropout(feed_forward(a)))

    attention: a module with the arguments of MultiHeadAttention.forward, and with `relative` if the block gets it;
    attention_dropout: the first dropout, by default equal to the second.
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
        self.feed_forward = FeedForward(hidden_size=hidden_size, feed_forward_size=feed_forward_size, act=act)
        self.feed_forward_norm = LayerNorm(hidden_size, eps=eps)
        self.attention_dropout = Dropout(dropout if attention_dropout is None else attention_dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        prefix: Prefix | None = None,
        queries: Queries = None,
        relative: Tensor | None = None,
    ) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S];  prefix: keys and values [B or 1, H, P, K];  queries: query positions;
        relative: DeBERTa's table of relative positions, [2s, D] -> [B, T, D]"""
        attend = self.attention if relative is None else partial(self.attention, relative=relative)
        y = self.attention_dropout(attend(x, mask, prefix=prefix, queries=queries))  # [B, T, D]
        a = self.attention_norm(select_queries(x, queries) + y)
        return self.feed_forward_norm(a + self.dropout(self.feed_forward(a)))


def bert_layers(c: Any) -> ModuleList:
    """Builds the layers of BERT, RoBERTa and ELECTRA. c: a config with the fields of BertConfig"""
    return ModuleList(
        EncoderBlock(
            attention=MultiHeadAttention(
                hidden_size=c.hidden_size, num_heads=c.num_heads, dropout=c.attention_probs_dropout_prob
            ),
            hidden_size=c.hidden_size,
            feed_forward_size=c.feed_forward_size,
            act=c.hidden_act,
            eps=c.layer_norm_eps,
            dropout=c.hidden_dropout_prob,
        )
        for _ in range(c.num_layers)
    )


class Pooler(Module):
    """f = act(W dropout(h_[CLS]) + b), where [CLS] is the first token. dropout: None for an architecture without it."""

    def __init__(self, hidden_size: int, act: str, dropout: float | None = None) -> None:
        super().__init__()
        self.dropout = Identity() if dropout is None else Dropout(dropout)
        self.dense = Linear(hidden_size, hidden_size)
        self.activation = activation(act)

    def forward(self, h: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, D]"""
        return self.activation(self.dense(self.dropout(h[:, 0])))


class Encoder(Module):
    """Base class of the pretrained encoders: token ids [B, T] -> logits [B, C].

    A subclass creates the five modules below in its constructor, and defines the constants below, which other packages
    read. The order of creation determines which random numbers initialize each module.
    """

    model_type: str  # of config.json
    architecture: str  # of config.json
    Config: type  # a frozen dataclass
    KEYS: dict[str, str]  # our module -> its published name
    EXTRAS: tuple[str, ...]  # patterns of published tensors that a classifier does not use
    CONFIG_KEYS: dict[str, str]  # our config field -> its published name, where they differ
    SUPPORTED: dict[str, tuple]  # published config fields that would change the math -> the values implemented here
    HEAD: tuple[str, ...]  # modules of the head: every method trains them, and a checkpoint may lack them
    HEAD_MODULES: tuple[str, ...]  # names of these modules in huggingface/peft
    ALIASES: dict[str, str] = {}  # noqa: RUF012  other names of config fields -> their published names
    NEW_HEAD = True  # whether a new last layer can replace that of a checkpoint
    LORA_TARGETS: tuple[str, ...]  # layers that LoRA adapts by default
    PREFIX_SHIFTS: bool  # whether a prefix of P virtual tokens shifts the positions of the tokens by P

    embeddings: Any  # Embeddings
    layers: Any  # ModuleList of blocks with the arguments of EncoderBlock.forward
    pooler: Any  # Pooler, or a module with its forward
    dropout: Dropout
    classifier: Linear

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.first_position: int = 0  # row of the position table for the first token
        self.pools_all: bool = False  # whether `pool` needs all tokens, not [CLS] alone
        self.checkpointing: bool = False  # whether training recomputes activations instead of storing them
        self.newly_initialized: frozenset[str] = frozenset()  # parameters that the checkpoint does not contain
        self.class_order: tuple[int, ...] = ()  # row of the checkpoint's head for each class
        self.source: Path | None = None  # folder of the checkpoint
        self.adapter: Any = None  # method and options of an attached adapter, a dict
        self.virtual: Any = None  # module (model, input_ids, mask) -> features, of prompt and prefix methods
        self.merged: Any = None  # the adapter that was merged into the weights
        self.projection: Any = None  # SupCon's projection head, a module for training only
        self.pretraining: Any = None  # heads of pretraining, a module for training only

    def mlm_activation(self) -> str:
        """Returns the name of the activation in the published head of masked language modelling."""
        return self.config.hidden_act

    def embed(self, input_ids: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T];  shift: number of positions before the first token,
        those of a prefix -> [B, T, D]"""
        return self.embeddings(input_ids, mask, first_position=self.first_position + shift)

    def embed_words(self, words: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """words: word embeddings, virtual tokens among them, [B, T, E];  mask: bool [B, T] -> [B, T, D]"""
        return self.embeddings.combine(words, mask, first_position=self.first_position + shift)

    def steps(
        self, prefix: list[Prefix] | None, queries: Queries
    ) -> Iterator[tuple[Callable[..., Tensor], Prefix | None, Queries]]:
        """Yields each layer with its prefix and its queries; only the last layer has fewer queries than tokens."""
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            pair, selected = prefix[number] if prefix else None, queries if number == last else None
            yield checkpointed(layer, self.checkpointing), pair, selected

    def pooled_queries(self, first: int = 0) -> Queries:
        """Returns the query positions of the last layer that `pool` needs if [CLS] has position `first`."""
        return None if self.pools_all else first + 1

    def encode(self, x: Tensor, mask: Tensor, prefix: list[Prefix] | None = None, queries: Queries = None) -> Tensor:
        """Runs the layers. x: [B, S, D];  mask: bool [B, S];  prefix: keys and values for each layer;  queries: query
        positions of the last layer (nn/attention.py) -> [B, T, D]"""
        x = in_product_dtype(x)
        for layer, pair, selected in self.steps(prefix, queries):
            x = layer(x, mask, prefix=pair, queries=selected)
        return x  # [B, T, D]

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools the first token. h: [B, T, D];  mask: bool [B, T], unused here -> [B, D]"""
        return self.dropout(self.pooler(h))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the input of the classifier, [B, D]."""
        check_inputs(input_ids, mask)
        if self.virtual is not None:
            return self.virtual(self, input_ids, mask)
        return self.pool(self.encode(self.embed(input_ids, mask), mask, queries=self.pooled_queries()), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real token, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
