"""BERT (Devlin et al. 2019, arXiv 1810.04805) as a sequence classifier (§3.2 and Fig. 4b).

    x⁰ = LN(word + type + position);   xˡ = EncoderBlock(xˡ⁻¹), l = 1 … L
    f = tanh(W xᴸ[CLS] + b);   logits = W_c dropout(f) + b_c

Differs from the paper: the embeddings are normalized, and the head has a hidden layer, f, as in the published code.
Differs from the published code: nothing; logits are equal up to rounding (tests/golden).
"""

from dataclasses import dataclass

from torch.nn import Linear

from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, Pooler, bert_layers, init_weights

# our module -> its published name; {}: the number of the layer
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
# published tensors that a classifier does not use: the pretraining heads and a buffer of older versions
EXTRAS = (r"cls\..*", r"embeddings\.position_ids")
# our config field -> its published name, where they differ
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
}
# published config fields that would change the math, with the values implemented here
SUPPORTED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


@dataclass(frozen=True)
class BertConfig:
    """Each default is the value of a field that a published config.json omits."""

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


class Bert(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "bert", "BertForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = BertConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = HEAD
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = Embeddings(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_positions=c.max_position_embeddings,
            num_types=c.type_vocab_size,
            pad_id=c.pad_token_id,
            eps=c.layer_norm_eps,
            dropout=c.hidden_dropout_prob,
        )
        self.layers = bert_layers(c)
        self.pooler = Pooler(c.hidden_size, "tanh")
        self.dropout = Dropout(c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        init_weights(self, c.initializer_range)
