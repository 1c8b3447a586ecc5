"""Parameter-efficient fine-tuning: METHODS, one line each, and how an adapter is put on, taken off, and merged.

`apply` freezes what the checkpoint brought, puts the method on, and leaves trainable: the method's own parameters, the
head (pooler and classifier), and whatever was initialised at random (`model.fresh`), since random layers that stay
frozen are only noise (DeBERTa's pooler is in no published backbone: huggingface/peft#2171).

Several adapters share one backbone: `take_off` gives an Adapter, `put_on` brings it back. Files: peft/files.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from nn.checkpoint import ASIDE
from peft import lora, p_tuning, prefix, prompt


class MethodEntry(NamedTuple):
    apply: Callable[..., dict] | None  # (model, **options) -> what to remember; None: everything is trained
    merge: Callable[[Module], None] | None
    options: tuple[str, ...]  # names of the options that train.py hands over
    training: dict[str, Any]  # training defaults that the method wants


# The rate decides whether a method works at all: where an MLP makes the virtual tokens, a step moves them by up to its
# width times the rate, and at 1e-3 a prefix learned nothing (MiniLM on IMDB; trials: data/results/SEARCH.md).
LORA = {"learning_rate": 5e-4, "head_learning_rate": 1e-3}
PREFIX = {"learning_rate": 1e-2, "head_learning_rate": 1e-3}
PREFIX_MLP = {"learning_rate": 1e-4, "head_learning_rate": 1e-3}
PROMPT = {"learning_rate": 1e-2, "head_learning_rate": 1e-3}
P_TUNING = {"learning_rate": 3e-4, "head_learning_rate": 1e-3}

# fmt: off
METHODS: dict[str, MethodEntry] = {
    "none":        MethodEntry(None, None, (), {}),
    "head":        MethodEntry(lambda model: {}, None, (), {"learning_rate": 1e-3}),
    "lora":        MethodEntry(lora.apply, lora.merge, lora.OPTIONS, LORA),
    "prefix":      MethodEntry(prefix.apply, None, prefix.OPTIONS, PREFIX_MLP),
    "prompt":      MethodEntry(prompt.apply, None, prompt.OPTIONS, PROMPT),
    "p_tuning":    MethodEntry(p_tuning.apply, None, p_tuning.OPTIONS, P_TUNING),
    "p_tuning_v2": MethodEntry(prefix.apply_v2, None, prefix.OPTIONS_V2, PREFIX),
}
# fmt: on


def apply(model: Module, method: str, init_ids: list[int] | None = None, **options: Any) -> Module:
    """Puts `method` on `model`, in place, and freezes the rest. options: those of the method's own `apply`. init_ids:
    token ids of a text that virtual tokens may start from.

    Raises ValueError for an unknown method or option, a target that is not there, or a model that cannot carry it.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    entry = METHODS[method]
    unknown = set(options) - set(entry.options)
    if unknown:
        raise ValueError(f"{method} has no option {', '.join(sorted(unknown))}; it has: {', '.join(entry.options)}")
    if entry.apply is None:
        return model
    if not hasattr(model, "LORA_TARGETS"):
        raise ValueError(f"{method} is for pretrained encoders; {model.model_type} is trained whole: --peft none")
    if getattr(model, "adapter", None):
        raise ValueError(f"the model carries a {model.adapter['method']} adapter already")
    trained = [p for name, p in model.named_parameters() if is_trained(model, name)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if takes_text(method):
        options["init_ids"] = init_ids
    model.adapter = {"method": method, **entry.apply(model, **options)}
    for parameter in trained:
        parameter.requires_grad_(True)
    return model


def takes_text(method: str) -> bool:
    """Whether the method's virtual tokens may start from a text."""
    return "virtual_tokens" in METHODS[method].options


def is_trained(model: Module, name: str) -> bool:
    """Whether a parameter of the plain model stays trainable under an adapter."""
    return name.split(".")[0] in model.HEAD or name in getattr(model, "fresh", ())


def backbone_name(name: str) -> str | None:
    """Name in the plain model of a parameter of an adapted one; None for the adapter's own."""
    if name.startswith("virtual.") or name.rpartition(".")[2] in ("A", "B", "magnitude"):
        return None
    return name.replace(".base.", ".")


def in_adapter_file(model: Module, name: str) -> bool:
    """Whether a parameter of an adapted model belongs to the adapter: its own, the head, and biases trained by LoRA."""
    plain = backbone_name(name)
    if plain is None or plain.split(".")[0] in model.HEAD:
        return True
    bias = (model.adapter or {}).get("lora_bias", "none")
    return name.endswith("bias") and (bias == "all" or (bias == "lora_only" and ".base." in name))


def trains_backbone(model: Module) -> bool:
    """Whether more than the adapter is trained, so that an adapter file alone would not bring the model back."""
    return any(
        p.requires_grad and not name.startswith(ASIDE) and not in_adapter_file(model, name)
        for name, p in model.named_parameters()
    )


# ------------------------------------------------------------------------------- several adapters on one backbone


class Adapter(NamedTuple):
    """What `take_off` takes off a model: the method's modules by place, the head's and biases' values, what `apply`
    remembered."""

    remembered: dict[str, Any]
    modules: dict[str, Module]
    values: dict[str, Tensor]


def take_off(model: Module) -> Adapter:
    """The adapter of a model, which is plain afterwards; its head keeps its values. Raises ValueError where there is
    none."""
    if not getattr(model, "adapter", None):
        raise ValueError("the model carries no adapter")
    own = [(name, p) for name, p in model.named_parameters() if backbone_name(name) and in_adapter_file(model, name)]
    values = {backbone_name(name): p.detach().clone() for name, p in own}
    modules: dict[str, Module] = dict(lora.wrapped(model))
    for name, module in modules.items():
        model.set_submodule(name, module.base)
    if model.virtual is not None:
        modules["virtual"] = model.virtual
        model.virtual = None
    adapter = Adapter(model.adapter, modules, values)
    model.adapter = None
    return adapter


@torch.no_grad()
def put_on(model: Module, adapter: Adapter) -> Module:
    """Puts a taken-off adapter back, in place. Raises ValueError where the model carries another one."""
    if getattr(model, "adapter", None):
        raise ValueError(f"the model carries a {model.adapter['method']} adapter already; take it off first")
    for name, value in adapter.values.items():
        model.get_parameter(name).copy_(value)
    for name, module in adapter.modules.items():
        if name == "virtual":
            model.virtual = module
        else:
            module.base = model.get_submodule(name)
            model.set_submodule(name, module)
    model.adapter = adapter.remembered
    return model


def merge(model: Module) -> Module:
    """The plain model with the adapter's change inside its weights, in place; `unmerge` undoes it. Raises ValueError
    where there is none, or for virtual tokens, which are not weights."""
    adapter = getattr(model, "adapter", None)
    if not adapter:
        raise ValueError("the model carries no adapter to merge")
    entry = METHODS[adapter["method"]]
    if entry.merge is None:
        raise ValueError(f"a {adapter['method']} adapter cannot be merged into the weights")
    modules = dict(lora.wrapped(model))
    entry.merge(model)
    model.merged = Adapter(adapter, modules, {})
    model.adapter = None
    return model


def unmerge(model: Module) -> Module:
    """The adapted model as it was before `merge`, to within rounding. Raises ValueError where nothing was merged."""
    merged = getattr(model, "merged", None)
    if merged is None:
        raise ValueError("nothing was merged into this model")
    for module in merged.modules.values():
        module.unmerge()
    model.merged = None
    return put_on(model, merged)


def check_room(model: Module, max_length: int) -> None:
    """Raises ValueError where virtual tokens and a review of max_length tokens exceed the table of positions."""
    virtual, position = getattr(model, "virtual", None), getattr(getattr(model, "embeddings", None), "position", None)
    if virtual is None or position is None:
        return
    count = model.adapter["virtual_tokens"]
    if isinstance(virtual, prefix.DeepPrefix) and not model.PREFIX_SHIFTS:
        return
    room = position.num_embeddings - (model.config.pad_token_id + 1 if model.model_type == "roberta" else 0)
    if count + max_length > room:
        raise ValueError(
            f"{count} virtual tokens and --max-length {max_length} need {count + max_length} positions; "
            f"{model.model_type} has {room}: lower one of them"
        )


from peft.files import load_adapter, save_adapter, save_base  # noqa: E402  (files need the table)

__all__ = [
    "METHODS", "apply", "load_adapter", "merge", "put_on", "save_adapter", "save_base", "take_off", "unmerge",
]  # fmt: skip
