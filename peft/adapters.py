"""Applies, detaches, attaches and merges adapters.

`apply` freezes the weights of the checkpoint, adds the method, and leaves trainable: the method's own parameters, the
head (pooler and classifier), and every parameter that is newly initialized. Newly initialized layers that stay frozen
would only add noise (no published backbone contains DeBERTa's pooler: huggingface/peft#2171).

Several adapters can share one backbone: `detach_adapter` returns an Adapter and restores the values and class names of
the plain model; `attach_adapter` restores the adapter.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from data.checked import check_types
from data.flags import check_choice
from nn import Model
from nn.checkpoint import TRAINING_ONLY
from nn.encoder import Encoder
from peft.methods import METHODS
from peft.prefix import DeepPrefix
from peft.wrapped import LEAVES, wrapped


def apply(model: Model, method: str, init_ids: list[int] | None = None, **options: Any) -> Model:
    """Applies `method` to `model`, in place, and freezes the rest. `none` changes nothing. Returns the model.

    options: the fields of the method's options class.  init_ids: token ids of the text that virtual tokens are
    initialized from. Raises ValueError for an unknown method, option or target, for a value that is not a number where
    one is needed, and for an unsuitable model. Raises TypeError if LoRA's targets are not text.
    """
    entry = check_choice("method", method, METHODS)
    names = [field.name for field in dataclasses.fields(entry.options)]
    if unknown := sorted(set(options) - set(names)):
        raise ValueError(f"{method} has no option {', '.join(unknown)}; it has: {', '.join(names)}")
    numbers = {
        field.name: field.type for field in dataclasses.fields(entry.options) if field.type in (int, float, bool)
    }
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    check_types(options, numbers)
    settings = entry.options(**options)
    if entry.apply is None:
        return model
    attach: Callable[..., dict[str, Any]] = entry.apply
    if not isinstance(model, Encoder):
        raise ValueError(f"{method} is for pretrained encoders; {model.model_type} is trained whole: --peft none")
    return add_method(model, method, lambda: attach(model, settings, init_ids))


def add_method(model: Encoder, method: str, attach: Callable[[], dict[str, Any]]) -> Encoder:
    """Freezes the weights of the checkpoint and attaches a method, in place. Returns the model.

    attach: adds the method's modules to the model and returns the settings that the adapter's file records. After an
    error, and after `detach_adapter`, the model trains the weights that it trained before.
    """
    check_no_adapter(model)
    before = {p: p.requires_grad for p in model.parameters()}
    trained = [p for name, p in model.named_parameters() if stays_trainable(model, name)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        model.adapter = {"method": method, **attach()}
    except BaseException:
        for parameter, trainable in before.items():
            parameter.requires_grad_(trainable)
        raise
    for parameter in trained:
        parameter.requires_grad_(True)
    match_mode(model)
    remember_backbone(model)
    plain = ((backbone_name(name), p) for name, p in model.named_parameters() if p in before)
    model.adapter["trained_before"] = {name: before[p] for name, p in plain}
    return model


def match_mode(model: Encoder) -> None:
    """Puts the adapter's modules into the mode of the model: train() or eval()."""
    modules = [module for _, module in wrapped(model)] + ([] if model.virtual is None else [model.virtual])
    for module in modules:
        module.train(model.training)


def remember_backbone(model: Encoder) -> None:
    """Keeps the values and class names of the plain model that the adapter replaces, for `detach_adapter`."""
    model.adapter["before"] = plain_values(model), model.config.labels


def plain_values(model: Encoder) -> dict[str, Tensor]:
    """Returns copies of the parameters of the plain model that an adapter file contains, by name."""
    pairs = ((backbone_name(name), p) for name, p in model.named_parameters() if in_adapter_file(model, name))
    return {name: p.detach().clone() for name, p in pairs if name is not None}


def set_labels(model: Model, labels: tuple[str, ...]) -> None:
    """Names the classes of the model, in place."""
    model.config = dataclasses.replace(model.config, labels=labels)


def check_no_adapter(model: Encoder) -> None:
    """Raises ValueError if the model already has an adapter."""
    if model.adapter is not None:
        raise ValueError(f"the model already has a {model.adapter['method']} adapter; detach it first")


def stays_trainable(model: Encoder, name: str) -> bool:
    """Returns whether a parameter of the plain model is trained together with an adapter."""
    return name.split(".")[0] in model.HEAD or name in model.newly_initialized


def backbone_name(name: str) -> str | None:
    """Maps a parameter name of an adapted model to its name in the plain model; None for the adapter's own."""
    if name.startswith("virtual.") or name.rpartition(".")[2] in LEAVES:
        return None
    return name.replace(".base.", ".")


def is_adapter_parameter(name: str) -> bool:
    """Returns whether a parameter belongs to the adapter and not to the plain model."""
    return backbone_name(name) is None


def in_adapter_file(model: Encoder, name: str) -> bool:
    """Returns whether an adapter file contains a parameter.

    It contains the adapter, the head, biases that LoRA trains, and parameters of the backbone that the file of a loaded
    adapter replaces (huggingface/peft's modules_to_save).
    """
    plain, settings = backbone_name(name), model.adapter or {}
    if plain is None or plain.split(".")[0] in model.HEAD or plain in settings.get("replaced", ()):
        return True
    bias = settings.get("lora_bias", "none")
    return name.endswith("bias") and (bias == "all" or (bias == "lora_only" and ".base." in name))


def trains_backbone(model: Encoder) -> bool:
    """Returns whether parameters are trained that an adapter file does not contain."""
    return any(
        p.requires_grad and not name.startswith(TRAINING_ONLY) and not in_adapter_file(model, name)
        for name, p in model.named_parameters()
    )


# ------------------------------------------------------------------------------- several adapters on one backbone


class Adapter(NamedTuple):
    """A detached or merged adapter."""

    settings: dict[str, Any]  # method and options
    modules: dict[str, Module]  # the method's modules, by name
    values: dict[str, Tensor]  # of the head, and of parameters of the backbone in the adapter's file, by name
    labels: tuple[str, ...]  # names of the classes
    shapes: dict[str, torch.Size]  # of all parameters of its plain model, by name; {} if it is merged


def shapes_of(model: Encoder) -> dict[str, torch.Size]:
    """Returns the shape of each parameter of a plain model, by name."""
    return {name: p.shape for name, p in model.named_parameters()}


@torch.no_grad()
def detach_adapter(model: Encoder) -> Adapter:
    """Removes the adapter of `model` and returns it. Head and backbone get the values from before the adapter.

    Raises ValueError if there is no adapter.
    """
    if model.adapter is None:
        raise ValueError("the model has no adapter")
    values, labels = plain_values(model), model.config.labels
    layers = wrapped(model)
    for name, layer in layers:
        model.set_submodule(name, layer.base)
        layer.base = None  # another model may get the adapter
    modules: dict[str, Module] = dict(layers)
    if model.virtual is not None:
        modules["virtual"] = model.virtual
        model.virtual = None
    adapter = Adapter(model.adapter, modules, values, labels, shapes_of(model))
    model.adapter = None
    adapter.settings["attached"] = False
    copy_values(model, *adapter.settings["before"])
    adapter.settings["trained"] = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, trained in adapter.settings["trained_before"].items():
        model.get_parameter(name).requires_grad_(trained)
    return adapter


def copy_values(model: Encoder, values: dict[str, Tensor], labels: tuple[str, ...]) -> None:
    """Copies values into the parameters of a plain model, and names its classes, in place."""
    for name, value in values.items():
        model.get_parameter(name).data.copy_(value)
    set_labels(model, labels)


@torch.no_grad()
def attach_adapter(model: Encoder, adapter: Adapter) -> Encoder:
    """Restores a detached adapter, in place, on its model or one of the same shape.

    Raises ValueError if the model already has an adapter or has other parameters, and if the adapter is attached to a
    model. After an error, the model is unchanged.
    """
    check_no_adapter(model)
    if adapter.settings.get("attached"):
        raise ValueError("the adapter is attached to a model; detach it there, or deep-copy it before attaching it")
    here, there = shapes_of(model), adapter.shapes or shapes_of(model)
    if wrong := next((name for name in (*there, *here) if here.get(name) != there.get(name)), None):
        found, needed = (list(shapes[wrong]) if wrong in shapes else "missing" for shapes in (here, there))
        raise ValueError(f"the adapter does not fit this model: {wrong} is {found} here, {needed} in its model")
    virtual = adapter.modules.get("virtual")
    if isinstance(virtual, DeepPrefix) and virtual.num_heads != model.config.num_heads:
        raise ValueError(f"the prefix is for {virtual.num_heads} heads; the model has {model.config.num_heads}")
    adapter.settings["attached"] = True
    if adapter.shapes:  # what `detach_adapter` restores is of this model, as it is now
        replaced = {name: model.get_parameter(name).detach().clone() for name in adapter.values}
        adapter.settings["before"] = replaced, model.config.labels
        adapter.settings["trained_before"] = {name: p.requires_grad for name, p in model.named_parameters()}
    copy_values(model, adapter.values, adapter.labels)
    for name, trained in adapter.settings.pop("trained", {}).items():
        model.get_parameter(name).requires_grad_(trained)
    for name, module in adapter.modules.items():
        if name == "virtual":
            model.virtual = module
        else:
            module.base = model.get_submodule(name)
            model.set_submodule(name, module)
    model.adapter = adapter.settings
    match_mode(model)
    return model


def merge(model: Encoder) -> Encoder:
    """Merges the adapter into the weights, in place; `unmerge` undoes it. What was frozen stays frozen.

    Raises ValueError if there is no adapter, for a method that cannot be merged (virtual tokens, Houlsby's adapters),
    and for LoRA and IA³ on quantized weights.
    """
    if model.adapter is None:
        raise ValueError("the model has no adapter to merge")
    entry = METHODS[model.adapter["method"]]
    if entry.merge is None:
        method = model.adapter["method"]
        raise ValueError(f"{method} cannot be merged into the weights; --weights runs/NAME/best uses it as it is")
    modules: dict[str, Module] = dict(wrapped(model))
    entry.merge(model)
    model.merged = Adapter(model.adapter, modules, {}, model.config.labels, {})
    model.adapter = None
    return model


def unmerge(model: Encoder) -> Encoder:
    """Restores the adapted model from before `merge`, up to rounding.

    Raises ValueError if nothing was merged, or if the model has another adapter by now.
    """
    if model.merged is None:
        raise ValueError("nothing was merged into this model")
    check_no_adapter(model)
    merged, model.merged = model.merged, None
    for module in merged.modules.values():
        module.unmerge()
    merged.settings["attached"] = False
    return attach_adapter(model, merged)


def positions(model: Model) -> tuple[int, float]:
    """Returns the number of virtual tokens that take a position, and the number of positions of the model.

    The second is infinity for a model without a position table.
    """
    if not isinstance(model, Encoder) or model.embeddings.position is None:
        return 0, math.inf
    shifts = model.virtual is not None and (model.PREFIX_SHIFTS or not isinstance(model.virtual, DeepPrefix))
    virtual = model.adapter["virtual_tokens"] if shifts and model.adapter is not None else 0
    return virtual, model.embeddings.position.num_embeddings - model.first_position


def check_positions(model: Model, max_length: int) -> None:
    """Raises ValueError if a review of max_length tokens, with the virtual tokens, exceeds the position table."""
    virtual, available = positions(model)
    if virtual + max_length > available:
        what, way_out = f"--max-length {max_length} needs {max_length}", "lower it"
        if virtual:
            what = f"{virtual} virtual tokens and --max-length {max_length} need {virtual + max_length}"
            way_out = "lower one of them"
        raise ValueError(f"{what} positions; {model.model_type} has {available}: {way_out}")
