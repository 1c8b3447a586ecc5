"""The parameter-efficient methods, one line each.

A method's options are a dataclass next to its math; train.py makes flags, help and defaults from its fields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from nn.encoder import Encoder
from peft import bitfit, houlsby, ia3, lora, p_tuning, prefix, prompt
from peft.wrapped import merge


@dataclass(frozen=True)
class NoOptions:
    """For methods without options."""


def apply_nothing(model: Encoder, options: NoOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Attaches nothing: the head alone is trained."""
    return {}


class MethodEntry(NamedTuple):
    """A parameter-efficient method with its options and its defaults."""

    apply: Callable[..., dict[str, Any]] | None  # (model, options, init_ids) -> settings to record; None: train all
    options: type  # dataclass of the method's settings
    training: dict[str, Any] = {}  # noqa: RUF012  training defaults that differ from those of Options (data/options.py)
    builtin: dict[str, Any] = {}  # noqa: RUF012  further defaults with the built-in weights, which are small
    demo: dict[str, Any] = {}  # noqa: RUF012  further defaults with these weights on the built-in reviews, which are short
    merge: Callable[[Encoder], None] | None = None  # None: the method cannot be merged into the weights


# The learning rate decides whether a method works at all. If an MLP computes the virtual tokens, one step moves them by
# up to the MLP's width times the rate, and at 1e-3 a prefix did not learn (MiniLM on IMDB: data/results/SEARCH.md).
# A model's layer decay is for the training of its own layers (ELECTRA: 0.8).
FROZEN = {"head_learning_rate": 1e-3, "layer_decay": 1.0}
LORA = FROZEN | {"learning_rate": 5e-4}
PREFIX = FROZEN | {"learning_rate": 1e-2}
PREFIX_MLP = FROZEN | {"learning_rate": 1e-4}
PROMPT = FROZEN | {"learning_rate": 1e-2}
P_TUNING = FROZEN | {"learning_rate": 3e-4}
HEAD = {"learning_rate": 1e-3, "layer_decay": 1.0}
BITFIT = FROZEN | {"learning_rate": 1e-3}
HOULSBY = FROZEN | {"learning_rate": 1e-3}
IA3 = FROZEN | {"learning_rate": 1e-2}
# found on the built-in reviews and on IMDB: data/results/SEARCH.md
BUILTIN = {"learning_rate": 4e-4}
BUILTIN_LORA = {
    "targets": "all-linear",
    "rank": 32,
    "alpha": 32.0,
    "schedule": "constant",
    "average": 0.99,
    "epochs": 2,
    "dropout": 0.0,
}
BUILTIN_V2 = {"learning_rate": 1e-1}
DEMO_LORA = {"batch_size": 32, "learning_rate": 1e-3, "epochs": 3, "warmup": 0.05}

# fmt: off
METHODS: dict[str, MethodEntry] = {
    "none":        MethodEntry(None, NoOptions, builtin=BUILTIN),
    "head":        MethodEntry(apply_nothing, NoOptions, HEAD, merge=merge),
    "bitfit":      MethodEntry(bitfit.apply, NoOptions, BITFIT, merge=bitfit.merge),
    "ia3":         MethodEntry(ia3.apply, NoOptions, IA3, merge=merge),
    "houlsby":     MethodEntry(houlsby.apply, houlsby.HoulsbyOptions, HOULSBY),
    "lora":        MethodEntry(lora.apply, lora.LoRAOptions, LORA, BUILTIN_LORA, DEMO_LORA, merge=merge),
    "prefix":      MethodEntry(prefix.apply, prefix.PrefixOptions, PREFIX_MLP),
    "prompt":      MethodEntry(prompt.apply, prompt.PromptOptions, PROMPT),
    "p_tuning":    MethodEntry(p_tuning.apply, p_tuning.PTuningOptions, P_TUNING),
    "p_tuning_v2": MethodEntry(prefix.apply_v2, prefix.PTuningV2Options, PREFIX, BUILTIN_V2),
}
# fmt: on
