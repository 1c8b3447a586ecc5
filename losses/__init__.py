"""The training objectives, one line each.

An objective is a function (model, batch, options) -> (loss, logits). `options` is an instance of the dataclass next to
the objective's math; train.py makes flags, help and defaults from its fields. Every loss is a mean, computed in fp32,
so that its strength does not depend on the batch size: over examples, anchors (supcon), tokens (mlm, rtd, lm) or pairs
of a region and a word (tv). Pretraining objectives use no labels and return {name: a value of each prediction} instead
of logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from losses import cross_entropy, distill, lm, margin, mixed, mlm, rdrop, rtd, supcon, tv


def no_preparation(model: Any, options: Any, tokenizer: Any) -> None:
    """Leaves the model as it is."""


class ObjectiveEntry(NamedTuple):
    """An objective with its options, its defaults and what it needs from the training loop."""

    objective: Callable  # (model, batch, options) -> (loss, logits or {name: a value of each prediction})
    options: type  # dataclass of its settings
    training: dict[str, Any] = {}  # noqa: RUF012  training defaults that differ from those of Options (data/options.py)
    prepare: Callable = no_preparation  # (model, options, tokenizer): checks the model; adds modules for training only
    unlabelled: bool = False  # whether batches carry unlabelled reviews
    pretraining: bool = False  # whether labels are unused
    additive: bool = False  # whether a batch can be split into several passes with the same result
    teacher: bool = False  # whether batches carry the logits of a teacher, the option `teacher`
    ranks: bool = False  # whether it returns its rank's part of the loss (data/ranks.py); additive ones need not
    continued: dict[str, Any] = {}  # noqa: RUF012  training defaults that differ for trained weights


# for small models from random weights
PRETRAINING = {
    "weights": "none",
    "truncate": "chunks",
    "max_length": 128,
    "vocab_size": 16_000,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "layer_decay": 1.0,
    "weight_decay": 0.01,
    "warmup": 0.02,
    "epochs": 10,
}
# no dropout: 10 epochs do not overfit; the model's config keeps the rates of classification
LANGUAGE_MODEL = PRETRAINING | {
    "max_length": 400,
    "vocab_size": 30_000,
    "min_count": 2,
    "word_vectors": "none",
    "dropout": 0.0,
    "batch_size": 64,
    "learning_rate": 1e-3,
}
CONTINUED = {"learning_rate": 1e-4}  # a fifth of the rate of random weights, so that trained ones are kept
# a mean over 10⁵ pairs has gradients that are small against the CNN's default ε of Adam
REGIONS = LANGUAGE_MODEL | {
    "shape": "region_width=200",
    "vocab_size": 40_000,
    "min_count": 5,
    "batch_size": 32,
    "learning_rate": 5e-3,
    "adam_epsilon": 1e-8,
    "epochs": 4,
}
CAPSULES = {"shape": "head=capsules"}

# fmt: off
# ruff: noqa: E501  (a table: one line per objective)
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "ce":           ObjectiveEntry(cross_entropy.objective, cross_entropy.CrossEntropyOptions, additive=True),
    "margin":       ObjectiveEntry(margin.objective, margin.MarginOptions, CAPSULES, additive=True),
    "rdrop":        ObjectiveEntry(rdrop.objective, rdrop.RDropOptions, additive=True),
    "distill":      ObjectiveEntry(distill.objective, distill.DistillOptions, additive=True, teacher=True),
    "supcon":       ObjectiveEntry(supcon.objective, supcon.SupConOptions, prepare=supcon.prepare, ranks=True),
    "rdrop_supcon": ObjectiveEntry(supcon.rdrop_objective, supcon.RDropSupConOptions, prepare=supcon.prepare, ranks=True),
    "adversarial":  ObjectiveEntry(mixed.objective, mixed.AdversarialOptions, prepare=mixed.prepare, ranks=True),
    "mixed":        ObjectiveEntry(mixed.objective, mixed.MixedOptions, prepare=mixed.prepare, unlabelled=True, ranks=True),
    "mlm":          ObjectiveEntry(mlm.objective, mlm.MLMOptions, PRETRAINING, mlm.prepare, pretraining=True, ranks=True, continued=CONTINUED),
    "lm":           ObjectiveEntry(lm.objective, lm.LMOptions, LANGUAGE_MODEL, lm.prepare, pretraining=True, ranks=True),
    "tv":           ObjectiveEntry(tv.objective, tv.TVOptions, REGIONS, tv.prepare, pretraining=True, ranks=True),
    "rtd":          ObjectiveEntry(rtd.objective, rtd.RTDOptions, PRETRAINING, rtd.prepare, pretraining=True, ranks=True, continued=CONTINUED),
}
# fmt: on
