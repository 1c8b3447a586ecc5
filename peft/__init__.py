"""Parameter-efficient fine-tuning: METHODS, one line each, and how an adapter is put on, saved, loaded and merged.

`apply` freezes what the checkpoint brought, puts the method on, and leaves trainable: the method's own parameters, the
head (pooler and classifier), and whatever was initialised at random (`model.fresh`), since random layers that stay
frozen are only noise (DeBERTa's pooler is in no published backbone: huggingface/peft#2171).

An adapter directory is huggingface/peft's: adapter_config.json beside adapter_model.safetensors, published module
names.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from nn.checkpoint import translate, write_config
from nn.files import open_tensors, read_json, write_json, write_tensors
from nn.hub import CONFIG, WEIGHTS
from peft import lora

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


class MethodEntry(NamedTuple):
    apply: Callable[..., dict] | None  # (model, **options) -> what to remember; None: everything is trained
    merge: Callable[[Module], None] | None
    options: tuple[str, ...]  # names of the options that train.py hands over
    training: dict[str, Any]  # training defaults that the method wants


# fmt: off
METHODS: dict[str, MethodEntry] = {
    "none": MethodEntry(None, None, (), {}),
    "lora": MethodEntry(lora.apply, lora.merge, lora.OPTIONS, {"learning_rate": 5e-4, "head_learning_rate": 1e-3}),
}
# fmt: on


def apply(model: Module, method: str, **options: Any) -> Module:
    """Puts `method` on `model`, in place, and freezes the rest. options: those of the method's own `apply`.

    Raises ValueError for an unknown method or option, or a target that is not there.
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
    trained = [name for name, _ in model.named_parameters() if is_trained(model, name)]
    trained = [model.get_parameter(name) for name in trained]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.adapter = {"method": method, **entry.apply(model, **options)}
    for parameter in trained:
        parameter.requires_grad_(True)
    return model


def is_trained(model: Module, name: str) -> bool:
    """Whether a parameter of the plain model stays trainable under an adapter."""
    return name.split(".")[0] in model.HEAD or name in getattr(model, "fresh", ())


def backbone_name(name: str) -> str | None:
    """Name in the plain model of a parameter of an adapted one; None for the adapter's own."""
    if name.rpartition(".")[2] in ("A", "B"):
        return None
    return name.replace(".base.", ".")


def trains_backbone(model: Module) -> bool:
    """Whether anything but adapter and head is trained, so that an adapter file alone would not bring the model
    back."""
    names = (backbone_name(name) for name, p in model.named_parameters() if p.requires_grad)
    return any(name is not None and name.split(".")[0] not in model.HEAD for name in names)


def backbone_state(model: Module) -> dict[str, Tensor]:
    """The plain model inside an adapted one, under published names."""
    plain = ((backbone_name(name), p) for name, p in model.named_parameters())
    return {translate(name, model.KEYS): p for name, p in plain if name is not None}


# ---------------------------------------------------------------------------------------------------------- files


def published(name: str, keys: dict[str, str]) -> str:
    """Our parameter of an adapter -> huggingface/peft's name for it."""
    name = translate(name.replace(".base.", "."), keys)
    module, _, leaf = name.rpartition(".")
    return PREFIX + (f"{module}.lora_{leaf}.weight" if leaf in ("A", "B") else name)


def adapter_parameters(model: Module) -> dict[str, torch.nn.Parameter]:
    """What an adapter file holds: the method's parameters and the head, by published name."""
    return {
        published(name, model.KEYS): p
        for name, p in model.named_parameters()
        if backbone_name(name) is None or name.split(".")[0] in model.HEAD
    }


def save_base(model: Module, directory: str | Path) -> None:
    """The plain model inside an adapted one, as a checkpoint directory: for backbones that were trained too."""
    write_json(Path(directory) / CONFIG, write_config(model))
    write_tensors(Path(directory) / WEIGHTS, backbone_state(model))


def save_adapter(model: Module, directory: str | Path, base: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors. base: directory or hub id of the backbone."""
    directory, adapter = Path(directory), model.adapter
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": adapter["rank"],
        "lora_alpha": adapter["alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "target_modules": short_targets(model, adapter["names"]),
        "modules_to_save": sorted(model.HEAD_MODULES),
        "bias": "none",
        "inference_mode": True,
    }
    write_tensors(directory / ADAPTER, adapter_parameters(model))
    write_json(directory / ADAPTER_CONFIG, config)


def module_name(model: Module, name: str) -> str:
    """Our module -> its published name."""
    return translate(f"{name}.weight", model.KEYS).rpartition(".")[0]


def short_targets(model: Module, names: list[str]) -> list[str]:
    """The shortest ends of published names that mean exactly the layers `names` (peft matches a name's end)."""
    layers = [n.removesuffix(".base") for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    published, chosen = [module_name(model, n) for n in layers], {module_name(model, n) for n in names}
    for depth in range(1, 20):
        ends = sorted({".".join(name.split(".")[-depth:]) for name in chosen})
        if {name for name in published if matches(name, ends)} == chosen:
            return ends
    return sorted(chosen)


def matches(module: str, targets: list[str]) -> bool:
    """huggingface/peft's rule for a list of targets."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def load_adapter(model: Module, directory: str | Path) -> Module:
    """Puts the adapter of a directory on a plain model, strictly.

    Raises FileNotFoundError, or ValueError for an adapter of another kind or shape, listing every tensor that is
    missing, surplus or misshaped.
    """
    directory = Path(directory)
    config = read_json(directory / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{directory}: peft_type {config.get('peft_type')!r} is not supported; supported: LORA")
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = config["target_modules"]
    names = [name for name in layers if matches(module_name(model, name), targets)]
    if not names:
        raise ValueError(f"{directory}: none of its target_modules ({', '.join(targets)}) is in this model")
    options = {"rank": config["r"], "alpha": config["lora_alpha"], "lora_dropout": config["lora_dropout"]}
    apply(model, "lora", **options, targets=",".join(names))
    expected, problems = adapter_parameters(model), []
    with open_tensors(directory / ADAPTER) as file:
        found = set(file.keys())
        problems += [f"missing {name}" for name in sorted(expected.keys() - found)]
        problems += [f"surplus {name}" for name in sorted(found - expected.keys())]
        for name in sorted(found & expected.keys()):
            tensor = file.get_tensor(name)
            if tensor.shape != expected[name].shape:
                problems.append(f"misshaped {name}: {list(tensor.shape)}, not {list(expected[name].shape)}")
            else:
                expected[name].data.copy_(tensor)
    if problems:
        raise ValueError(f"{directory} does not fit the model ({len(problems)} problems): {'; '.join(problems[:20])}")
    return model


def merge(model: Module) -> Module:
    """The plain model with the adapter's change inside its weights, in place. Raises ValueError where there is none."""
    adapter = getattr(model, "adapter", None)
    if not adapter:
        raise ValueError("the model carries no adapter to merge")
    entry = METHODS[adapter["method"]]
    if entry.merge is None:
        raise ValueError(f"a {adapter['method']} adapter cannot be merged into the weights")
    entry.merge(model)
    model.adapter = None
    return model
