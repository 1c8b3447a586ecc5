"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108) as a sequence classifier: six of BERT's layers, distilled.

    e⁰ = LN(word + position);   eˡ = EncoderBlock(eˡ⁻¹), l = 1 … L;   f = relu(W eᴸ[CLS] + b);   logits = W_c
    dropout(f) + b_c

No token types, and no dropout behind the attention's output layer. The published position table is sinusoidal, or
learned from there: either way it is in the file.

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
    "embeddings.word": "distilbert.embeddings.word_embeddings",
    "embeddings.position": "distilbert.embeddings.position_embeddings",
    "embeddings.norm": "distilbert.embeddings.LayerNorm",
    "layers.{}.attention.query": "distilbert.transformer.layer.{}.attention.q_lin",
    "layers.{}.attention.key": "distilbert.transformer.layer.{}.attention.k_lin",
    "layers.{}.attention.value": "distilbert.transformer.layer.{}.attention.v_lin",
    "layers.{}.attention.output": "distilbert.transformer.layer.{}.attention.out_lin",
    "layers.{}.attention_norm": "distilbert.transformer.layer.{}.sa_layer_norm",
    "layers.{}.feed_forward.up": "distilbert.transformer.layer.{}.ffn.lin1",
    "layers.{}.feed_forward.down": "distilbert.transformer.layer.{}.ffn.lin2",
    "layers.{}.feed_forward_norm": "distilbert.transformer.layer.{}.output_layer_norm",
    "pooler.dense": "pre_classifier",
    "classifier": "classifier",
}
# tensors of published files that a classifier does not use: the pretraining head
EXTRAS = (r"vocab_(transform|layer_norm|projector)\..*", r"embeddings\.position_ids")
# our config field -> its published name, where they differ
CONFIG_KEYS = {
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "feed_forward_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
SUPPORTED: dict[str, tuple] = {}  # no published config field would change the math beyond these
EPS = 1e-12  # of every norm; the config does not say


@dataclass(frozen=True)
class DistilBertConfig:
    """Defaults are what a published config.json means where it leaves a field out."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 6
    num_heads: int = 12
    feed_forward_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = 0.2
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    labels: tuple[str, ...] = ("negative", "positive")


class DistilBert(Module):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "distilbert", "DistilBertForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = DistilBertConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")  # what a headless checkpoint leaves out
    HEAD_MODULES = ("pre_classifier", "classifier")  # what huggingface/peft calls it
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = False  # whether positions begin behind a prefix

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(
            c.vocab_size,
            c.hidden_size,
            c.max_position_embeddings,
            0,
            c.pad_token_id,
            EPS,
            c.hidden_dropout_prob,
        )
        self.layers = ModuleList(
            EncoderBlock(
                MultiHeadAttention(c.hidden_size, c.num_heads, c.attention_probs_dropout_prob),
                c.hidden_size,
                c.feed_forward_size,
                c.hidden_act,
                EPS,
                c.hidden_dropout_prob,
                attention_dropout=0.0,
            )
            for _ in range(c.num_layers)
        )
        self.pooler = Pooler(c.hidden_size, "relu")
        self.dropout = Dropout(c.classifier_dropout)
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
