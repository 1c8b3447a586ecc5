"""huggingface/peft's rules for adapter_config.json: which settings are supported, and which modules a name selects."""

import re
from pathlib import Path
from typing import Any

from data.hub import adapter_method

MERGE_THERE = "huggingface/peft can merge it: merge_and_unload().save_pretrained(DIR), then --weights DIR"
# fields of huggingface/peft that are supported, or that have no effect on the result
SUPPORTED_FIELDS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping",
    "modules_to_save", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "bias", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "use_rslora", "use_dora", "init_lora_weights", "megatron_core", "qalora_group_size", "num_virtual_tokens",
    "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type",
    "encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "prefix_projection", "init_weights", "pool",
    "method", "ensure_weight_tying", "id2label",
}  # fmt: skip
# fields with one supported value
SUPPORTED_VALUES = {
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the weights of the backbone as well
    "task_type": ("SEQ_CLS", None),
    "num_transformer_submodules": (1, None),
}


def check_config(config: dict[str, Any], where: Path) -> None:
    """Raises ValueError that names the fields of adapter_config.json that are not supported."""
    adapter_method(where)
    unset: tuple[Any, ...] = (None, False, {}, [], "")
    unsupported = {name for name, value in config.items() if name not in SUPPORTED_FIELDS and value not in unset}
    unsupported |= {name for name, values in SUPPORTED_VALUES.items() if config.get(name) not in values}
    if unsupported:
        shown = ", ".join(f"{name} = {config[name]!r}" for name in sorted(unsupported))
        raise ValueError(f"{where}: these settings are not supported: {shown}; {MERGE_THERE}")


def matches(module: str, targets: list[str] | str) -> bool:
    """Applies the rule for target_modules and exclude_modules: a pattern for whole names, or a list of suffixes."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def in_layers(module: str, config: dict[str, Any]) -> bool:
    """Applies the rule for layers_to_transform and layers_pattern: the first number in a name is the layer's.

    The rule has no effect on target_modules that are a string.
    """
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if chosen is None or chosen == [] or isinstance(config.get("target_modules"), str):
        return True
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        match = next((one for one in found if one is not None), None)
    return match is not None and int(match[1]) in ([chosen] if isinstance(chosen, int) else chosen)


def saved_modules(config: dict[str, Any]) -> list[str]:
    """Returns the names of the modules that an adapter file contains whole; peft adds two for sequence classifiers."""
    always = ["classifier", "score"] if config.get("task_type") == "SEQ_CLS" else []
    return [*(config.get("modules_to_save") or []), *always]


def is_saved_module(module: str, config: dict[str, Any]) -> bool:
    """Returns whether a module, or one that contains it, ends in a name of modules_to_save."""
    parts = module.split(".")
    names = (".".join(parts[: k + 1]) for k in range(len(parts)))
    return any(name.endswith(saved) for name in names for saved in saved_modules(config))


def from_pattern(module: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """Applies the rule for rank_pattern and alpha_pattern."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
