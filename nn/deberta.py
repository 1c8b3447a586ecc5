"""DeBERTa-v2 and -v3 (He et al. 2021, arXiv 2006.03654, §3.1; v3: arXiv 2111.09543) as sequence classifiers.

Disentangled attention scores content and relative position apart (Eq. 4). With δ(q,k) the row of the relative
embedding table for the distance q - k, and R = LN(table) shared by all layers:

    Q = x W_q,  K = x W_k,  V = x W_v,   K_r = R W_k,  Q_r = R W_q
    A[q,k] = ( Q[q]·K[k]  +  Q[q]·K_r[δ(q,k)]  +  K[k]·Q_r[δ(q,k)] ) / √(3K)
               content       content → position   position → content
    δ(q,k) = clamp(bucket(q - k) + s, 0, 2s - 1)
    bucket(r) = r                                                          for |r| <= s/2
                sign(r)·(⌈ln(|r|/(s/2)) / ln((M-1)/(s/2)) · (s/2 - 1)⌉ + s/2)   beyond    (v2: log-spaced buckets)

s -> position_buckets, M -> max_relative_positions. xlarge and xxlarge add a convolution beside the first layer.

Differs from the paper: position → content uses δ(q,k), where the paper writes δ(k,q), because the published weights
were trained that way; with share_att_key the biases of W_q and W_k act on R too. Differs from the published code:
nothing (tests/golden); distances beyond 512 follow transformers where Microsoft's code clamps one row earlier.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import Conv1d, Embedding, LayerNorm, Linear, Module, ModuleList

from nn.attention import Prefix, Queries, masked_softmax, merge_heads, pick, prepend_prefix, split_heads, weighted_sum
from nn.dropout import Dropout
from nn.encoder import Embeddings, EncoderBlock, Pooler, activation, init_weights, run_layer

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
# the pretraining heads, an unused position table, and v3's embedding deltas (their sum is already in `.weight`)
EXTRAS = (
    r"lm_predictions\..*",
    r"mask_predictions\..*",
    r"cls\..*",
    r"embeddings\.position_ids",
    r"embeddings\.position_embeddings\.weight",
    r"embeddings\.(word|position)_embeddings\._weight",
)
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
}
SUPPORTED = {
    "relative_attention": (True,),
    "norm_rel_ebd": ("layer_norm", "none"),
    "attention_type": ("self",),
}


@dataclass(frozen=True)
class DebertaConfig:
    """Defaults are what a published config.json means where it leaves a field out: not those of any published model."""

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
    position_buckets: int = -1  # below 1: one row a distance
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    pos_att_type: tuple[str, ...] = ()
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
        kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds or ()
        object.__setattr__(self, "pos_att_type", tuple(kind.strip() for kind in kinds if kind.strip()))
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

    @property
    def span(self) -> int:
        """s: the relative table has 2s rows."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


def log_bucket(distance: Tensor, buckets: int, max_position: int) -> Tensor:
    """bucket(r) of the module docstring. distance: int64, any shape -> int64, odd in r, |result| < buckets."""
    middle = buckets // 2
    size = distance.abs().clamp(min=middle)  # the logarithm is taken only where it is used
    ratio = (size.double() / middle).log() / math.log((max_position - 1) / middle)
    beyond = torch.ceil(ratio * (middle - 1)).long() + middle
    return torch.where(size <= middle, distance, distance.sign() * beyond)


@lru_cache(maxsize=128)
def relative_index(
    queries: int, length: int, buckets: int, max_position: int, device: torch.device
) -> tuple[Tensor, int, int]:
    """δ for the first `queries` tokens of a sequence of `length`: (index [T, S] counted from `first`, first, last),
    where the rows first … last of the table are all that occur."""
    with torch.inference_mode(False):  # what is cached while scoring must serve training too
        place = torch.arange(length)
        distance = place[:queries, None] - place[None, :]  # [T, S]: q - k
        if buckets > 0:
            distance = log_bucket(distance, buckets, max_position)
        span = buckets if buckets > 0 else max_position
        index = (distance + span).clamp(0, 2 * span - 1)
        first, last = int(index.min()), int(index.max())
        return (index - first).to(device), first, last


def skew(x: Tensor) -> Tensor:
    """What row t scores by distance, read by place: y[t, s] = x[t, T - 1 - t + s], a view, since from one row to the
    next the first place moves by one. x: [B, H, T, T + S - 1], contiguous -> [B, H, T, S]"""
    batch, heads, rows, width = x.shape
    strides = (heads * rows * width, rows * width, width - 1, 1)
    return x.as_strided((batch, heads, rows, width - rows + 1), strides, rows - 1)


class DisentangledAttention(Module):
    """y = concat_h( softmax(A[h]) V[h] ) W_o + b_o with A of the module docstring; scale √(K·n), n = 1 + [c2p] + [p2c].

    W_q, W_k, W_v, W_o -> query, key, value, output. Without share_att_key, R has its own position_query, position_key.
    Prefix keys have no position: their relative terms are zero.
    """

    GATHERED = (torch.float32,)  # where products cost more than gather and its backward (tests/bench/relative.py)

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        c = config
        self.num_heads, self.span = c.num_heads, c.span
        self.buckets, self.max_position = c.position_buckets, c.max_relative_positions
        self.c2p, self.p2c = "c2p" in c.pos_att_type, "p2c" in c.pos_att_type
        width = c.num_heads * (c.attention_head_size or c.hidden_size // c.num_heads)
        self.query = Linear(c.hidden_size, width)
        self.key = Linear(c.hidden_size, width)
        self.value = Linear(c.hidden_size, width)
        self.output = Linear(width, c.hidden_size)
        self.position_key = Linear(c.hidden_size, width) if self.c2p and not c.share_att_key else None
        self.position_query = Linear(c.hidden_size, width) if self.p2c and not c.share_att_key else None
        self.dropout = Dropout(c.attention_probs_dropout_prob)
        self.position_dropout = Dropout(c.hidden_dropout_prob)

    def relative_terms(self, q: Tensor, k: Tensor, queries: Queries, table: Tensor, scale: float) -> Iterator[Tensor]:
        """Second and third term of A, [B, H, T, S] each. q: [B, H, T, K], scaled;  k: [B, H, S, K];  table: [2s, D]

        For chosen tokens and where GATHERED says so, products with the N rows that occur, then a gather. Elsewhere
        products with a row for each of the T + S - 1 distances, then a view.
        """
        those, length = isinstance(queries, Tensor), k.size(2)
        count = length if those else q.size(2)
        index, first, last = relative_index(count, length, self.buckets, self.max_position, q.device)
        by_distance = q.dtype not in self.GATHERED and not those
        falling = torch.cat([index[:, 0].flip(0), index[0, 1:]]) if by_distance else None  # q - k = T - 1 … 1 - S
        index = index[queries][:, None] if those else index  # [T, S], or [B, 1, T, S]
        rows = self.position_dropout(table[first : last + 1])[None]  # [1, N, D]
        if self.c2p:
            k_r = split_heads((self.position_key or self.key)(rows), self.num_heads)  # [1, H, N, K]
            if by_distance:
                yield skew(q @ k_r[:, :, falling].transpose(-1, -2))  # [B, H, T, S]
            else:
                c2p = q @ k_r.transpose(-1, -2)  # [B, H, T, N]
                yield c2p.gather(-1, index.expand(*c2p.shape[:2], -1, -1))  # [B, H, T, S]
        if self.p2c:
            q_r = split_heads((self.position_query or self.query)(rows), self.num_heads) / scale  # [1, H, N, K]
            if by_distance:
                p2c = skew(k @ q_r[:, :, falling.flip(0)].transpose(-1, -2))  # [B, H, S, T], row = key
                yield p2c.transpose(-1, -2).contiguous()  # [B, H, T, S]: adding it as a view is slow in bf16
            else:
                p2c = k @ q_r.transpose(-1, -2)  # [B, H, S, N], row = key
                p2c = p2c.gather(-1, index.transpose(-1, -2).expand(*p2c.shape[:2], -1, -1))  # [B, H, S, T]
                yield p2c.transpose(-1, -2)  # [B, H, T, S]

    def forward(self, x: Tensor, mask: Tensor, prefix: Prefix | None, queries: Queries, table: Tensor) -> Tensor:
        """x: [B, S, D];  mask: bool [B, S];  prefix: keys and values [B or 1, H, P, K];  queries: which tokens
        are worked out;  table: R, [2s, D] -> [B, T, D]"""
        q = split_heads(self.query(pick(x, queries)), self.num_heads)  # [B, H, T, K]
        k = split_heads(self.key(x), self.num_heads)  # [B, H, S, K]
        v = split_heads(self.value(x), self.num_heads)  # [B, H, S, K]
        scale = math.sqrt(q.size(-1) * (1 + self.c2p + self.p2c))
        q = q / scale
        scores = q @ k.transpose(-1, -2)  # [B, H, T, S]
        for term in self.relative_terms(q, k, queries, table, scale):
            scores += term  # Eq. (4); in place, since each is as large as the scores
        _, v, visible = prepend_prefix(k, v, mask[:, None, None, :], prefix)  # P places more
        if prefix is not None:
            prefix_scores = q @ prefix[0].to(q.dtype).transpose(-1, -2)  # [B, H, T, P]
            scores = torch.cat([prefix_scores, scores], -1)  # [B, H, T, P + S]
        weights = masked_softmax(scores, visible)  # [B, H, T, P + S]
        return self.output(merge_heads(weighted_sum(weights, v, self.dropout)))  # [B, T, D]


class ConvLayer(Module):
    """y = m · LN(h + act(dropout(m · (W * e + b)))), * a convolution over time, m the mask, e the embeddings.

    Beside the first layer of xlarge and xxlarge: h is that layer's output (v2 model card, "nGiE").
    """

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        c = config
        width = c.conv_kernel_size
        self.conv = Conv1d(c.hidden_size, c.hidden_size, width, padding=(width - 1) // 2, groups=c.conv_groups)
        self.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout_prob)
        self.activation = activation(c.conv_act)

    def forward(self, e: Tensor, h: Tensor, mask: Tensor, queries: Queries = None) -> Tensor:
        """e: [B, S, D];  h: [B, T, D], of the tokens `queries`;  mask: bool [B, S] -> [B, T, D]"""
        padding = ~pick(mask[..., None], queries)  # [B, T, 1]
        out = pick(self.conv(e.transpose(1, 2)).transpose(1, 2), queries)  # [B, T, D]
        out = self.norm(h + self.activation(self.dropout(out.masked_fill(padding, 0))))
        return out.masked_fill(padding, 0)


class Deberta(Module):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "deberta-v2", "DebertaV2ForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = DebertaConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")  # what a headless checkpoint leaves out
    HEAD_MODULES = HEAD  # what huggingface/peft calls it
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = False  # whether positions begin behind a prefix

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(
            c.vocab_size,
            c.hidden_size,
            c.max_position_embeddings if c.position_biased_input else 0,
            c.type_vocab_size,
            c.pad_token_id,
            c.layer_norm_eps,
            c.hidden_dropout_prob,
            c.embedding_size,
        )
        self.relative = Embedding(2 * c.span, c.hidden_size)
        self.relative_norm = LayerNorm(c.hidden_size, c.layer_norm_eps) if c.norm_rel_ebd == "layer_norm" else None
        self.layers = ModuleList(
            EncoderBlock(
                DisentangledAttention(c),
                c.hidden_size,
                c.feed_forward_size,
                c.hidden_act,
                c.layer_norm_eps,
                c.hidden_dropout_prob,
            )
            for _ in range(c.num_layers)
        )
        self.conv = ConvLayer(c) if c.conv_kernel_size > 0 else None
        self.pooler = Pooler(c.hidden_size, c.pooler_hidden_act, c.pooler_dropout)
        self.dropout = Dropout(c.hidden_dropout_prob if c.cls_dropout is None else c.cls_dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        self.checkpointing = False
        self.virtual = None  # a prompt or prefix that peft.apply puts here
        init_weights(self, c.initializer_range)

    def embed(self, input_ids: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T];  shift: positions that a prefix takes -> [B, T, D]"""
        return self.embed_words(self.embeddings.word(input_ids), mask, shift)

    def embed_words(self, words: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """words: rows of the word embeddings, or virtual tokens among them, [B, T, E] -> [B, T, D]"""
        return self.embeddings.combine(words, mask, shift)

    def encode(self, x: Tensor, mask: Tensor, prefix: list[Prefix] | None = None, queries: Queries = None) -> Tensor:
        """x: [B, S, D] -> [B, T, D];  prefix: keys and values for each layer;  queries: which tokens are
        wanted (nn/attention.py)."""
        table = self.relative.weight  # R, [2s, D]
        if self.relative_norm is not None:
            table = self.relative_norm(table)
        h, last = x, len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            pair, wanted = prefix[number] if prefix else None, queries if number == last else None
            h = run_layer(layer, self.checkpointing, h, mask, pair, wanted, table)
            if number == 0 and self.conv is not None:
                h = self.conv(x, h, mask, wanted)
        return h

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """h: [B, T, D] -> [B, D], from the first token."""
        return self.dropout(self.pooler(h))

    def features(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the classifier sees: [B, D]"""
        if self.virtual is not None:
            return self.virtual(self, input_ids, mask)
        return self.pool(self.encode(self.embed(input_ids, mask), mask, queries=1), mask)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids: int64 [B, T];  mask: bool [B, T], True = real token, padding on the right -> [B, C]"""
        return self.classifier(self.features(input_ids, mask))
