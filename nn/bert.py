"""BERT (Devlin et al. 2019, arXiv 1810.04805) as a sequence classifier (§3.2 and Fig. 4b).

    e⁰ = LN(word + type + position);   eˡ = EncoderBlock(eˡ⁻¹), l = 1 … L
    f = tanh(W eᴸ[CLS] + b);   logits = W_c f + b_c

Differs from the published code: nothing; logits equal it to rounding (tests/golden).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import Linear, Module, ModuleList

from nn.attention import MultiHeadAttention, Prefix, Queries
from nn.dropout import Dropout
from nn.encoder import Embeddings, EncoderBlock, Pooler, init_weights, run_layers

# our module -> its published name; {} is the layer's number
KEYS = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "bert.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "bert.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "bert.pooler.dense",
    "classifier": "classifier",
}
# tensors of published files that a classifier does not use: the pretraining heads and an old buffer
EXTRAS = (r"cls\..*", r"embeddings\.position_ids")
# our config field -> its published name, where they differ
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
}
# published config fields that would change the math, with the values implemented here
SUPPORTED = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


@dataclass(frozen=True)
class BertConfig:
    """Defaults are what a published config.json means where it leaves a field out."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feed_forward_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("negative", "positive")


class Bert(Module):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "bert", "BertForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = BertConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")  # what a headless checkpoint leaves out
    HEAD_MODULES = HEAD  # what huggingface/peft calls it
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = True  # whether positions begin behind a prefix

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(
            c.vocab_size,
            c.hidden_size,
            c.max_position_embeddings,
            c.type_vocab_size,
            c.pad_token_id,
            c.layer_norm_eps,
            c.hidden_dropout_prob,
        )
        self.layers = ModuleList(
            EncoderBlock(
                MultiHeadAttention(c.hidden_size, c.num_heads, c.attention_probs_dropout_prob),
                c.hidden_size,
                c.feed_forward_size,
                c.hidden_act,
                c.layer_norm_eps,
                c.hidden_dropout_prob,
            )
            for _ in range(c.num_layers)
        )
        self.pooler = Pooler(c.hidden_size, "tanh")
        self.dropout = Dropout(c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout)
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
        return run_layers(self.layers, self.checkpointing, x, mask, prefix, queries)

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
