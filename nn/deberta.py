"""DeBERTa-v2 and -v3 (He et al. 2021, arXiv 2006.03654, §3.1; v3: arXiv 2111.09543) as sequence classifiers.

Disentangled attention adds separate scores of content and relative position (Eq. 4). δ(q,k) is the row of the table of
relative positions for the distance q - k. All layers share R, which is LN(table), or the table if norm_rel_ebd is none:

    Q = x W_q,  K = x W_k,  V = x W_v,   K_r = R W_k,  Q_r = R W_q
    A[q,k] = ( Q[q]·K[k]  +  Q[q]·K_r[δ(q,k)]  +  K[k]·Q_r[δ(q,k)] ) / √(3K)
    δ(q,k) = clamp(bucket(q - k) + s, 0, 2s - 1)
    bucket(r) = r                                                  for |r| <= h,  h = ⌊s/2⌋
                sign(r)·(⌈ln(|r|/h) / ln((M-1)/h) · (h - 1)⌉ + h)    otherwise      (v2: log-spaced buckets)

s -> position_buckets, M -> max_relative_positions; the K under the root is the width per head; the 3 is the number of
scores that are added. The three terms:

                              content of the key                  relative position of the key
                              K = x W_k                           K_r = R W_k
                         ┌──────────────────────────────────┬──────────────────────────────────┐
    content of the query │  Q[q]·K[k]                       │  Q[q]·K_r[δ(q,k)]                │
    Q = x W_q            │  content → content               │  content → position, "c2p"       │
                         ├──────────────────────────────────┼──────────────────────────────────┤
    relative position of │  K[k]·Q_r[δ(q,k)]                │  position → position: omitted,   │
    the query            │  position → content, "p2c"       │  it adds little (§3.1)           │
    Q_r = R W_q          └──────────────────────────────────┴──────────────────────────────────┘

xlarge and xxlarge add a convolution in parallel to the first layer.

Differs from the paper: position → content uses δ(q,k), not δ(k,q), because the published weights were trained with it;
with share_att_key the biases of W_q and W_k are added to the projections of R too.
Differs from the code of transformers: nothing for published shapes (tests/golden). For other shapes, its fp32 logarithm
rounds a few distances to the next bucket. Microsoft's own code maps distances of -512 and below to row 1, not 0.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Conv1d, Embedding, LayerNorm, Linear, Module, ModuleList

from nn.attention import (
    Prefix,
    Queries,
    masked_softmax,
    merge_heads,
    prepend_prefix,
    select_queries,
    split_heads,
    weighted_sum,
)
from nn.block_attention import Rows, block_attention
from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, EncoderBlock, Pooler, activation, in_product_dtype, init_weights
from nn.tracing import cached, is_traced
from nn.triton_attention import disentangled_attention, is_suitable

# our module -> its published name; {}: the number of the layer
KEYS = {
    "embeddings.word": "deberta.embeddings.word_embeddings",
    "embeddings.position": "deberta.embeddings.position_embeddings",
    "embeddings.token_type": "deberta.embeddings.token_type_embeddings",
    "embeddings.project": "deberta.embeddings.embed_proj",
    "embeddings.norm": "deberta.embeddings.LayerNorm",
    "relative": "deberta.encoder.rel_embeddings",
    "relative_norm": "deberta.encoder.LayerNorm",
    "conv.conv": "deberta.encoder.conv.conv",
    "conv.norm": "deberta.encoder.conv.LayerNorm",
    "layers.{}.attention.query": "deberta.encoder.layer.{}.attention.self.query_proj",
    "layers.{}.attention.key": "deberta.encoder.layer.{}.attention.self.key_proj",
    "layers.{}.attention.value": "deberta.encoder.layer.{}.attention.self.value_proj",
    "layers.{}.attention.position_query": "deberta.encoder.layer.{}.attention.self.pos_query_proj",
    "layers.{}.attention.position_key": "deberta.encoder.layer.{}.attention.self.pos_key_proj",
    "layers.{}.attention.output": "deberta.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "deberta.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "deberta.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "deberta.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "deberta.encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "pooler.dense",
    "classifier": "classifier",
}
# published tensors that a classifier does not use: the pretraining heads, an unused position table, and the embedding
# differences of v3, which `.weight` includes
EXTRAS = (
    r"lm_predictions\..*",
    r"mask_predictions\..*",
    r"cls\..*",
    r"embeddings\.position_ids",
    r"embeddings\.position_embeddings\.weight",
    r"embeddings\.(word|position)_embeddings\._weight",
)
# our config field -> its published name, where they differ
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
}
# published config fields that would change the math, with the values implemented here
SUPPORTED = {
    "relative_attention": (True,),
    "norm_rel_ebd": ("layer_norm", "none"),
    "attention_type": ("self",),
}


@dataclass(frozen=True)
class DebertaConfig:
    """Each default is the value of a field that a published config.json omits, not the value of a published model."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_layers: int = 24
    num_heads: int = 24
    feed_forward_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    cls_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("negative", "positive")
    relative_attention: bool = False
    max_relative_positions: int = -1  # below 1: max_position_embeddings
    position_buckets: int = -1  # below 1: one row per distance
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    pos_att_type: tuple[str, ...] = field(default=(), metadata={"published": tuple[str, ...] | str | None})
    position_biased_input: bool = True
    embedding_size: int | None = None  # None: hidden_size
    attention_head_size: int | None = None  # None: hidden_size / num_heads
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    pooler_hidden_size: int | None = None  # None: hidden_size

    def __post_init__(self) -> None:
        if not self.relative_attention:
            raise ValueError("config: relative_attention = False is not supported; supported: True")
        kinds = self.pos_att_type
        kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds or ()
        object.__setattr__(self, "pos_att_type", tuple(kind for kind in kinds if kind))
        unknown = set(self.pos_att_type) - {"c2p", "p2c"}
        if unknown:
            raise ValueError(f"pos_att_type {', '.join(sorted(unknown))} is not supported; supported: c2p, p2c")
        if self.pooler_hidden_size not in (None, self.hidden_size):
            raise ValueError(
                f"pooler_hidden_size {self.pooler_hidden_size} differs from hidden_size {self.hidden_size}"
            )
        if self.embedding_size is None:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        if self.max_relative_positions < 1:
            object.__setattr__(self, "max_relative_positions", self.max_position_embeddings)
        self.check_sizes()

    def check_sizes(self) -> None:
        """Raises ValueError for sizes that contradict each other."""
        if self.attention_head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.position_buckets == 1 or (self.position_buckets > 0 and self.max_relative_positions < 2):
            given = f"position_buckets {self.position_buckets}, max_relative_positions {self.max_relative_positions}"
            raise ValueError(f"{given}: both must be at least 2")
        if self.conv_kernel_size > 0 and (self.conv_kernel_size % 2 == 0 or self.hidden_size % self.conv_groups):
            raise ValueError(
                f"conv_kernel_size {self.conv_kernel_size} must be odd, and conv_groups {self.conv_groups} must divide "
                f"hidden_size {self.hidden_size}"
            )

    @property
    def span(self) -> int:
        """s: half the number of rows of the table of relative positions."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


def log_bucket(distance: Tensor, buckets: int, max_position: int) -> Tensor:
    """Computes bucket(r), odd in r; |result| < buckets for |distance| < max_position.

    distance: int64, any shape -> int64. Raises ValueError if a distance exceeds h and M - 1 does not: the logarithmic
    buckets are undefined then.
    """
    middle = buckets // 2
    if max_position - 1 <= middle and not is_traced() and middle < distance.abs().max():
        raise ValueError(
            f"max_relative_positions {max_position} are too few for {buckets} position_buckets and more than "
            f"{middle + 1} tokens; lower --max-length to {middle + 1}"
        )
    size = distance.abs().clamp(min=middle)  # below the middle the logarithm is not used
    ratio = (size.double() / middle).log() / math.log((max_position - 1) / middle)
    beyond = torch.ceil(ratio * (middle - 1)).long() + middle
    return torch.where(size <= middle, distance, distance.sign() * beyond)


def table_span(buckets: int, max_position: int) -> int:
    """Returns s, half the rows of the table of relative positions."""
    return buckets if buckets > 0 else max_position


def table_row(distance: Tensor, buckets: int, max_position: int) -> Tensor:
    """Computes δ, the row of the table of relative positions. distance: q - k, int64 -> int64, same shape"""
    span = table_span(buckets, max_position)
    if buckets > 0:
        distance = log_bucket(distance, buckets=buckets, max_position=max_position)
    return (distance + span).clamp(0, 2 * span - 1)


@cached
def relative_index(
    num_queries: int, length: int, buckets: int, max_position: int, device: torch.device
) -> tuple[Tensor, int, int]:
    """Computes δ for the first `num_queries` tokens of a sequence of `length`, and the range of its values.

    Returns (index, first, last): index + first = δ, int64 [T, S];  first, last: the smallest and the largest δ.
    """
    with torch.inference_mode(False):  # a tensor that was cached in evaluation is used in training too
        position = torch.arange(length)
        index = table_row(position[:num_queries, None] - position[None, :], buckets, max_position)  # [T, S]
        if is_traced():  # the least and the largest of all distances
            return index.to(device), 0, 2 * table_span(buckets, max_position) - 1
        first, last = int(index.min()), int(index.max())
        return (index - first).to(device), first, last


@cached
def rows_by_distance(
    num_queries: int, length: int, buckets: int, max_position: int, device: torch.device
) -> tuple[Tensor, int, int]:
    """Computes δ - first for the distances T - 1 … 1 - S, int32 [T + S - 1], and first and last of `relative_index`."""
    with torch.inference_mode(False):
        rows = table_row(torch.arange(num_queries - 1, -length, -1), buckets, max_position)  # descending
        if is_traced():
            return rows.int().to(device), 0, 2 * table_span(buckets, max_position) - 1
        first, last = int(rows[-1]), int(rows[0])
        return (rows - first).int().to(device), first, last


def position_scores(x: Tensor, r: Tensor, index: Tensor) -> Tensor:
    """Computes y[t, s] = x[t]·r[δ(t,s)] from the products of x with all rows of r.

    x: [B, H, T, K];  r: [H, N, K];  index: δ, [T, S] or [B, 1, T, S] -> [B, H, T, S]
    """
    scores = x @ r.transpose(-1, -2)  # [B, H, T, N]
    return scores.gather(-1, index.expand(*scores.shape[:2], -1, -1))  # [B, H, T, S]


class DisentangledAttention(Module):
    """y = concat_h( softmax(A[h]) V[h] ) W_o + b_o with A of the module docstring; scale √(K·n), n = 1 + [c2p] + [p2c].

    W_q, W_k, W_v, W_o -> query, key, value, output. Without share_att_key, R has its own position_query, position_key.
    Prefix keys have no position: their relative terms are 0.
    """

    KERNEL = True  # whether a GPU uses the kernels of nn/triton_attention.py; False: the plain form

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        c = config
        self.num_heads, self.span = c.num_heads, c.span
        self.buckets, self.max_position = c.position_buckets, c.max_relative_positions
        self.c2p, self.p2c = "c2p" in c.pos_att_type, "p2c" in c.pos_att_type
        self.head_size = c.attention_head_size or c.hidden_size // c.num_heads
        self.scale = math.sqrt(self.head_size * (1 + self.c2p + self.p2c))
        width = c.num_heads * self.head_size
        self.query = Linear(c.hidden_size, width)
        self.key = Linear(c.hidden_size, width)
        self.value = Linear(c.hidden_size, width)
        self.output = Linear(width, c.hidden_size)
        self.position_key = Linear(c.hidden_size, width) if self.c2p and not c.share_att_key else None
        self.position_query = Linear(c.hidden_size, width) if self.p2c and not c.share_att_key else None
        self.dropout = Dropout(c.attention_probs_dropout_prob)
        self.position_dropout = Dropout(c.hidden_dropout_prob)

    def project_rows(self, relative: Tensor) -> tuple[Rows, Rows]:
        """Projects the rows of R that occur. relative: [N, D]

        Returns K_r and Q_r / scale, [H, N, K], None for a term that is not in pos_att_type.
        """
        rows = self.position_dropout(relative)[None]  # [1, N, D]
        key, query = self.position_key or self.key, self.position_query or self.query
        k_r = split_heads(key(rows), self.num_heads)[0] if self.c2p else None  # [H, N, K]
        q_r = split_heads(query(rows), self.num_heads)[0] / self.scale if self.p2c else None  # [H, N, K]
        return k_r, q_r

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes x W_k and x W_v, which a prefix is initialized from. [B, S, D] -> [B, S, H·K] each"""
        return self.key(x), self.value(x)

    def projections(self, x: Tensor, queries: Queries) -> tuple[Tensor, Tensor, Tensor]:
        """Computes Q / scale, [B, H, T, K], and K and V, [B, H, S, K]. x: [B, S, D]"""
        q = split_heads(self.query(select_queries(x, queries)), self.num_heads) / self.scale
        return q, split_heads(self.key(x), self.num_heads), split_heads(self.value(x), self.num_heads)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, prefix: Prefix | None, queries: Queries, relative: Tensor
    ) -> Tensor:
        """Computes softmax(A) V, the plain form.

        q, k, v: see `projections`;  others: see `forward` -> [B, H, T, K]
        """
        length, explicit = k.size(2), isinstance(queries, Tensor)
        index, first, last = relative_index(
            num_queries=length if explicit else q.size(2),
            length=length,
            buckets=self.buckets,
            max_position=self.max_position,
            device=q.device,
        )
        index = index[queries][:, None] if explicit else index  # [B, 1, T, S] or [T, S]
        k_r, q_r = self.project_rows(relative[first : last + 1])  # [H, N, K]
        scores = q @ k.transpose(-1, -2)  # [B, H, T, S]
        if k_r is not None:
            scores += position_scores(q, k_r, index=index)  # Eq. (4); in place, since a term is as large as the scores
        if q_r is not None:
            scores += position_scores(k, q_r, index=index.transpose(-1, -2)).transpose(-1, -2)
        _, v, visible = prepend_prefix(k, v, mask=mask[:, None, None, :], prefix=prefix)  # [B, H, P + S, K]
        if prefix is not None:
            prefix_scores = q @ prefix[0].to(q.dtype).transpose(-1, -2)  # [B, H, T, P]
            scores = torch.cat([prefix_scores, scores], -1)  # [B, H, T, P + S]
        weights = masked_softmax(scores, visible)  # [B, H, T, P + S]
        return weighted_sum(weights, v, dropout=self.dropout)

    def attend_fast(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, prefix: Prefix | None, queries: Queries, relative: Tensor
    ) -> Tensor:
        """Computes `attend` for queries that are the first T tokens: with nn/block_attention.py on a CPU, else with
        nn/triton_attention.py. Both need one row of K_r and Q_r for each distance, not for each pair."""
        length = k.size(2)
        index, first, last = rows_by_distance(
            num_queries=q.size(2),
            length=length,
            buckets=self.buckets,
            max_position=self.max_position,
            device=q.device,
        )
        k_r, q_r = self.project_rows(relative[first : last + 1])  # [H, N, K]
        k, v, visible = prepend_prefix(k, v, mask=mask[:, None, None, :], prefix=prefix)  # [B, H, P + S, K]
        form = by_blocks if q.device.type == "cpu" else by_kernel
        return form(q, k, v, k_r, q_r, index=index, mask=visible, prefix=k.size(2) - length, dropout=self.dropout)

    def forward(self, x: Tensor, mask: Tensor, prefix: Prefix | None, queries: Queries, relative: Tensor) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S];  prefix: keys and values [B or 1, H, P, K];  queries: query positions;
        relative: R, [2s, D] -> [B, T, D]"""
        fast = x.device.type == "cpu" or (self.KERNEL and is_suitable(x, self.head_size))
        attend = self.attend_fast if fast and not is_traced() and not isinstance(queries, Tensor) else self.attend
        return self.output(merge_heads(attend(*self.projections(x, queries), mask, prefix, queries, relative)))


def by_blocks(
    q: Tensor, k: Tensor, v: Tensor, k_r: Rows, q_r: Rows, index: Tensor, mask: Tensor, prefix: int, dropout: Dropout
) -> Tensor:
    """Computes disentangled attention with nn/block_attention.py.

    q: [B, H, T, K];  k, v: [B, H, P + S, K];  k_r, q_r: [H, N, K];  index: rows of k_r and q_r for the distances
    T - 1 … 1 - S, [T + S - 1];  mask: bool [B, 1, 1, P + S];  prefix: P -> [B, H, T, K]
    """
    k_r = None if k_r is None else k_r[:, index]  # [H, T + S - 1, K]
    q_r = None if q_r is None else q_r[:, index.flip(0)]
    return block_attention(q, k, v, mask=mask, dropout=dropout, k_r=k_r, q_r=q_r, prefix=prefix)


def by_kernel(
    q: Tensor, k: Tensor, v: Tensor, k_r: Rows, q_r: Rows, index: Tensor, mask: Tensor, prefix: int, dropout: Dropout
) -> Tensor:
    """Computes the same as `by_blocks` with nn/triton_attention.py."""
    return disentangled_attention(
        q,
        k,
        v,
        k_r=None if k_r is None else k_r[None],
        q_r=None if q_r is None else q_r[None],
        index=index,
        mask=mask[:, 0, 0],
        num_prefix=prefix,
        p=dropout.p if dropout.active else 0.0,
    )


class ConvLayer(Module):
    """y = m · LN(h + act(dropout(m · (W * e + b)))), * a convolution over time, m the mask, e the embeddings.

    It is parallel to the first layer of xlarge and xxlarge; h is the output of that layer (v2 model card, "nGiE").
    """

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        c = config
        self.conv = Conv1d(
            in_channels=c.hidden_size,
            out_channels=c.hidden_size,
            kernel_size=c.conv_kernel_size,
            padding=(c.conv_kernel_size - 1) // 2,
            groups=c.conv_groups,
        )
        self.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout_prob)
        self.activation = activation(c.conv_act)

    def forward(self, e: Tensor, h: Tensor, mask: Tensor, queries: Queries = None) -> Tensor:
        """e: [B, S, D];  h: [B, T, D], at the query positions;  mask: bool [B, S] -> [B, T, D]"""
        padding = ~select_queries(mask[..., None], queries)  # [B, T, 1]
        out = select_queries(self.conv(e.transpose(1, 2)).transpose(1, 2), queries)  # [B, T, D]
        out = self.norm(h + self.activation(self.dropout(out.masked_fill(padding, 0))))
        return out.masked_fill(padding, 0)


class Deberta(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "deberta-v2", "DebertaV2ForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = DebertaConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = HEAD
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = False

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = Embeddings(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_positions=c.max_position_embeddings if c.position_biased_input else 0,
            num_types=c.type_vocab_size,
            pad_id=c.pad_token_id,
            eps=c.layer_norm_eps,
            dropout=c.hidden_dropout_prob,
            embedding_size=c.embedding_size,
        )
        self.relative = Embedding(2 * c.span, c.hidden_size)
        self.relative_norm = LayerNorm(c.hidden_size, c.layer_norm_eps) if c.norm_rel_ebd == "layer_norm" else None
        self.layers = ModuleList(
            EncoderBlock(
                attention=DisentangledAttention(c),
                hidden_size=c.hidden_size,
                feed_forward_size=c.feed_forward_size,
                act=c.hidden_act,
                eps=c.layer_norm_eps,
                dropout=c.hidden_dropout_prob,
            )
            for _ in range(c.num_layers)
        )
        self.conv = ConvLayer(c) if c.conv_kernel_size > 0 else None
        self.pooler = Pooler(hidden_size=c.hidden_size, act=c.pooler_hidden_act, dropout=c.pooler_dropout)
        self.dropout = Dropout(c.hidden_dropout_prob if c.cls_dropout is None else c.cls_dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        init_weights(self, c.initializer_range)

    def encode(self, x: Tensor, mask: Tensor, prefix: list[Prefix] | None = None, queries: Queries = None) -> Tensor:
        """Runs the layers, with R, and the convolution. Arguments and result: `Encoder.encode`."""
        relative = self.relative.weight  # R, [2s, D]
        if self.relative_norm is not None:
            relative = self.relative_norm(relative)
        x, relative = in_product_dtype(x), in_product_dtype(relative)
        h = x
        for number, (layer, pair, selected) in enumerate(self.steps(prefix, queries)):
            h = layer(h, mask, prefix=pair, queries=selected, relative=relative)
            if number == 0 and self.conv is not None:
                h = self.conv(x, h, mask=mask, queries=selected)
        return h  # [B, T, D]
