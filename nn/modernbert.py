"""ModernBERT (Warner et al. 2024, arXiv 2412.13663) as a sequence classifier: pre-norm layers without biases, rotary
positions, local and global attention, gated feed-forward layers.

    x⁰ = LN(word)
    a  = xˡ + attention(LN(xˡ)),   l = 0 … L - 1           without LN in layer 0
    xˡ⁺¹ = a + W₂ (act(u) ⊙ g),   [u; g] = W₁ LN(a)        GeGLU: Shazeer 2020, arXiv 2002.05202, Eq. (6)
    h  = LN(xᴸ)
    f  = LN(act(W p)),   p = h[CLS] or mean over tokens of h;   logits = W_c dropout(f) + b_c

Positions rotate queries and keys (RoPE: Su et al. 2021, arXiv 2104.09864, Eq. (15) and (34)), so that a score depends
on the distance t - s only:

    θ_i = base^(-2i/K),  i = 0 … K/2 - 1
    R(x, t)_i = x_i cos(tθ_i) - x_{i+K/2} sin(tθ_i),   R(x, t)_{i+K/2} = x_{i+K/2} cos(tθ_i) + x_i sin(tθ_i)
    score(t, s) = R(q, t)·R(k, s) / √K

Every n-th layer, from layer 0 on, is global: every token attends to all tokens. In the other layers, token t attends to
the tokens s with |t - s| <= w/2 (sliding window). n -> global_attn_every_n_layers, w -> local_attention:

    layer 0          layers 1, 2       layer 3            keys s ->
    global           local             global             queries t, one per row; w = 4
    base 160,000     base 10,000       base 160,000
    ■ ■ ■ ■ ■ ■ ■    ■ ■ ■ · · · ·     ■ ■ ■ ■ ■ ■ ■
    ■ ■ ■ ■ ■ ■ ■    ■ ■ ■ ■ · · ·     ■ ■ ■ ■ ■ ■ ■
    ■ ■ ■ ■ ■ ■ ■    ■ ■ ■ ■ ■ · ·     ■ ■ ■ ■ ■ ■ ■
    ■ ■ ■ ■ ■ ■ ■    · ■ ■ ■ ■ ■ ·     ■ ■ ■ ■ ■ ■ ■
    …                …                 …

Keys of a prefix are not rotated: all have the position of the first token. They are visible to every query, in local
layers too.

Differs from the RoPE paper: the pairs are (i, i + K/2), not (2i, 2i + 1). Differs from the published code: new weights
are drawn from N(0, initializer_range²), neither truncated nor scaled by layer. Logits are equal up to rounding
(tests/golden).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity, LayerNorm, Linear, Module, ModuleList

from data.checked import check_types
from nn.attention import Prefix, Queries, attend, merge_heads, prepend_prefix, select_queries, split_heads
from nn.autocast import wide
from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, activation, init_weights
from nn.tracing import cached
from nn.words import masked_mean

# our module -> its published name; {}: the number of the layer
KEYS = {
    "embeddings.word": "model.embeddings.tok_embeddings",
    "embeddings.norm": "model.embeddings.norm",
    "layers.{}.attention.query_key_value": "model.layers.{}.attn.Wqkv",
    "layers.{}.attention.output": "model.layers.{}.attn.Wo",
    "layers.{}.attention_norm": "model.layers.{}.attn_norm",
    "layers.{}.feed_forward.up": "model.layers.{}.mlp.Wi",
    "layers.{}.feed_forward.down": "model.layers.{}.mlp.Wo",
    "layers.{}.feed_forward_norm": "model.layers.{}.mlp_norm",
    "final_norm": "model.final_norm",
    "pooler.dense": "head.dense",
    "pooler.norm": "head.norm",
    "classifier": "classifier",
}
# published tensors that a classifier does not use: the output layer of pretraining
EXTRAS = (r"decoder\..*",)
# our config field -> its published name, where they differ
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
    "hidden_act": "hidden_activation",
    "layer_norm_eps": "norm_eps",
    "attention_probs_dropout_prob": "attention_dropout",
}
# published config fields that would change the math, with the values implemented here
SUPPORTED = {"rope_scaling": (None,)}
GLOBAL, LOCAL = "full_attention", "sliding_attention"  # values of layer_types, keys of rope_parameters
POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class ModernBertConfig:
    """Each default is the value of a field that a published config.json omits.

    Newer files have rope_parameters for the two bases and layer_types for the pattern of layers. Both are translated to
    the older fields, which all versions of transformers read. layer_types is kept if the pattern has no period.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    num_layers: int = 22
    num_heads: int = 12
    feed_forward_size: int = 1152
    hidden_act: str = "gelu"
    embedding_dropout: float = 0.0
    attention_probs_dropout_prob: float = 0.0  # of the attention weights, and of the output of the attention
    mlp_dropout: float = 0.0
    classifier_dropout: float = 0.0
    classifier_pooling: str = "cls"  # cls or mean
    classifier_activation: str = "gelu"
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    classifier_bias: bool = False  # of the head's hidden layer; the last layer always has a bias
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    sliding_window: int | None = None  # half of local_attention, which it replaces (transformers 5); None afterwards
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = field(default=10_000.0, metadata={"published": float | None})  # null: global_rope_theta
    # None: by global_attn_every_n_layers
    layer_types: tuple[str, ...] | None = field(default=None, metadata={"published": Any})
    rope_parameters: dict[str, Any] | None = field(default=None, metadata={"published": Any})  # None after construction
    max_position_embeddings: int = 8192  # of pretraining; rotary positions have no table that it could exceed
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int | None = 50283
    labels: tuple[str, ...] = ("negative", "positive")

    def __post_init__(self) -> None:
        if self.classifier_pooling not in POOLINGS:
            supported = ", ".join(POOLINGS)
            raise ValueError(
                f"config: classifier_pooling = {self.classifier_pooling!r} is not supported; supported: {supported}"
            )
        if self.global_attn_every_n_layers < 1:
            raise ValueError(f"config: global_attn_every_n_layers = {self.global_attn_every_n_layers} is less than 1")
        window = self.local_attention
        if self.sliding_window is not None and self.sliding_window != window // 2:
            if window != type(self).local_attention:
                given = f"sliding_window = {self.sliding_window}, local_attention = {window}"
                raise ValueError(f"config: {given}: the second must be twice the first")
            window = 2 * self.sliding_window
        bases = rope_bases(self.rope_parameters)
        for_global = bases.get(GLOBAL, self.global_rope_theta)
        for_local = bases.get(LOCAL, for_global if self.local_rope_theta is None else self.local_rope_theta)
        every, types = layer_pattern(self.layer_types, self.num_layers, self.global_attn_every_n_layers)
        values = {
            "global_rope_theta": for_global,
            "local_rope_theta": for_local,
            "rope_parameters": None,
            "local_attention": window,
            "sliding_window": None,
        }
        for name, value in (values | {"global_attn_every_n_layers": every, "layer_types": types}).items():
            object.__setattr__(self, name, value)

    def is_global(self, layer: int) -> bool:
        """Returns whether a layer has global attention."""
        if self.layer_types is not None:
            return self.layer_types[layer] == GLOBAL
        return layer % self.global_attn_every_n_layers == 0


def rope_bases(parameters: Any) -> dict[str, float]:
    """Returns the bases in a config's rope_parameters, by kind of layer.

    Raises ValueError for rotary positions of another kind than those of the module docstring.
    """
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or set(parameters) - {GLOBAL, LOCAL}:
        raise ValueError(f"config: rope_parameters = {parameters!r} is not supported; keys: {GLOBAL}, {LOCAL}")
    bases = {}
    for kind, values in parameters.items():
        check_types({kind: values}, {kind: dict[str, Any] | None})
        for name, value in (values or {}).items():
            if name == "rope_theta":
                check_types({name: value}, {name: float})
                if not 1 <= value <= 1e12:
                    raise ValueError(f"config: rope_parameters.{kind}.rope_theta = {value} is outside 1 … 1e12")
                bases[kind] = float(value)
            elif name not in ("rope_type", "type") or value != "default":
                raise ValueError(f"config: rope_parameters.{kind}.{name} = {value!r} is not supported")
    return bases


def layer_pattern(types: Any, num_layers: int, every: int) -> tuple[int, tuple[str, ...] | None]:
    """Translates a config's layer_types to n if every n-th layer, from layer 0 on, is global.

    Returns (n, None), or (every, types) if there is no such n. Raises ValueError for an unknown type and for another
    number of types than of layers.
    """
    if types is None:
        return every, None
    if not isinstance(types, list | tuple) or any(kind not in (GLOBAL, LOCAL) for kind in types):
        raise ValueError(f"config: layer_types = {types!r} is not supported; supported: {GLOBAL}, {LOCAL}")
    if len(types) != num_layers:
        raise ValueError(f"config: layer_types has {len(types)} entries for {num_layers} layers")
    for n in range(1, num_layers + 1):
        if all((kind == GLOBAL) == (layer % n == 0) for layer, kind in enumerate(types)):
            return n, None
    return every, tuple(types)


@cached
def rotations(length: int, width: int, base: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Computes cos(tθ_i) and sin(tθ_i) for t = 0 … S - 1: [S, K/2] each. length: S;  width: K"""
    with torch.inference_mode(False):  # a tensor that was cached in evaluation is used in training too
        theta = 1.0 / base ** (torch.arange(0, width, 2, dtype=dtype, device=device) / width)  # [K/2]
        angle = torch.arange(length, dtype=dtype, device=device)[:, None] * theta  # [S, K/2]
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Computes R(x, t), in the dtype of cos. x: [B, H, T, K];  cos, sin: broadcast to [B, 1, T, K/2] -> [B, H, T, K]"""
    first, second = x.to(cos.dtype).chunk(2, -1)  # [B, H, T, K/2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def query_positions(queries: Queries, length: int, device: torch.device) -> Tensor:
    """Returns the positions of the queries among S = length tokens: int64 [1 or B, 1, T]"""
    if isinstance(queries, Tensor):
        return queries[:, None]
    return torch.arange(length, device=device)[None, None, :queries]


class RotaryAttention(Module):
    """y = W_o concat_h( softmax(score_h) v_h ), with the scores of the module docstring, restricted to visible keys.

    W_q, W_k, W_v -> query_key_value, one layer [3D, D], as published; W_o -> output;  H -> num_heads;  base: of RoPE;
    reach: w/2, the largest visible distance; None: all tokens are visible. Raises ValueError for an odd width per head.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, base: float, reach: int | None, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        if hidden_size % (2 * num_heads):
            raise ValueError(f"rotary positions need an even width per head, not {hidden_size} / {num_heads}")
        self.num_heads, self.base, self.reach = num_heads, base, reach
        self.query_key_value = Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.output = Linear(hidden_size, hidden_size, bias=bias)
        self.dropout = Dropout(dropout)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes x W_k, not rotated, and x W_v. [B, S, D] -> [B, S, D] each"""
        _, k, v = self.query_key_value(x).chunk(3, -1)
        return k, v

    def visible(self, mask: Tensor, positions: Tensor) -> Tensor:
        """Returns the keys that each query attends to. mask: bool [B, S];  positions: of the queries, int64
        [1 or B, 1, T] -> bool [B, 1, 1 or T, S]"""
        real = mask[:, None, None, :]  # [B, 1, 1, S]
        if self.reach is None:
            return real
        distance = positions[..., None] - torch.arange(mask.size(1), device=mask.device)  # [1 or B, 1, T, S]
        return real & (distance.abs() <= self.reach)

    def forward(self, x: Tensor, mask: Tensor, prefix: Prefix | None = None, queries: Queries = None) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S], True = real token;  prefix: keys and values [B or 1, H, P, K];
        queries: query positions -> [B, T, D]"""
        q, k, v = self.query_key_value(x).chunk(3, -1)  # [B, S, D]
        q = split_heads(select_queries(q, queries), self.num_heads)  # [B, H, T, K]
        k, v = split_heads(k, self.num_heads), split_heads(v, self.num_heads)  # [B, H, S, K]
        dtype = wide(x.dtype)
        cos, sin = rotations(x.size(1), k.size(-1), base=self.base, dtype=dtype, device=x.device)  # [S, K/2]
        positions = query_positions(queries, x.size(1), x.device)  # [1 or B, 1, T]
        q, k = rotate(q, cos[positions], sin[positions]), rotate(k, cos, sin)
        k, v, visible = prepend_prefix(k, v, mask=self.visible(mask, positions), prefix=prefix)  # S becomes P + S
        return self.output(merge_heads(attend(q, k, v, mask=visible, dropout=self.dropout)))  # [B, T, D]


class GatedFeedForward(Module):
    """y = W₂ dropout(act(u) ⊙ g),   [u; g] = W₁ x;   W₁ -> up [2F, D], W₂ -> down [D, F]"""

    def __init__(self, hidden_size: int, feed_forward_size: int, act: str, bias: bool, dropout: float) -> None:
        super().__init__()
        self.up = Linear(hidden_size, 2 * feed_forward_size, bias=bias)
        self.down = Linear(feed_forward_size, hidden_size, bias=bias)
        self.activation = activation(act)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        u, g = self.up(x).chunk(2, -1)  # [B, T, F]
        return self.down(self.dropout(self.activation(u) * g))


class ModernBertBlock(Module):
    """a = x + dropout(attention(LN(x)));   y = a + feed_forward(LN(a));   without the first LN in layer 0, whose input
    the embeddings have normalized."""

    def __init__(self, config: ModernBertConfig, layer: int) -> None:
        super().__init__()
        c = config
        first = layer == 0
        self.attention_norm = Identity() if first else LayerNorm(c.hidden_size, eps=c.layer_norm_eps, bias=c.norm_bias)
        is_global = c.is_global(layer)
        self.attention = RotaryAttention(
            hidden_size=c.hidden_size,
            num_heads=c.num_heads,
            base=c.global_rope_theta if is_global else c.local_rope_theta,
            reach=None if is_global else c.local_attention // 2,
            bias=c.attention_bias,
            dropout=c.attention_probs_dropout_prob,
        )
        self.feed_forward_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, bias=c.norm_bias)
        self.feed_forward = GatedFeedForward(
            hidden_size=c.hidden_size,
            feed_forward_size=c.feed_forward_size,
            act=c.hidden_act,
            bias=c.mlp_bias,
            dropout=c.mlp_dropout,
        )
        self.dropout = Dropout(c.attention_probs_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor, prefix: Prefix | None = None, queries: Queries = None) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S];  prefix: keys and values [B or 1, H, P, K];  queries: query positions
        -> [B, T, D]"""
        y = self.attention(self.attention_norm(x), mask, prefix=prefix, queries=queries)  # [B, T, D]
        a = select_queries(x, queries) + self.dropout(y)
        return a + self.feed_forward(self.feed_forward_norm(a))


class ModernBertHead(Module):
    """f = LN(act(W p));   p: the first row of h;  W -> dense, with a bias if classifier_bias"""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        c = config
        self.dense = Linear(c.hidden_size, c.hidden_size, bias=c.classifier_bias)
        self.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, bias=c.norm_bias)
        self.activation = activation(c.classifier_activation)

    def forward(self, h: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, D]"""
        return self.norm(self.activation(self.dense(h[:, 0])))


class ModernBert(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "modernbert", "ModernBertForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = ModernBertConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = ("head", "classifier")
    LORA_TARGETS = ("query_key_value",)
    PREFIX_SHIFTS = False

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        c = config
        self.pools_all = c.classifier_pooling == "mean"
        self.embeddings = Embeddings(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_positions=0,
            num_types=0,
            pad_id=c.pad_token_id,
            eps=c.layer_norm_eps,
            dropout=c.embedding_dropout,
        )
        self.embeddings.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, bias=c.norm_bias)
        self.layers = ModuleList(ModernBertBlock(c, layer) for layer in range(c.num_layers))
        self.final_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, bias=c.norm_bias)
        self.pooler: Any = ModernBertHead(c)
        self.dropout = Dropout(c.classifier_dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        init_weights(self, c.initializer_range)

    def mlm_activation(self) -> str:
        """Returns the name of the activation in the published head of masked language modelling."""
        return self.config.classifier_activation

    def encode(self, x: Tensor, mask: Tensor, prefix: list[Prefix] | None = None, queries: Queries = None) -> Tensor:
        """Runs the layers and the last norm. Arguments and result: `Encoder.encode`."""
        return self.final_norm(super().encode(x, mask, prefix, queries))

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """Pools the first token, or the mean of all. h: [B, T, D];  mask: bool [B, T] -> [B, D]"""
        pooled = masked_mean(h, mask)[:, None] if self.pools_all else h  # [B, 1 or T, D]
        return self.dropout(self.pooler(pooled))
