"""Reads and writes adapter directories in huggingface/peft's layout: adapter_config.json and adapter_model.safetensors.

    LoRA    base_model.model.<published module>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    virtual prompt_embeddings: [P, E] of a prompt, [P, 2·L·D] of a prefix
    head    base_model.model.<published name> with LoRA, base_model.<published name> with virtual tokens

Adapters that huggingface/peft 0.21 writes for these methods load here with equal logits, and the reverse holds for all
methods that it can run (tests/golden/peft_interop.py). The encoder of virtual tokens is saved separately, in
prompt_encoder.safetensors, which huggingface/peft does not have; with it, training can continue.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module, Parameter

from data.files import open_tensors, read_json, write_json, write_tensors
from data.hub import CONFIG, WEIGHTS
from nn import Model
from nn.checkpoint import TRAINING_ONLY, translate, write_config
from nn.encoder import Encoder
from nn.quant import Int8Linear
from peft import lora
from peft.adapters import apply, backbone_name, in_adapter_file
from peft.p_tuning import PromptEncoder
from peft.prefix import PrefixEncoder, attach_prefix
from peft.prompt import SoftPrompt, Table

ADAPTER, ADAPTER_CONFIG, ENCODER = "adapter_model.safetensors", "adapter_config.json", "prompt_encoder.safetensors"
COPY = re.compile(r"\.(original_module|modules_to_save)\.")  # with bias="all", peft saves the head's biases three times
LEAVES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
PEFT_TYPES = {
    "lora": "LORA",
    "prompt": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
    "prefix": "PREFIX_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
    "head": "HEAD",
}
DEFAULT_METHODS = {"PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}
# fields of huggingface/peft that are supported, or that have no effect on the result
SUPPORTED_FIELDS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping",
    "modules_to_save", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "bias",
    "use_rslora", "use_dora", "init_lora_weights", "megatron_core", "qalora_group_size", "num_virtual_tokens",
    "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type",
    "encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "prefix_projection", "init_weights", "pool",
    "method", "ensure_weight_tying",
}  # fmt: skip


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


def linear_layers(model: Encoder) -> list[str]:
    """Returns the names of all linear layers, as they are without an adapter."""
    return [n.removesuffix(".base") for n, module in model.named_modules() if isinstance(module, Linear | Int8Linear)]


def short_targets(model: Encoder, names: list[str]) -> list[str]:
    """Finds the shortest name suffixes that select exactly the layers `names` (peft matches the end of a name)."""
    all_names, chosen = {module_name(model, n) for n in linear_layers(model)}, {module_name(model, n) for n in names}
    for depth in range(1, 20):
        suffixes = sorted({".".join(name.split(".")[-depth:]) for name in chosen})
        if {name for name in all_names if matches(name, suffixes)} == chosen:
            return suffixes
    return sorted(chosen)


def matches(module: str, targets: list[str] | str) -> bool:
    """Applies huggingface/peft's rule for target_modules: a string is a pattern for whole names, a list, suffixes."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def from_pattern(module: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """Applies huggingface/peft's rule for rank_pattern and alpha_pattern."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


# ----------------------------------------------------------------------------------------------------------- save


def save_base(model: Encoder, directory: str | Path) -> None:
    """Writes the plain model inside an adapted one as a checkpoint directory, if the backbone was trained too."""
    plain = ((backbone_name(n), p) for n, p in model.named_parameters() if not n.startswith(TRAINING_ONLY))
    state: dict[str, Tensor] = {translate(name, model.KEYS): p for name, p in plain if name is not None}
    write_json(Path(directory) / CONFIG, write_config(model))
    write_tensors(Path(directory) / WEIGHTS, state)


def lora_config(model: Encoder) -> dict[str, Any]:
    """Returns the fields of adapter_config.json that describe LoRA."""
    settings, layers = model.adapter, lora.wrapped(model)
    ranks = {module_name(model, name): layer.rank for name, layer in layers if layer.rank != settings["rank"]}
    alphas = {module_name(model, name): layer.alpha for name, layer in layers if layer.alpha != settings["alpha"]}
    return {
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": settings["lora_dropout"],
        "target_modules": short_targets(model, settings["names"]),
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {re.escape(name): alpha for name, alpha in alphas.items()},
        "bias": settings["lora_bias"],
        "use_rslora": settings["rslora"],
        "use_dora": settings["dora"],
    }


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
        return common | {"token_dim": config.hidden_size, "prefix_projection": False, "encoder_hidden_size": hidden}
    if settings["method"] == "p_tuning":
        kind, hidden = settings["prompt_encoder"].upper(), settings["prompt_hidden"]
        common |= {"encoder_reparameterization_type": kind, "encoder_hidden_size": hidden, "encoder_num_layers": 2}
    return common | {"pool": settings["pool"]}


def save_adapter(model: Encoder, directory: str | Path, base: str) -> None:
    """Writes adapter_config.json, adapter_model.safetensors, and prompt_encoder.safetensors if an encoder computes the
    virtual tokens. base: directory or hub id of the backbone."""
    directory, method = Path(directory), model.adapter["method"]
    own = lora_config(model) if method == "lora" else virtual_config(model) if model.virtual is not None else {}
    tensors: dict[str, Tensor] = dict(adapter_parameters(model))
    if model.virtual is not None:
        tensors["prompt_embeddings"] = model.virtual.source()
        if not isinstance(model.virtual.source, Table):
            write_tensors(directory / ENCODER, model.virtual.source.state_dict())
    config = {
        "peft_type": PEFT_TYPES[method],
        "method": method,
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "modules_to_save": sorted(model.HEAD_MODULES),
        "inference_mode": True,
    }
    write_tensors(directory / ADAPTER, tensors)
    write_json(directory / ADAPTER_CONFIG, config | own)


# ----------------------------------------------------------------------------------------------------------- load


def check_config(config: dict[str, Any], where: Path) -> None:
    """Raises ValueError that names the fields of adapter_config.json that are not supported."""
    kinds = sorted(set(PEFT_TYPES.values()))
    if config.get("peft_type") not in kinds:
        raise ValueError(
            f"{where}: peft_type {config.get('peft_type')!r} is not supported; supported: {', '.join(kinds)}"
        )
    unset: tuple[Any, ...] = (None, False, {}, [], "")
    unsupported = sorted(name for name, value in config.items() if name not in SUPPORTED_FIELDS and value not in unset)
    if config.get("init_lora_weights", True) not in (True, False, None, "gaussian"):
        unsupported.append("init_lora_weights")
    if unsupported:
        shown = ", ".join(f"{name} = {config[name]!r}" for name in unsupported)
        raise ValueError(f"{where}: these settings are not supported: {shown}")


def lora_targets(model: Encoder, config: dict[str, Any], where: Path) -> list[str]:
    """Returns the layers that an adapter_config.json adapts. Raises ValueError for none, and for layers of the head."""
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    names = [name for name in linear_layers(model) if matches(module_name(model, name), targets)]
    names = [name for name in names if not matches(module_name(model, name), excluded)]
    if not names:
        shown = targets if isinstance(targets, str) else ", ".join(targets)
        raise ValueError(f"{where}: none of its target_modules ({shown}) is in this model")
    if in_head := [name for name in names if name.split(".")[0] in model.HEAD]:
        raise ValueError(f"{where}: it adapts the head ({', '.join(in_head)}), which is trained whole here")
    return names


def apply_lora(model: Encoder, config: dict[str, Any], where: Path) -> None:
    """Applies LoRA to `model`, in place, with the settings of an adapter_config.json."""
    names = lora_targets(model, config, where)
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)

    def pattern(field: str, default: Any) -> str:
        values = {name: from_pattern(module_name(model, name), config.get(field), default) for name in names}
        return " ".join(f"{name}={value}" for name, value in values.items() if value != default)

    apply(
        model,
        "lora",
        targets=",".join(names),
        rank=rank,
        alpha=alpha,
        rank_pattern=pattern("rank_pattern", rank),
        alpha_pattern=pattern("alpha_pattern", alpha),
        lora_dropout=config.get("lora_dropout", 0.0),
        lora_bias=config.get("bias", "none"),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )


def read_virtual_tokens(directory: Path, width: int) -> Tensor:
    """Reads the virtual tokens of an adapter file: fp32 [P, width]. Raises ValueError."""
    with open_tensors(directory / ADAPTER) as file:
        if "prompt_embeddings" not in file.keys():  # noqa: SIM118
            raise ValueError(f"{directory} has no prompt_embeddings")
        rows = file.get_tensor("prompt_embeddings").float()
    if rows.dim() != 2 or rows.size(1) != width:
        raise ValueError(f"{directory}: prompt_embeddings {list(rows.shape)}, but this model needs rows of {width}")
    return rows


def apply_virtual_tokens(model: Encoder, config: dict[str, Any], directory: Path, trainable: bool) -> None:
    """Attaches the virtual tokens of an adapter directory to `model`, in place; with their encoder if trainable."""
    deep = config["peft_type"] == "PREFIX_TUNING"
    kind, hidden = config.get("encoder_reparameterization_type", "MLP").lower(), config.get("encoder_hidden_size", 0)
    width = model.embeddings.word.embedding_dim
    if deep:
        width = 2 * len(model.layers) * model.layers[0].attention.key.out_features
    rows = read_virtual_tokens(directory, width)
    source: Module = Table(rows)
    if trainable and (directory / ENCODER).is_file():
        source = PrefixEncoder(rows, model.config.hidden_size, hidden) if deep else PromptEncoder(rows, kind, hidden)
        with open_tensors(directory / ENCODER) as file:
            source.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    apply(model, "head")
    method = config.get("method") or DEFAULT_METHODS[config["peft_type"]]
    settings = {"method": method, "virtual_tokens": len(rows)}
    if deep:
        attach_prefix(model, source)
        model.adapter = settings | {"prefix_hidden": hidden}
    else:
        pool = config.get("pool", "virtual")  # huggingface/peft has no other
        model.virtual = SoftPrompt(source, pool)
        model.adapter = settings | {"pool": pool, "prompt_encoder": kind, "prompt_hidden": hidden}


def load_adapter(model: Model, directory: str | Path, trainable: bool = False) -> Encoder:
    """Applies the adapter of a directory to a plain model, in place, and returns the model.

    trainable: restores the encoder of virtual tokens as well, so that training can continue. Raises FileNotFoundError,
    or ValueError for an unsupported adapter, listing all tensors that are missing, surplus or misshaped. Warns if
    DeBERTa's pooler is in no file.
    """
    if not isinstance(model, Encoder):
        raise ValueError(f"{directory} is an adapter for encoders, not for {model.model_type}")
    directory = Path(directory)
    config = read_json(directory / ADAPTER_CONFIG)
    check_config(config, directory)
    if config["peft_type"] == "LORA":
        apply_lora(model, config, directory)
    elif config["peft_type"] == "HEAD":
        apply(model, "head")
    else:
        apply_virtual_tokens(model, config, directory, trainable)
    missing_poolers = fill_parameters(adapter_parameters(model), directory)
    if missing_poolers and any(name.startswith("pooler.") for name in model.newly_initialized):
        print(f"warning: neither {directory} nor the weights contain the pooler: it is random, and so are the answers")
    return model


def fill_parameters(expected: dict[str, Parameter], directory: Path) -> list[str]:
    """Copies the tensors of an adapter file into the parameters `expected`, by published name.

    Returns the poolers that the file lacks. Raises ValueError with all tensors that do not fit.
    """
    problems = []
    with open_tensors(directory / ADAPTER) as file:
        found = {name for name in file.keys() if name != "prompt_embeddings" and not COPY.search(name)}  # noqa: SIM118
        missing = sorted(expected.keys() - found)
        poolers = [name for name in missing if ".pooler." in name]
        problems += [f"missing {name}" for name in missing if name not in poolers]
        problems += [f"surplus {name}" for name in sorted(found - expected.keys())]
        for name in sorted(found & expected.keys()):
            tensor = file.get_tensor(name)
            if tensor.shape != expected[name].shape:
                problems.append(f"misshaped {name}: {list(tensor.shape)}, not {list(expected[name].shape)}")
            else:
                expected[name].data.copy_(tensor)
    if problems:
        raise ValueError(f"{directory} does not fit the model ({len(problems)} problems): {'; '.join(problems[:20])}")
    return poolers
