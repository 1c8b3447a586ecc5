"""What the optimizer is told, groups of parameters with their rates and the schedule of the rate; and the average of
the weights that it leads through.

rate of a group at step t = peak · schedule(t),   peak = learning_rate · layer_decay^(layers above it)
θ̄ ← d θ̄ + (1 - d) θ   after step t,   d = min(decay, (1 + t) / (10 + t))
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import LayerNorm, Module, Parameter

import peft
from nn.checkpoint import ASIDE
from nn.encoder import init_weights


def num_layers(model: Module) -> int:
    return len(getattr(model, "layers", ()))


def depth(model: Module, name: str) -> int:
    """0 for what stands below the layers, 1 … L for the layers, L + 1 for the head."""
    part, _, rest = name.partition(".")
    if part in model.HEAD or name.startswith(ASIDE):
        return num_layers(model) + 1
    return int(rest.split(".")[0]) + 1 if part == "layers" else 0


def parameter_groups(model: Module, options) -> list[dict[str, Any]]:
    """AdamW's groups, {part} × {rate} × {decay, no decay}: biases, norms and virtual tokens do not decay; the head and
    LoRA's B have rates of their own; each layer's rate is layer_decay times that of the one above (Howard & Ruder 2018,
    arXiv 1801.06146, §3.2; Sun et al. 2019, Eq. 2)."""
    norms = {id(p) for module in model.modules() if isinstance(module, LayerNorm) for p in module.parameters()}
    groups: dict[tuple[str, float, bool], list[Parameter]] = {}
    top = num_layers(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        level, own = depth(model, name), peft.backbone_name(name) is None
        part = "adapter" if own else "head" if level > top else "backbone"
        rate = options.learning_rate * options.layer_decay ** max(0, top - level)
        if part == "head" and options.head_learning_rate:
            rate = options.head_learning_rate
        rate *= options.lora_plus if name.endswith(".B") else 1.0
        decays = not (name.endswith("bias") or name.startswith("virtual.") or id(parameter) in norms)
        groups.setdefault((part, rate, decays), []).append(parameter)
    return [
        {"params": members, "part": part, "peak": rate, "lr": rate, "weight_decay": options.weight_decay * decays}
        for (part, rate, decays), members in groups.items()
    ]


def describe_groups(groups: list[dict[str, Any]], total: int) -> str:
    """What is trained, by part, with the rates."""
    counts: dict[str, int] = {}
    rates: dict[str, set[float]] = {}
    for group in groups:
        counts[group["part"]] = counts.get(group["part"], 0) + sum(p.numel() for p in group["params"])
        rates.setdefault(group["part"], set()).add(group["peak"])
    spans = {part: f"{min(r):.3g}" if len(r) == 1 else f"{min(r):.3g} … {max(r):.3g}" for part, r in rates.items()}
    trained = sum(counts.values())
    parts = ", ".join(f"{part} {count:,} at {spans[part]}" for part, count in counts.items())
    return f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%}): {parts}"


def schedule(step: int, total: int, warmup: float, kind: str = "linear") -> float:
    """Factor of the peak rate at step 0 … total - 1: up linearly over warmup·total steps (warmup >= 1: over so many),
    then down linearly to 0, or constant."""
    rise = math.ceil(warmup * total) if warmup < 1 else min(total, int(warmup))
    if step < rise:
        return (step + 1) / rise
    return (total - step) / max(1, total - rise) if kind == "linear" else 1.0


class Average:
    """θ̄, the running mean of trained weights (Polyak & Juditsky 1992; exponential as in Tarvainen & Valpola 2017, arXiv
    1703.01780, Eq. 2), which is scored and saved in their place. It is mostly of the last 1 / (1 - decay) steps, or of
    the last ninth of all so far where those are fewer. decay 0: θ itself."""

    def __init__(self, parameters: list[Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"--average {decay} is outside [0, 1)")
        self.parameters, self.decay = parameters, decay
        self.means = [p.detach().clone() for p in parameters] if decay else []

    def update(self, step: int) -> None:
        """After optimizer step 0, 1, …"""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, parameter in zip(self.means, self.parameters, strict=False):
            mean.lerp_(parameter.detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the means for its weights, until the block ends."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        for number, mean in enumerate(self.means):
            self.means[number], self.parameters[number].data = self.parameters[number].data, mean

    def state(self) -> dict[str, Tensor]:
        """What resuming needs, by name."""
        return {f"average.{number}": mean for number, mean in enumerate(self.means)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for number, mean in enumerate(self.means):
            mean.copy_(tensors[f"average.{number}"])


def reinitialise(model: Module, count: int) -> None:
    """Random weights for the top `count` layers (Zhang et al. 2021, arXiv 2006.05987, §4)."""
    if count == 0:
        return
    if not hasattr(model, "layers"):
        raise ValueError(f"--reinit-layers is for models with a stack of layers; {model.model_type} has none")
    if not 0 <= count <= len(model.layers):
        raise ValueError(f"--reinit-layers {count} is outside 0 … {len(model.layers)}")
    top = range(len(model.layers) - count, len(model.layers))
    for number in top:
        init_weights(model.layers[number], model.config.initializer_range)
    names = (name for name, _ in model.named_parameters() if depth(model, name) - 1 in top)
    model.fresh |= frozenset(names)
