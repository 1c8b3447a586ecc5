"""The training objectives, one line each: a function (model, batch, options) -> (loss, logits), which options are its
own, the training defaults that it wants, what it does to a model beforehand, whether it reads unlabelled reviews, and
whether a batch may be cut.

Pretraining asks for no labels. Its functions return {name: which decisions were right} where others return logits.

Every loss is a mean over examples, computed in fp32, so that its strength does not depend on the batch size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from losses import cross_entropy, margin, mixed, mlm, rdrop, rtd, supcon


class ObjectiveEntry(NamedTuple):
    objective: Callable
    options: tuple[str, ...]  # those of the group "objective" that it reads
    training: dict[str, Any]
    prepare: Callable = lambda model, options, tokenizer: None  # checks options; adds what is dropped after training
    unlabelled: bool = False  # batches come with unlabelled reviews beside them
    pretraining: bool = False
    additive: bool = False  # a mean over examples: a batch may be cut into several passes without another result


# for small models, from nothing
PRETRAINING = {
    "weights": "none",
    "truncate": "chunks",
    "max_length": 128,
    "vocab_size": 16_000,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "warmup": 0.02,
    "epochs": 10,
}


SUPCON = ("supcon_weight", "temperature", "projection")
ADVERSARIAL = ("radius", "adversarial_weight", "vat_weight")
SEMI_SUPERVISED = (*ADVERSARIAL, "entropy_weight", "unlabelled_batch")
SUPERVISED = {"vat_weight": 0.0, "entropy_weight": 0.0}
MLM, RTD = ("whole_words", "bag_weight"), ("whole_words", "rtd_weight")

# fmt: off
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "ce":           ObjectiveEntry(cross_entropy.objective, (), {}, additive=True),
    "margin":       ObjectiveEntry(margin.objective, (), {"shape": "head=capsules"}, additive=True),
    "rdrop":        ObjectiveEntry(rdrop.objective, ("rdrop_alpha",), {}, additive=True),
    "supcon":       ObjectiveEntry(supcon.objective, SUPCON, {}, supcon.prepare),
    "rdrop_supcon": ObjectiveEntry(supcon.rdrop_objective, (*SUPCON, "rdrop_alpha"), {}, supcon.prepare),
    "adversarial":  ObjectiveEntry(mixed.objective, ADVERSARIAL, SUPERVISED, mixed.prepare),
    "mixed":        ObjectiveEntry(mixed.objective, SEMI_SUPERVISED, {}, mixed.prepare, unlabelled=True),
    "mlm":          ObjectiveEntry(mlm.objective, MLM, PRETRAINING, mlm.prepare, pretraining=True),
    "rtd":          ObjectiveEntry(rtd.objective, RTD, PRETRAINING, rtd.prepare, pretraining=True),
}
# fmt: on
