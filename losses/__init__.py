"""The training objectives, one line each: a function (model, batch, options) -> (loss, logits), and the training
defaults that it wants.

Every loss is a mean over examples, computed in fp32, so that its strength does not depend on the batch size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from losses import cross_entropy, margin


class ObjectiveEntry(NamedTuple):
    objective: Callable
    training: dict[str, Any]


# fmt: off
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "ce":     ObjectiveEntry(cross_entropy.objective, {}),
    "margin": ObjectiveEntry(margin.objective, {"shape": "head=capsules"}),
}
# fmt: on
