"""The training objectives, one line each: a function (model, batch, options) -> (loss, logits), what it does to a model
beforehand, whether it reads unlabelled reviews, and the training defaults that it wants.

Every loss is a mean over examples, computed in fp32, so that its strength does not depend on the batch size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from losses import cross_entropy, margin, mixed, rdrop, supcon


class ObjectiveEntry(NamedTuple):
    objective: Callable
    training: dict[str, Any]
    prepare: Callable = lambda model, options: None  # checks options; adds what is dropped after training
    unlabelled: bool = False  # batches come with unlabelled reviews beside them


# fmt: off
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "ce":           ObjectiveEntry(cross_entropy.objective, {}),
    "margin":       ObjectiveEntry(margin.objective, {"shape": "head=capsules"}),
    "rdrop":        ObjectiveEntry(rdrop.objective, {}),
    "supcon":       ObjectiveEntry(supcon.objective, {}, supcon.prepare),
    "rdrop_supcon": ObjectiveEntry(supcon.rdrop_objective, {}, supcon.prepare),
    "mixed":        ObjectiveEntry(mixed.objective, {}, mixed.prepare, unlabelled=True),
}
# fmt: on
