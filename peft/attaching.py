"""Attaches to a model what an adapter directory in huggingface/peft's layout describes (peft/files.py).

The parameters of layers are filled in by peft/loading.py. Virtual tokens are read here, because their number is the
number of rows in the file.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from data.checked import about, listed, show
from data.hub import ADAPTER_CONFIG, ENCODER, MERGE_THERE, adapter_method
from data.weight_files import WeightFile
from nn import MODELS
from nn.checkpoint import Unfilled
from nn.encoder import Encoder
from peft import ia3, lora
from peft.adapters import add_method, apply
from peft.files import module_name
from peft.p_tuning import PromptEncoder
from peft.prefix import PrefixEncoder, attach_prefix, prefix_width
from peft.prompt import SoftPrompt, Table
from peft.rules import from_pattern, in_layers, matches, matches_end, saved_modules
from peft.wrapped import linear_layers


def attach_described(model: Encoder, config: dict[str, Any], file: WeightFile, trainable: bool) -> None:
    """Attaches the adapter of an adapter_config.json to `model`, in place.

    file: its tensors, next to its config.  trainable: with the encoder of virtual tokens. Raises ValueError that names
    the directory for settings and tensors that do not fit the model.
    """
    directory = file.path.parent
    with about(directory):
        check_architecture(model, file)
        if config["peft_type"] == "LORA":
            attach_lora(model, config, file)
        elif config["peft_type"] == "IA3":
            attach_ia3(model, config, file)
        elif config["peft_type"] == "HOULSBY":
            attach_houlsby(model, config)
        elif config["peft_type"] in ("HEAD", "BITFIT"):
            apply(model, adapter_method(directory))
        else:
            attach_virtual_tokens(model, config, file, trainable)


def check_architecture(model: Encoder, file: WeightFile) -> None:
    """Raises ValueError if the tensors of an adapter are named after layers of another architecture."""
    encoders = {name: entry.build for name, entry in MODELS.items() if issubclass(entry.build, Encoder)}
    names = {first_part(build): name for name, build in reversed(encoders.items())}  # xlm_roberta has roberta's
    found = names.keys() & {name.removeprefix("base_model.model.").split(".")[0] for name in file.shapes}
    if found and (own := first_part(type(model))) not in found:
        adapted, backbone = " and ".join(sorted(names[part] for part in found)), model.source or model.model_type
        raise ValueError(
            f"it adapts layers of {adapted}, but the backbone {backbone} has those of {names[own]}; "
            "--base names the right backbone"
        )


def first_part(build: type[Encoder]) -> str:
    """Returns the first part of the published names of the layers, such as bert."""
    return build.KEYS["embeddings.word"].split(".")[0]


def target_layers(model: Encoder, config: dict[str, Any], file: WeightFile) -> list[str]:
    """Returns the layers that an adapter's config adapts. Raises ValueError for none, and for embeddings."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = r"(?!classifier$).*"
    modules = {name: module_name(model, name) for name in linear_layers(model)}
    saved = [rf"(^|.*\.){name}($|\..*)" for name in saved_modules(config)]
    names = [
        name
        for name, module in modules.items()
        if matches(module, targets)
        and in_layers(module, config)
        and not matches(module, excluded)
        and not any(re.match(pattern, module) for pattern in saved)
    ]
    where = file.path.parent
    if not targets:
        raise ValueError(f"{where / ADAPTER_CONFIG} names no target_modules; add the layers that it adapts")
    if not names and any("lora_embedding" in name for name in file.shapes):
        raise ValueError(f"{where}: LoRA on embeddings is not supported; {MERGE_THERE}")
    if not names:
        shown = show(targets) if isinstance(targets, str) else listed(targets, 20)
        raise ValueError(f"{where}: none of its target_modules ({shown}) is in this model")
    return names


def check_ranks(layers: dict[str, tuple[int, float]], file: WeightFile) -> None:
    """Raises ValueError for a rank below 1 or above the largest dimension of all tensors in the file, before layers of
    this rank are built."""
    largest = max((max(shape, default=0) for shape, _ in file.shapes.values()), default=0)
    for name, (rank, _) in layers.items():
        if not 1 <= rank <= max(largest, 1):
            raise ValueError(
                f"the rank {rank} of {name} does not fit {file.path.name}, whose largest width is {largest}"
            )


def attach_lora(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Attaches LoRA to `model`, in place, with the settings of an adapter_config.json."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    layers = {}
    for name in target_layers(model, config, file):
        module = module_name(model, name)
        layers[name] = (
            from_pattern(module, config.get("rank_pattern"), rank),
            from_pattern(module, config.get("alpha_pattern"), alpha),
        )
    check_ranks(layers, file)
    options = lora.LoRAOptions(
        rank=rank,
        alpha=alpha,
        lora_dropout=config.get("lora_dropout") or 0.0,
        lora_bias=config.get("bias") or "none",
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    add_method(model, "lora", lambda: lora.wrap(model, layers, options))


def attach_ia3(model: Encoder, config: dict[str, Any], file: WeightFile) -> None:
    """Attaches IA³ to `model`, in place, to the layers that an adapter_config.json names."""
    names, patterns = target_layers(model, config, file), config.get("feedforward_modules") or []
    inputs = [name for name in names if matches_end(module_name(model, name), patterns)]
    add_method(model, "ia3", lambda: ia3.wrap(model, names, inputs))


def attach_houlsby(model: Encoder, config: dict[str, Any]) -> None:
    """Attaches Houlsby adapters to `model`, in place, of the size in an adapter_config.json.

    Raises ValueError for a missing size, and for one that is not below the width of the model.
    """
    if not isinstance(size := config.get("adapter_size"), int):
        raise ValueError(f"{ADAPTER_CONFIG} lacks adapter_size")
    apply(model, "houlsby", adapter_size=size)


def read_virtual_tokens(file: WeightFile, width: int, config: dict[str, Any]) -> Tensor:
    """Reads the virtual tokens of an adapter file: fp32 [P, width].

    Raises ValueError if they are missing, of another shape or number than the config implies, or not finite.
    """
    if "prompt_embeddings" not in file.shapes:
        raise ValueError(f"{file.path} has no prompt_embeddings")
    shape, kind = file.shapes["prompt_embeddings"]
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width or kind != "float":
        raise ValueError(f"{file.path}: prompt_embeddings {shape}, but this model needs rows of {width} numbers")
    rows = file.read("prompt_embeddings").float()
    if (count := config.get("num_virtual_tokens") or len(rows)) != len(rows):
        raise ValueError(f"{file.path} has {len(rows)} virtual tokens, its {ADAPTER_CONFIG} says {count}")
    if not rows.isfinite().all():
        raise ValueError(f"{file.path}: prompt_embeddings holds NaN or infinity")
    return rows


def read_encoder(path: Path, build: Callable[[Tensor], Module], rows: Tensor) -> Module:
    """Reads the encoder of virtual tokens: build(rows) with the tensors of its file.

    Its shapes are compared with those of the file before it is built. Raises ValueError that names what does not fit.
    """
    file = WeightFile(path)
    with torch.device("meta"), Unfilled():
        expected = {name: (list(tensor.shape), "float") for name, tensor in build(rows.to("meta")).state_dict().items()}
    if wrong := [name for name in {**expected, **file.shapes} if expected.get(name) != file.shapes.get(name)]:
        raise ValueError(f"{path} does not fit {ADAPTER_CONFIG}: {listed(wrong)} is missing, surplus or misshaped")
    tensors = {name: file.read(name).float() for name in expected}
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path}: {listed(wrong)} holds NaN or infinity")
    source = build(rows)
    source.load_state_dict(tensors)
    return source


def attach_virtual_tokens(model: Encoder, config: dict[str, Any], file: WeightFile, trainable: bool) -> None:
    """Attaches the virtual tokens of an adapter to `model`, in place; with their encoder if trainable.

    Raises ValueError for files that do not fit the model or each other.
    """
    deep = config["peft_type"] == "PREFIX_TUNING"
    kind = (config.get("encoder_reparameterization_type") or "MLP").lower()
    hidden = config.get("encoder_hidden_size") or 0
    width = prefix_width(model) if deep else model.embeddings.word.embedding_dim
    rows = read_virtual_tokens(file, width, config)
    heads = config.get("num_attention_heads")
    if deep and heads not in (None, model.config.num_heads):
        raise ValueError(f"{file.path}: the prefix is for {heads} heads; the backbone has {model.config.num_heads}")
    source: Module = Table(rows)
    if trainable and (encoder := file.path.parent / ENCODER).is_file():
        if hidden < 1:
            raise ValueError(f"{encoder} needs encoder_hidden_size, which {ADAPTER_CONFIG} lacks")
        if deep:
            source = read_encoder(encoder, lambda r: PrefixEncoder(r, model.config.hidden_size, hidden), rows)
        else:
            source = read_encoder(encoder, lambda r: PromptEncoder(r, kind, hidden), rows)
    apply(model, "head")
    settings = {"method": adapter_method(file.path.parent), "virtual_tokens": len(rows)}
    if deep:
        rate = config.get("prefix_dropout") or 0.0
        attach_prefix(model, source, rate)
        model.adapter |= settings | {"prefix_hidden": hidden, "prefix_dropout": rate}
    else:
        pool = config.get("pool") or "virtual"  # huggingface/peft has no other
        model.virtual = SoftPrompt(source, pool)
        model.adapter |= settings | {"pool": pool, "prompt_encoder": kind, "prompt_hidden": hidden}
