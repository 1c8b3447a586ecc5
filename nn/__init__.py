"""MODELS, the table of models, and the letters for dimensions in docstrings and comments.

A module that uses a letter for something else introduces it.

    B  batch                      K  width per head, capsule C  classes
    T  tokens (queries)           F  feed-forward, filters   R  LoRA rank; reviews
    S  tokens (keys)              V  vocabulary              P  virtual tokens
    D  model width                H  heads                   E  width of word embeddings
    N  rows, RNN directions       J  capsules                G  gates; n-grams of a table

The batch is the first dimension. Padding is on the right and never changes a result. Every model has

    logits   = model(input_ids, mask)             # int64 [B, T], bool [B, T] -> [B, C]
    features = model.features(input_ids, mask)    # [B, D]; logits = model.classifier(features)

and computes features in three steps: embed -> encode -> pool. The tokens of a word network (nn/words.py) are words,
the tokens of an encoder (nn/encoder.py) are subwords.
"""

from typing import Any, NamedTuple

from nn.attention_lstm import AttentionLSTM
from nn.bert import Bert
from nn.capsule_lstm import CapsuleLSTM
from nn.cnn import CNN
from nn.cnn_lstm import CNNLSTM
from nn.deberta import Deberta
from nn.distilbert import DistilBert
from nn.electra import Electra
from nn.encoder import Encoder
from nn.gru import GRUClassifier
from nn.lstm import LSTMClassifier
from nn.modernbert import ModernBert
from nn.nb_linear import NBLinear
from nn.roberta import Roberta
from nn.transformer import Transformer
from nn.words import WordClassifier
from nn.xlm_roberta import XLMRoberta

Model = Encoder | WordClassifier


class ModelEntry(NamedTuple):
    """A model class with its defaults."""

    build: type[Encoder] | type[WordClassifier]  # a model class with Config, KEYS and the interface above
    shape: dict[str, Any]  # config fields of a model with random weights (`--weights none`)
    tokenizer: str  # kind of the tokenizer that is trained if the weights contain none
    weights: str  # default of `--weights`
    training: dict[str, Any]  # defaults of training options that differ from those of Options (data/options.py)
    demo: dict[str, Any] = {}  # noqa: RUF012  further defaults on the built-in reviews, which are few and short


SMALL = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "feed_forward_size": 1024}
SMALL_ROBERTA = SMALL | {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
SMALL_V3 = SMALL | {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ("p2c", "c2p"),
    "position_biased_input": False,
}
SMALL_ELECTRA = SMALL | {"embedding_size": 128}
SMALL_MODERN = SMALL | {
    "embedding_dropout": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "mlp_dropout": 0.1,
    "classifier_dropout": 0.1,
}
# Sources: Sun et al. 2019 (arXiv 1905.05583) for BERT on IMDB; Liu et al. 2019, Table 10; microsoft/DeBERTa,
# experiments/glue; Clark et al. 2020, Table 7; AnswerDotAI/ModernBERT, src/evals/glue_jobs.py, SST-2, whose optimizer
# (Composer's DecoupledAdamW) does not multiply the weight decay of 3e-6 by the rate: AdamW's is 3e-6 / 3e-5
TUNING = {"learning_rate": 2e-5}
TUNING_ROBERTA = {"learning_rate": 2e-5, "weight_decay": 0.1}
TUNING_RTD = {"learning_rate": 1e-4, "layer_decay": 0.8, "weight_decay": 0.0}
TUNING_MODERN = {"learning_rate": 3e-5, "weight_decay": 0.1}
# Chosen by trials with the GRU, the CNN-LSTM and the Transformer on training reviews split by film. The other word
# networks use the same values without a search. All trials and their limits: data/results/SEARCH.md.
WORDS = {
    "word_vectors": "train",
    "vocab_size": 40_000,
    "min_count": 10,
    "max_length": 400,
    "truncate": "head+tail",
    "learning_rate": 1e-3,
    "batch_size": 32,
    "epochs": 4,
}
RECURRENT = WORDS | {"epochs": 8}
# Each one-hot word has 1,800 weights. A large ε of Adam keeps the steps of rare words small (SEARCH.md, "One-hot
# words").
ONE_HOT = {"one_hot": True, "widths": "1,2,3", "filters": 300, "embedding_range": 0.02}
RARE_WORDS = {"word_vectors": "none", "learning_rate": 5e-3, "adam_epsilon": 1e-4, "batch_size": 64, "epochs": 6}
# Whole reviews, and words that occur at least twice. Chosen on validation reviews (SEARCH.md, "A linear model").
NGRAMS = {
    "vocab_size": 400_000,
    "min_count": 2,
    "max_length": 4_000,
    "learning_rate": 2e-3,
    "batch_size": 256,
    "epochs": 4,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "precision": "fp32",  # bf16 speeds up matrix products, and this model has none
}

# On the built-in reviews: all their words, without GloVe, and little dropout.
DEMO = {"word_vectors": "none", "min_count": 1, "dropout": 0.1, "learning_rate": 2e-3}

# fmt: off
MODELS: dict[str, ModelEntry] = {
    "cnn":            ModelEntry(CNN, ONE_HOT, "wordlevel", "none", WORDS | RARE_WORDS, DEMO),
    "lstm":           ModelEntry(LSTMClassifier, {}, "wordlevel", "none", RECURRENT, DEMO),
    "gru":            ModelEntry(GRUClassifier, {}, "wordlevel", "none", RECURRENT, DEMO),
    "cnn_lstm":       ModelEntry(CNNLSTM, {}, "wordlevel", "none", RECURRENT, DEMO),
    "attention_lstm": ModelEntry(AttentionLSTM, {}, "wordlevel", "none", RECURRENT, DEMO),
    "capsule_lstm":   ModelEntry(CapsuleLSTM, {}, "wordlevel", "none", RECURRENT, DEMO),
    "transformer":    ModelEntry(Transformer, {}, "wordlevel", "none", WORDS | {"learning_rate": 5e-4}, DEMO),
    "nb_linear":      ModelEntry(NBLinear, {}, "wordlevel", "none", NGRAMS, {"min_count": 1, "batch_size": 64}),
    "bert":           ModelEntry(Bert, SMALL, "wordpiece", "google-bert/bert-base-uncased", TUNING),
    "distilbert":     ModelEntry(DistilBert, SMALL, "wordpiece", "distilbert/distilbert-base-uncased", TUNING),
    "roberta":        ModelEntry(Roberta, SMALL_ROBERTA, "bpe", "FacebookAI/roberta-base", TUNING_ROBERTA),
    "deberta":        ModelEntry(Deberta, SMALL_V3, "unigram", "builtin", TUNING),
    "electra":        ModelEntry(Electra, SMALL_ELECTRA, "wordpiece", "google/electra-base-discriminator", TUNING_RTD),
    "xlm_roberta":    ModelEntry(XLMRoberta, SMALL_ROBERTA, "unigram", "FacebookAI/xlm-roberta-base", TUNING_ROBERTA),
    "modernbert":     ModelEntry(ModernBert, SMALL_MODERN, "bpe", "answerdotai/ModernBERT-base", TUNING_MODERN),
}
# fmt: on


def name_of(kind: type[Model]) -> str:
    """Returns the name of a class of models in MODELS, which --model takes."""
    return next(name for name, entry in MODELS.items() if entry.build is kind)
