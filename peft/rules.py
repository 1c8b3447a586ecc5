"""huggingface/peft's rules for adapter_config.json: which settings are supported, and which modules a name selects."""

import re
import warnings
from math import comb
from pathlib import Path
from typing import Any

from data.checked import about, show
from data.hub import ADAPTER_CONFIG, MERGE_THERE, adapter_method

# fields of huggingface/peft that are supported, or that have no effect on the result
SUPPORTED_FIELDS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping",
    "modules_to_save", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "bias", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "use_rslora", "use_dora", "init_lora_weights", "megatron_core", "qalora_group_size", "num_virtual_tokens",
    "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type",
    "encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "prefix_projection", "init_weights", "pool",
    "method", "ensure_weight_tying", "id2label", "feedforward_modules", "init_ia3_weights",
    "adapter_size", "eva_config", "prefix_dropout",
}  # fmt: skip
# fields of which some values are supported
SUPPORTED_VALUES = {
    # the values that are missing here change the weights of the backbone
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "task_type": ("SEQ_CLS", None),
    "num_transformer_submodules": (1, None),
}


LISTS_OF_NAMES = ("target_modules", "exclude_modules", "feedforward_modules")  # as lists, they hold no patterns
LONGEST_PATTERN, MOST_NAMES = 1000, 1000  # characters; entries of a list of names or patterns
LONGEST_MODULE = 60  # approximate length of the longest module name, in characters
MOST_STEPS = 2_000_000  # of the search for a match with one module's name
# smallest and largest value of a number
RANGES = {
    "r": (1, 2**20),
    "lora_alpha": (-1e6, 1e6),
    "num_virtual_tokens": (1, 2**20),
    "encoder_hidden_size": (1, 2**20),
    "adapter_size": (1, 2**20),
}


def check_config(config: dict[str, Any], where: Path) -> None:
    """Raises ValueError that names the fields of adapter_config.json that are not supported."""
    adapter_method(where)
    unset: tuple[Any, ...] = (None, False, {}, [], "")
    unsupported = {name for name, value in config.items() if name not in SUPPORTED_FIELDS and value not in unset}
    unsupported |= {name for name, values in SUPPORTED_VALUES.items() if config.get(name) not in values}
    if unsupported:
        shown = ", ".join(f"{show(name)} = {show(repr(config[name]))}" for name in sorted(unsupported)[:20])
        way_out = MERGE_THERE + (", unless a layer has no bias" if "lora_bias" in unsupported else "")
        if "alora_invocation_tokens" in unsupported:
            way_out = "no program can merge it"
        raise ValueError(f"{where}: these settings are not supported: {shown}; {way_out}")
    with about(where / ADAPTER_CONFIG):
        check_numbers(config)
        check_patterns(config)


def check_numbers(config: dict[str, Any]) -> None:
    """Raises ValueError for a number of adapter_config.json that is out of its range."""
    patterns = {"r": config.get("rank_pattern") or {}, "lora_alpha": config.get("alpha_pattern") or {}}
    for name, (least, most) in RANGES.items():
        for value in (config.get(name), *patterns.get(name, {}).values()):
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} {show(value, 40)} is outside {least:,} … {most:,}")


def check_patterns(config: dict[str, Any]) -> None:
    """Raises ValueError for regular expressions of adapter_config.json that are invalid or take long to match, and for
    lists of more than MOST_NAMES entries."""
    for name in (
        "target_modules",
        "exclude_modules",
        "feedforward_modules",
        "layers_pattern",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
    ):
        value = config.get(name) or []
        if isinstance(value, str):
            value = [value]
        elif len(value) > MOST_NAMES:
            raise ValueError(f"{name} has {len(value):,} entries")
        elif name in LISTS_OF_NAMES:
            continue
        for pattern in value:
            if (problem := pattern_problem(pattern)) is not None:
                raise ValueError(f"{name}: the pattern {show(pattern)} {problem}")


def pattern_problem(pattern: str) -> str | None:
    """Returns why a regular expression of a file is not used; None for one that is used.

    The search for a match tries all ways to divide a name among the repetitions, and all alternatives that can match at
    one position. If a group is repeated, these numbers multiply with each repetition.
    """
    if len(pattern) > LONGEST_PATTERN:
        return f"has {len(pattern):,} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        return f"is not a regular expression ({show(error)})"
    plain = re.sub(r"\\\.", "_", pattern)  # a dot
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", ".", plain)  # another escape, or a class, is one of several characters
    plain = re.sub(r"\(\?(:|=|!|<=|<!|P<\w+>)", "(", plain)
    if "(?" in plain:
        return "has flags or conditions, which are not read here"
    if re.search(r"\)[*+{]", plain):
        return "repeats a group, which may take years to match; repeat a single character or a class"
    if (steps := sum(map(most_steps, branches(plain)))) > MOST_STEPS:
        return f"may take long to match: {steps:,} steps for one name, for its repetitions and alternatives"
    return None


def branches(plain: str) -> list[str]:
    """Splits a pattern at each `|` outside groups. The search tries these branches one after the other."""
    found, depth = [""], 0
    for char in plain:
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            found.append("")
        else:
            found[-1] += char
    return found


def most_steps(branch: str) -> int:
    """Estimates the steps of a search for a match of one branch: the ways to divide a name among its repetitions, times
    the alternatives and the optional characters."""
    repeats, choices, parts = len(re.findall(r"[*+{]", branch)), 1, re.split(r"([()])", branch)
    for before, group, after in zip(["", *parts[1::2]], parts[::2], [*parts[1::2], ""], strict=True):
        is_whole = before == "(" and after == ")"  # otherwise a part of a group that contains others
        choices *= alternatives_at_once(group) if is_whole else 1 + group.count("|")
        choices *= 2 ** len(re.findall(r"(?<![*+}])\?", group))
    return comb(LONGEST_MODULE + repeats, repeats) * choices


def alternatives_at_once(group: str) -> int:
    """Counts the alternatives of a group that can match at one position.

    Two plain words can do so if one of them is the beginning of the other.
    """
    options = group.split("|")
    if not all(re.fullmatch(r"\w*", option) for option in options):
        return len(options)
    return max(sum(o.startswith(one) or one.startswith(o) for o in options) for one in options)


def matches(module: str, targets: list[str] | str) -> bool:
    """Applies the rule for target_modules and exclude_modules: a pattern for whole names, or a list of suffixes."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def matches_end(module: str, targets: list[str] | str) -> bool:
    """Applies the rule for feedforward_modules: a pattern for whole names, or a list of arbitrary suffixes."""
    return matches(module, targets) if isinstance(targets, str) else module.endswith(tuple(targets))


def in_layers(module: str, config: dict[str, Any]) -> bool:
    """Applies the rule for layers_to_transform and layers_pattern: the first number in a name is the layer's.

    The rule has no effect on target_modules that are a string, and on a module whose whole name is one of them.
    """
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    targets = config.get("target_modules") or []
    if chosen is None or chosen == [] or isinstance(targets, str) or module in targets:
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
