"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108) as a sequence classifier: six layers distilled from BERT.

    x⁰ = LN(word + position);   xˡ = EncoderBlock(xˡ⁻¹), l = 1 … L
    f = relu(W xᴸ[CLS] + b);   logits = W_c dropout(f) + b_c

There are no token types, and there is no dropout after the output layer of the attention. The authors initialize the
student's position table with BERT's. The checkpoint contains the table, so sinusoidal_pos_embds is not read.

Differs from the published code: nothing; logits are equal up to rounding (tests/golden).
"""

from dataclasses import dataclass

from torch.nn import Linear, ModuleList

from nn.attention import MultiHeadAttention
from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, EncoderBlock, Pooler, init_weights

# our module -> its published name; {}: the number of the layer
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
# published tensors that a classifier does not use: the pretraining head and a buffer of older versions
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
SUPPORTED: dict[str, tuple] = {}  # no other published config field changes the math
EPS = 1e-12  # of every norm; the published config has no field for it


@dataclass(frozen=True)
class DistilBertConfig:
    """Each default is the value of a field that a published config.json omits."""

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


class DistilBert(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "distilbert", "DistilBertForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = DistilBertConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}  # noqa: RUF012
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = ("pre_classifier", "classifier")
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = False

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = Embeddings(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_positions=c.max_position_embeddings,
            num_types=0,
            pad_id=c.pad_token_id,
            eps=EPS,
            dropout=c.hidden_dropout_prob,
        )
        self.layers = ModuleList(
            EncoderBlock(
                attention=MultiHeadAttention(
                    hidden_size=c.hidden_size, num_heads=c.num_heads, dropout=c.attention_probs_dropout_prob
                ),
                hidden_size=c.hidden_size,
                feed_forward_size=c.feed_forward_size,
                act=c.hidden_act,
                eps=EPS,
                dropout=c.hidden_dropout_prob,
                attention_dropout=0.0,
            )
            for _ in range(c.num_layers)
        )
        self.pooler = Pooler(c.hidden_size, "relu")
        self.dropout = Dropout(c.classifier_dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        init_weights(self, c.initializer_range)
