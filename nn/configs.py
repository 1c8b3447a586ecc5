"""Builds the config of a model from values of a file or of `--shape`, after checking types and ranges.

The numbers in a file are not trusted. Memory for a model is allocated only after its config has passed these checks and
its shapes have been compared with the tensors of the file (nn/checkpoint.py).
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from data.checked import check_types, show

LARGEST = 2**24  # of a size: over 60 × the largest vocabulary of the supported models
MOST_TEXT = 200  # characters of a text
RATES = (0, 1 - 1e-6)  # of every dropout
SIZE = (1, LARGEST)
# smallest and largest value of a field, for all models
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "feed_forward_size", "embedding_size", "max_position_embeddings"), SIZE
    ),
    **dict.fromkeys(("attention_head_size", "pooler_hidden_size", "conv_groups"), SIZE),
    **dict.fromkeys(("attention_size", "capsule_size", "filters", "min_reviews"), SIZE),
    **dict.fromkeys(("type_vocab_size", "pad_token_id", "unk_token_id", "local_attention", "num_ngrams"), (0, LARGEST)),
    "sliding_window": (0, LARGEST),
    "region_width": (0, LARGEST),
    "region_radius": (0, 1000),
    **dict.fromkeys(("max_relative_positions", "position_buckets"), (-LARGEST, LARGEST)),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta"), (1, 1e12)),
    **dict.fromkeys(("initializer_range", "embedding_range"), (0, 100)),
    "layer_norm_eps": (1e-30, 1),
    "num_layers": (1, 1000),
    "num_heads": (1, 10_000),
    "conv_kernel_size": (0, 1001),
    "width": (1, 1001),
    "window": (1, 1000),
    "num_capsules": (1, 10_000),
    "iterations": (1, 100),
}


def field_range(name: str) -> tuple[float, float] | None:
    """Returns the smallest and the largest value of a config field; None for a field that has none."""
    return RATES if "dropout" in name else RANGES.get(name)


def build_config(cls: type, values: Mapping[str, Any], labels: tuple[str, ...], names: Mapping[str, str]) -> Any:
    """Builds the dataclass `cls` with these values. Raises ValueError for a value of another type or out of range.

    If the type of a field differs in a file, the field's metadata entry `published` is that type.
    names: {field: its name in the file}, where they differ.
    """
    check_types(values, {field.name: field.metadata.get("published", field.type) for field in fields(cls)}, names)
    for name, value in values.items():
        limits = field_range(name)
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise ValueError(f"{names.get(name, name)} has {len(value):,} characters: {show(value, 40)}")
        if limits and isinstance(value, int | float) and not limits[0] <= value <= limits[1]:
            allowed = "[0, 1)" if limits is RATES else f"{limits[0]:,} … {limits[1]:,}"
            raise ValueError(f"{names.get(name, name)} {show(value, 40)} is outside {allowed}")
    config = cls(**values, labels=labels)
    for name in ("pad_token_id", "unk_token_id"):
        if (getattr(config, name, None) or 0) >= config.vocab_size:
            raise ValueError(f"{name} {getattr(config, name)} is outside the vocabulary of {config.vocab_size} tokens")
    return config
