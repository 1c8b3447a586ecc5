"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) as a sequence classifier: BERT's encoder with a different head, trained
for longer on more data.

    x⁰ = LN(word + type + position[t + pad_id + 1]);   xˡ = EncoderBlock(xˡ⁻¹), l = 1 … L
    f = tanh(W dropout(xᴸ[<s>]) + b);   logits = W_c dropout(f) + b_c

The row of the first token in the position table is pad_id + 1 = 2; row pad_id belongs to padding. A table of 514 rows
therefore holds 512 tokens. As in the published code, a token inside the text whose id is pad_id gets the row of
padding and is not counted: some checkpoints pad with </s>.

Differs from the published code: nothing; logits are equal up to rounding (tests/golden).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from nn.dropout import Dropout
from nn.encoder import Embeddings, Encoder, Pooler, bert_layers, init_weights

# our module -> its published name; {}: the number of the layer
KEYS = {
    "embeddings.word": "roberta.embeddings.word_embeddings",
    "embeddings.position": "roberta.embeddings.position_embeddings",
    "embeddings.token_type": "roberta.embeddings.token_type_embeddings",
    "embeddings.norm": "roberta.embeddings.LayerNorm",
    "layers.{}.attention.query": "roberta.encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "roberta.encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "roberta.encoder.layer.{}.attention.self.value",
    "layers.{}.attention.output": "roberta.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "roberta.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.up": "roberta.encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "roberta.encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "roberta.encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "classifier.dense",
    "classifier": "classifier.out_proj",
}
# published tensors that a classifier does not use: the pretraining head, a buffer of older versions, BERT's pooler
EXTRAS = (r"lm_head\..*", r"embeddings\.position_ids", r"pooler\.dense\..*")
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
class RobertaConfig:
    """Each default is the value of a field that a published config.json omits, not the value of roberta-base."""

    vocab_size: int = 50265
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
    pad_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class RobertaEmbeddings(Embeddings):
    """Computes Embeddings with positions that do not count tokens equal to pad_id."""

    def forward(self, input_ids: Tensor, mask: Tensor, first_position: int = 0) -> Tensor:
        """input_ids: [B, T];  mask: bool [B, T];  first_position: row of the first token -> [B, T, D]"""
        pad_id = self.word.padding_idx or 0
        counted = input_ids.ne(pad_id)  # [B, T]
        positions = torch.where(counted, counted.cumsum(1) + first_position - 1, pad_id)  # [B, T]
        return self.combine(self.word(input_ids), mask, first_position, positions)


def assemble(model: Encoder, config: Any) -> None:
    """Creates the modules of `model`, in place, with random weights. XLM-RoBERTa (nn/xlm_roberta.py) has the same.

    config: RobertaConfig, or a config with its fields
    """
    c = config
    model.first_position = c.pad_token_id + 1
    dropout = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
    model.embeddings = RobertaEmbeddings(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        num_positions=c.max_position_embeddings,
        num_types=c.type_vocab_size,
        pad_id=c.pad_token_id,
        eps=c.layer_norm_eps,
        dropout=c.hidden_dropout_prob,
    )
    model.layers = bert_layers(c)
    model.pooler = Pooler(hidden_size=c.hidden_size, act="tanh", dropout=dropout)
    model.dropout = Dropout(dropout)
    model.classifier = Linear(c.hidden_size, len(c.labels))
    init_weights(model, c.initializer_range)


class Roberta(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "roberta", "RobertaForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = RobertaConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = ("classifier",)
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = True

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        assemble(self, config)

    def mlm_activation(self) -> str:
        """Returns the name of the activation in the published head of MLM, whatever hidden_act says."""
        return "gelu"
