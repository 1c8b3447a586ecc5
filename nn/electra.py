"""ELECTRA (Clark et al. 2020, arXiv 2003.10555) as a sequence classifier: the discriminator, fine-tuned (§3.1).

    e  = LN(word + type + position)                      [E]
    x⁰ = W_e e + b_e, or e if E = D;   xˡ = EncoderBlock(xˡ⁻¹), l = 1 … L
    f  = gelu(W dropout(xᴸ[CLS]) + b);   logits = W_c dropout(f) + b_c

E -> embedding_size, D -> hidden_size. The layers are BERT's (nn/encoder.py). The pretrained discriminator has no
pooler: W and b are part of the classification head, and are newly initialized before fine-tuning. losses/rtd.py has the
pretraining objective.

Differs from the paper: the head has a hidden layer, as in transformers; the authors' code classifies xᴸ[CLS] by one
layer. Differs from transformers: nothing; logits are equal up to rounding (tests/golden).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import Linear

from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, Pooler, bert_layers, init_weights

# our module -> its published name; {}: the number of the layer
KEYS = {
    "embeddings.word": "electra.embeddings.word_embeddings",
    "embeddings.position": "electra.embeddings.position_embeddings",
    "embeddings.token_type": "electra.embeddings.token_type_embeddings",
    "embeddings.norm": "electra.embeddings.LayerNorm",
    "project": "electra.embeddings_project",
    "layers.{}.attention.query": "electra.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "electra.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "electra.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "electra.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "electra.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "electra.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "electra.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "electra.encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "classifier.dense",
    "classifier": "classifier.out_proj",
}
# published tensors that a classifier does not use: the heads of discriminator and generator, a buffer of older versions
EXTRAS = (
    r"discriminator_predictions\..*",
    r"generator_predictions\..*",
    r"generator_lm_head\..*",
    r"embeddings\.position_ids",
)
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
class ElectraConfig:
    """Each default is the value of a field that a published config.json omits."""

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_layers: int = 12
    num_heads: int = 4
    feed_forward_size: int = 1024
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


class Electra(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "electra", "ElectraForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = ElectraConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = ("classifier",)
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = True

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        c = config
        dropout = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
        self.embeddings = Embeddings(
            vocab_size=c.vocab_size,
            hidden_size=c.embedding_size,
            num_positions=c.max_position_embeddings,
            num_types=c.type_vocab_size,
            pad_id=c.pad_token_id,
            eps=c.layer_norm_eps,
            dropout=c.hidden_dropout_prob,
        )
        self.project = Linear(c.embedding_size, c.hidden_size) if c.embedding_size != c.hidden_size else None
        self.layers = bert_layers(c)
        self.pooler = Pooler(hidden_size=c.hidden_size, act="gelu", dropout=dropout)
        self.dropout = Dropout(dropout)
        self.classifier = Linear(c.hidden_size, len(c.labels))
        init_weights(self, c.initializer_range)

    def mlm_activation(self) -> str:
        """Returns the name of the activation in the head of the published generator, whatever hidden_act says."""
        return "gelu"

    def widen(self, e: Tensor) -> Tensor:
        """Computes x⁰: [B, T, E] -> [B, T, D]"""
        return e if self.project is None else self.project(e)

    def embed(self, input_ids: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """Computes x⁰ from token ids. Arguments and result: `Encoder.embed`."""
        return self.widen(super().embed(input_ids, mask, shift))

    def embed_words(self, words: Tensor, mask: Tensor, shift: int = 0) -> Tensor:
        """Computes x⁰ from word embeddings. Arguments and result: `Encoder.embed_words`."""
        return self.widen(super().embed_words(words, mask, shift))
