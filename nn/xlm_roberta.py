"""XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116) as a sequence classifier: RoBERTa in 100 languages.

The computation is RoBERTa's (nn/roberta.py). The differences are the data (CommonCrawl in 100 languages), the
vocabulary (250,002 subwords of one SentencePiece model for all languages) and the fields that a config may omit.
Published names have the prefix `roberta.` too.

Differs from the published code: nothing; logits are equal up to rounding (tests/golden).
"""

from dataclasses import dataclass

from nn.encoder import Encoder
from nn.roberta import CONFIG_KEYS, EXTRAS, KEYS, SUPPORTED, assemble


@dataclass(frozen=True)
class XLMRobertaConfig:
    """Each default is the value of a field that a published config.json omits, not the value of xlm-roberta-base."""

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
    pad_token_id: int = 1
    labels: tuple[str, ...] = ("negative", "positive")


class XLMRoberta(Encoder):
    """[B, T] token ids -> [B, C] logits."""

    model_type, architecture = "xlm-roberta", "XLMRobertaForSequenceClassification"
    Config, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED = XLMRobertaConfig, KEYS, EXTRAS, CONFIG_KEYS, SUPPORTED
    HEAD = ("pooler", "classifier")
    HEAD_MODULES = ("classifier",)
    LORA_TARGETS = ("query", "value")
    PREFIX_SHIFTS = True

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config)
        assemble(self, config)

    def mlm_activation(self) -> str:
        """Returns the name of the activation in the published head of MLM, whatever hidden_act says."""
        return "gelu"
