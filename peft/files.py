"""Writes adapter directories in huggingface/peft's layout: adapter_config.json and adapter_model.safetensors.

    LoRA    base_model.model.<published module>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    IA³     base_model.model.<published module>.ia3_l
    virtual prompt_embeddings: [P, E] of a prompt, [P, 2·L·D] of a prefix
    head    base_model.model.<published name>, base_model.<published name> with virtual tokens

Adapters that huggingface/peft 0.21 writes for these methods load here with equal logits, and the reverse holds for all
methods that it can run (tests/golden/peft_interop.py). The encoder of virtual tokens is saved separately, in
prompt_encoder.safetensors, which huggingface/peft does not have; with it, training can continue.

In a file, the rows of the classifier have the class order of the backbone's config. The adapter's id2label names them
too; huggingface/peft ignores this field and takes the names from the backbone.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from data.files import write_json, write_tensors
from data.hub import ADAPTER, ADAPTER_CONFIG, CONFIG, ENCODER, WEIGHTS, split_revision
from nn.checkpoint import CLASS_ROWS, TRAINING_ONLY, translate, write_config
from nn.encoder import Encoder
from nn.quant import is_quantized
from peft.adapters import backbone_name, in_adapter_file
from peft.prompt import Table
from peft.rules import matches
from peft.wrapped import LEAVES, linear_layers, wrapped

PEFT_TYPES = {
    "lora": "LORA",
    "prompt": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
    "prefix": "PREFIX_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
    "head": "HEAD",
    "bitfit": "BITFIT",
    "ia3": "IA3",
    "houlsby": "HOULSBY",
}


# ---------------------------------------------------------------------------------------------------------- names


def published(model: Encoder, name: str) -> str:
    """Maps a parameter name of an adapted model to huggingface/peft's name."""
    module, _, leaf = name.rpartition(".")
    if leaf in LEAVES:
        return f"base_model.model.{module_name(model, module)}.{LEAVES[leaf]}"
    if module.endswith(".base"):
        return f"base_model.model.{module_name(model, module.removesuffix('.base'))}.base_layer.{leaf}"
    prefix = "base_model." if model.virtual is not None else "base_model.model."
    return prefix + translate(name, model.KEYS)


def module_name(model: Encoder, name: str) -> str:
    """Maps a module name to its published name."""
    return translate(f"{name}.weight", model.KEYS).rpartition(".")[0]


def adapter_parameters(model: Encoder) -> dict[str, Parameter]:
    """Returns the parameters of an adapter file by published name, without those of virtual tokens."""
    return {
        published(model, name): p
        for name, p in model.named_parameters()
        if not name.startswith("virtual.") and in_adapter_file(model, name)
    }


def short_targets(model: Encoder, *groups: list[str]) -> list[list[str]]:
    """Finds the shortest name suffixes, of equal depth, that select exactly the layers of each group.

    huggingface/peft matches the end of a name. If a group is part of another, the other has its suffixes too.
    """
    every = {module_name(model, name) for name in linear_layers(model) if not name.startswith(TRAINING_ONLY)}
    chosen = [{module_name(model, name) for name in names} for names in groups]
    for depth in range(1, 20):
        suffixes = [sorted({".".join(name.split(".")[-depth:]) for name in names}) for names in chosen]
        if all(
            {name for name in every if matches(name, s)} == names for s, names in zip(suffixes, chosen, strict=True)
        ):
            return suffixes
    return [sorted(names) for names in chosen]


# ----------------------------------------------------------------------------------------------------------- save


def save_base(model: Encoder, directory: str | Path) -> None:
    """Writes the plain model inside an adapted one as a checkpoint directory. Raises ValueError if it is quantized."""
    if is_quantized(model):
        raise ValueError(f"{directory}: quantized weights are not saved as a backbone; load them without --quantize")
    plain = ((backbone_name(n), p) for n, p in model.named_parameters() if not n.startswith(TRAINING_ONLY))
    state: dict[str, Tensor] = {translate(name, model.KEYS): p for name, p in plain if name is not None}
    write_json(Path(directory) / CONFIG, write_config(model))
    write_tensors(Path(directory) / WEIGHTS, state)


def replaced_modules(model: Encoder) -> set[str]:
    """Returns the published names of the backbone's modules that the adapter replaces completely."""
    replaced = set(model.adapter.get("replaced", ()))
    named = [*model.named_parameters(), *model.named_buffers()]  # quantized weights are buffers
    kept = {name.rpartition(".")[0] for name, _ in named if name not in replaced}
    return {module_name(model, module) for name in replaced if (module := name.rpartition(".")[0]) not in kept}


def lora_config(model: Encoder) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that describe LoRA."""
    settings, layers = model.adapter, wrapped(model)
    ranks = {module_name(model, name): layer.rank for name, layer in layers if layer.rank != settings["rank"]}
    alphas = {module_name(model, name): layer.alpha for name, layer in layers if layer.alpha != settings["alpha"]}
    return {
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": settings["lora_dropout"],
        "target_modules": short_targets(model, settings["names"])[0],
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {re.escape(name): alpha for name, alpha in alphas.items()},
        "bias": settings["lora_bias"],
        "use_rslora": settings["rslora"],
        "use_dora": settings["dora"],
    }


def ia3_config(model: Encoder) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that describe IA³."""
    targets, inputs = short_targets(model, model.adapter["names"], model.adapter["inputs"])
    return {"target_modules": targets, "feedforward_modules": inputs}


def own_config(model: Encoder) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that describe the method."""
    method = model.adapter["method"]
    if method == "lora":
        return lora_config(model)
    if method == "ia3":
        return ia3_config(model)
    if method == "houlsby":
        return {"adapter_size": model.adapter["adapter_size"]}
    return virtual_config(model) if model.virtual is not None else {}


def virtual_config(model: Encoder) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that describe virtual tokens."""
    settings, config = model.adapter, model.config
    common = {
        "num_virtual_tokens": settings["virtual_tokens"],
        "token_dim": getattr(config, "embedding_size", config.hidden_size),
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_transformer_submodules": 1,
    }
    if PEFT_TYPES[settings["method"]] == "PREFIX_TUNING":
        hidden = settings.get("prefix_hidden", config.hidden_size)
        common |= {"prefix_projection": False, "encoder_hidden_size": hidden}
        return common | {"token_dim": config.hidden_size, "prefix_dropout": settings.get("prefix_dropout", 0.0)}
    if settings["method"] == "p_tuning":
        kind, hidden = settings["prompt_encoder"].upper(), settings["prompt_hidden"]
        common |= {"encoder_reparameterization_type": kind, "encoder_hidden_size": hidden, "encoder_num_layers": 2}
    return common | {"pool": settings["pool"]}


def file_order(model: Encoder) -> list[int]:
    """Returns, for each class in the order of the backbone's config, its row in the model."""
    order = class_order(model) or range(len(model.config.labels))
    return sorted(range(len(order)), key=order.__getitem__)


def class_order(model: Encoder) -> tuple[int, ...]:
    """Returns, for each class of the model, its row in the order of the backbone's config; () if they are equal."""
    return model.adapter.get("class_order", model.class_order)


def save_adapter(model: Encoder, directory: str | Path, base: str) -> None:
    """Writes adapter_config.json, adapter_model.safetensors, and prompt_encoder.safetensors if an encoder computes the
    virtual tokens. base: directory or hub id of the backbone, `name/model@revision` for a revision. Raises ValueError
    if the model has no adapter."""
    if model.adapter is None:
        raise ValueError("the model has no adapter to save; nn.checkpoint.save_pretrained writes whole models")
    directory, method = Path(directory), model.adapter["method"]
    order, (name, revision) = file_order(model), split_revision(base)
    tensors: dict[str, Tensor] = dict(adapter_parameters(model))
    for key in (published(model, key) for key in CLASS_ROWS if key.startswith("classifier.")):
        tensors[key] = tensors[key][order]
    (directory / ENCODER).unlink(missing_ok=True)  # of an adapter that was saved here before
    if model.virtual is not None:
        tensors["prompt_embeddings"] = model.virtual.source()
        if not isinstance(model.virtual.source, Table):
            write_tensors(directory / ENCODER, model.virtual.source.state_dict())
    config = {
        "peft_type": PEFT_TYPES[method],
        "method": method,
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": name,
        "revision": revision,
        "modules_to_save": sorted({*model.HEAD_MODULES, *replaced_modules(model)}),
        "inference_mode": True,
        "id2label": {str(k): model.config.labels[row] for k, row in enumerate(order)},
    }
    write_tensors(directory / ADAPTER, tensors)
    write_json(directory / ADAPTER_CONFIG, config | own_config(model))
