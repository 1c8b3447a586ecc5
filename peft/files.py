"""Adapter directories in huggingface/peft's layout: adapter_config.json beside adapter_model.safetensors.

    LoRA    base_model.model.<published module>.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    virtual prompt_embeddings: [P, E] of a prompt, [P, 2·L·D] of a prefix
    head    base_model.model.<published name> beside LoRA, base_model.<published name> beside virtual tokens

What huggingface/peft 0.21 writes for these methods loads here with equal logits, and the other way round where it can
run the method (tests/golden/peft_interop.py). An encoder of virtual tokens is kept in prompt_encoder.safetensors, which
huggingface/peft does not have: with it, training can go on.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module, Parameter

import peft
from nn.checkpoint import ASIDE, translate, write_config
from nn.files import open_tensors, read_json, write_json, write_tensors
from nn.hub import CONFIG, WEIGHTS
from nn.quant import Int8Linear
from peft import lora
from peft.p_tuning import PromptEncoder
from peft.prefix import DeepPrefix, PrefixEncoder
from peft.prompt import SoftPrompt, Table

ADAPTER, ADAPTER_CONFIG, ENCODER = "adapter_model.safetensors", "adapter_config.json", "prompt_encoder.safetensors"
COPY = re.compile(r"\.(original_module|modules_to_save)\.")  # beside bias="all" peft saves the head's biases thrice
LEAVES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
PEFT_TYPES = {
    "lora": "LORA",
    "prompt": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
    "prefix": "PREFIX_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
    "head": "HEAD",
}
# fields of huggingface/peft that change nothing, or that are honoured
READ = {
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


def published(model: Module, name: str) -> str:
    """Our parameter of an adapted model -> huggingface/peft's name for it."""
    module, _, leaf = name.rpartition(".")
    if leaf in LEAVES:
        return f"base_model.model.{module_name(model, module)}.{LEAVES[leaf]}"
    if module.endswith(".base"):
        return f"base_model.model.{module_name(model, module.removesuffix('.base'))}.base_layer.{leaf}"
    prefix = "base_model." if model.virtual is not None else "base_model.model."
    return prefix + translate(name, model.KEYS)


def module_name(model: Module, name: str) -> str:
    """Our module -> its published name."""
    return translate(f"{name}.weight", model.KEYS).rpartition(".")[0]


def adapter_parameters(model: Module) -> dict[str, Parameter]:
    """The parameters in an adapter file, by published name; not those of virtual tokens."""
    return {
        published(model, name): p
        for name, p in model.named_parameters()
        if not name.startswith("virtual.") and peft.in_adapter_file(model, name)
    }


def short_targets(model: Module, names: list[str]) -> list[str]:
    """The shortest ends of published names that mean exactly the layers `names` (peft matches a name's end)."""
    layers = [n.removesuffix(".base") for n, module in model.named_modules() if isinstance(module, Linear | Int8Linear)]
    known, chosen = [module_name(model, n) for n in layers], {module_name(model, n) for n in names}
    for depth in range(1, 20):
        ends = sorted({".".join(name.split(".")[-depth:]) for name in chosen})
        if {name for name in known if matches(name, ends)} == chosen:
            return ends
    return sorted(chosen)


def matches(module: str, targets: list[str] | str) -> bool:
    """huggingface/peft's rule for target_modules: a string is a pattern for the whole name, a list holds ends."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def from_pattern(module: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """huggingface/peft's rule for rank_pattern and alpha_pattern."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


# ----------------------------------------------------------------------------------------------------------- save


def save_base(model: Module, directory: str | Path) -> None:
    """The plain model inside an adapted one, as a checkpoint directory: for backbones that were trained too."""
    plain = ((peft.backbone_name(name), p) for name, p in model.named_parameters() if not name.startswith(ASIDE))
    state = {translate(name, model.KEYS): p for name, p in plain if name is not None}
    write_json(Path(directory) / CONFIG, write_config(model))
    write_tensors(Path(directory) / WEIGHTS, state)


def lora_config(model: Module) -> dict[str, Any]:
    adapter, layers = model.adapter, lora.wrapped(model)
    ranks = {module_name(model, name): layer.rank for name, layer in layers if layer.rank != adapter["rank"]}
    alphas = {module_name(model, name): layer.alpha for name, layer in layers if layer.alpha != adapter["alpha"]}
    return {
        "r": adapter["rank"],
        "lora_alpha": adapter["alpha"],
        "lora_dropout": adapter["lora_dropout"],
        "target_modules": short_targets(model, adapter["names"]),
        "rank_pattern": {re.escape(name): rank for name, rank in ranks.items()},
        "alpha_pattern": {re.escape(name): alpha for name, alpha in alphas.items()},
        "bias": adapter["lora_bias"],
        "use_rslora": adapter["rslora"],
        "use_dora": adapter["dora"],
    }


def virtual_config(model: Module) -> dict[str, Any]:
    adapter, config = model.adapter, model.config
    common = {
        "num_virtual_tokens": adapter["virtual_tokens"],
        "token_dim": getattr(config, "embedding_size", config.hidden_size),
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_transformer_submodules": 1,
    }
    if isinstance(model.virtual, DeepPrefix):
        hidden = adapter.get("prefix_hidden", config.hidden_size)
        return common | {"token_dim": config.hidden_size, "prefix_projection": False, "encoder_hidden_size": hidden}
    if adapter["method"] == "p_tuning":
        kind, hidden = adapter["prompt_encoder"].upper(), adapter["prompt_hidden"]
        common |= {"encoder_reparameterization_type": kind, "encoder_hidden_size": hidden, "encoder_num_layers": 2}
    return common | {"pool": adapter["pool"]}


def save_adapter(model: Module, directory: str | Path, base: str) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, and prompt_encoder.safetensors where virtual tokens
    have an encoder. base: directory or hub id of the backbone."""
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
    """Raises ValueError naming the settings that would change the result and are not implemented."""
    kinds = sorted(set(PEFT_TYPES.values()))
    if config.get("peft_type") not in kinds:
        raise ValueError(
            f"{where}: peft_type {config.get('peft_type')!r} is not supported; supported: {', '.join(kinds)}"
        )
    odd = sorted(name for name, value in config.items() if name not in READ and value not in (None, False, {}, [], ""))
    start = config.get("init_lora_weights", True)
    if start not in (True, False, None, "gaussian"):
        odd.append("init_lora_weights")
    if odd:
        shown = ", ".join(f"{name} = {config[name]!r}" for name in odd)
        raise ValueError(f"{where} asks for what is not implemented: {shown}")


def put_lora(model: Module, config: dict[str, Any], where: Path) -> None:
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear | Int8Linear)]
    targets, excluded = config.get("target_modules") or [], config.get("exclude_modules") or []
    names = [name for name in layers if matches(module_name(model, name), targets)]
    names = [name for name in names if not matches(module_name(model, name), excluded)]
    if not names:
        shown = targets if isinstance(targets, str) else ", ".join(targets)
        raise ValueError(f"{where}: none of its target_modules ({shown}) is in this model")
    inner = [name for name in names if name.split(".")[0] not in model.HEAD]
    if inner != names:
        raise ValueError(
            f"{where}: it adapts the head ({', '.join(set(names) - set(inner))}), which is trained whole here"
        )
    options = {"alpha": config.get("lora_alpha", 8), "lora_dropout": config.get("lora_dropout", 0.0)}
    options |= {"rslora": bool(config.get("use_rslora")), "dora": bool(config.get("use_dora"))}
    options |= {"lora_bias": config.get("bias", "none"), "rank": config.get("r", 8)}
    patterns = {}
    for field, option in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
        own = {name: from_pattern(module_name(model, name), config.get(field), options[option]) for name in names}
        patterns[field] = " ".join(f"{name}={value}" for name, value in own.items() if value != options[option])
    peft.apply(model, "lora", **options, **patterns, targets=",".join(names))


def put_virtual(model: Module, config: dict[str, Any], directory: Path, trainable: bool) -> None:
    """Virtual tokens as the file has them; with their encoder where that is to be trained on."""
    with open_tensors(directory / ADAPTER) as file:
        if "prompt_embeddings" not in file.keys():  # noqa: SIM118
            raise ValueError(f"{directory} has no prompt_embeddings")
        rows = file.get_tensor("prompt_embeddings").float()
    deep, method = config["peft_type"] == "PREFIX_TUNING", config.get("method")
    method = (
        method or {"PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}[config["peft_type"]]
    )
    width = model.embeddings.word.embedding_dim
    if deep:
        width = 2 * len(model.layers) * model.layers[0].attention.key.out_features
    if rows.dim() != 2 or rows.size(1) != width:
        raise ValueError(f"{directory}: prompt_embeddings {list(rows.shape)}, but this model needs rows of {width}")
    source: Module = Table(rows)
    hidden = config.get("encoder_hidden_size")
    if trainable and (directory / ENCODER).is_file():
        kind = config.get("encoder_reparameterization_type", "MLP").lower()
        source = PrefixEncoder(rows, model.config.hidden_size, hidden) if deep else PromptEncoder(rows, kind, hidden)
        with open_tensors(directory / ENCODER) as file:
            source.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    peft.apply(model, "head")
    remembered = {"method": method, "virtual_tokens": len(rows), "prefix_hidden": hidden}
    if deep:
        model.virtual = DeepPrefix(source, len(model.layers), model.config.num_heads)
    else:
        pool = config.get("pool", "virtual")  # huggingface/peft has no other
        model.virtual = SoftPrompt(source, pool)
        encoder = config.get("encoder_reparameterization_type", "MLP").lower()
        remembered |= {"pool": pool, "prompt_encoder": encoder, "prompt_hidden": hidden}
    model.adapter = remembered


def load_adapter(model: Module, directory: str | Path, trainable: bool = False) -> Module:
    """Puts the adapter of a directory on a plain model, strictly. trainable: with the encoder of its virtual tokens,
    to train it on.

    Raises FileNotFoundError, or ValueError for an adapter of another kind or shape, listing every tensor that is
    missing, surplus or misshaped. Warns where DeBERTa's pooler is in no file.
    """
    directory = Path(directory)
    config = read_json(directory / ADAPTER_CONFIG)
    check_config(config, directory)
    if config["peft_type"] == "LORA":
        put_lora(model, config, directory)
    elif config["peft_type"] == "HEAD":
        peft.apply(model, "head")
    else:
        put_virtual(model, config, directory, trainable)
    expected, problems = adapter_parameters(model), []
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
    if poolers and any(name.startswith("pooler.") for name in getattr(model, "fresh", ())):
        print(
            f"warning: {directory} leaves the pooler out, and so do the weights: it is random, and so is what it says"
        )
    return model
