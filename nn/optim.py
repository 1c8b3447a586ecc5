"""Parameter groups with their learning rates, the schedule, the running mean of the weights, reinitialization.

rate of a group at step t = peak · schedule(t),   peak = learning_rate · layer_decay^(layers above it)
θ̄ ← d θ̄ + (1 - d) θ   after step t = 0, 1, …,   d = min(decay, (1 + t) / (10 + t)),   decay: --average
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import LayerNorm, Parameter

from data.options import Options
from nn import Model
from nn.checkpoint import TRAINING_ONLY
from nn.encoder import init_weights
from nn.sharding import rows_like
from nn.words import WordClassifier

GENERATOR = "pretraining.generator."  # of replaced token detection: another encoder


def num_levels(model: Model) -> int:
    """Returns L, the number of layers with learning rates of their own."""
    return max(1, len(model.layers))


def depth(model: Model, name: str) -> int:
    """Returns the level of a parameter: 0 for the embeddings, 1 … L in the layers, L + 1 in the head.

    DeBERTa's relative positions and convolution have level 0. A norm above the last layer and virtual tokens have the
    level of the last layer. Everything between the embeddings and the head of a network without a stack of layers is
    one layer. The layers of a generator (losses/rtd.py) have the levels of those whose weights they start from.
    """
    part, _, rest = name.removeprefix(GENERATOR).partition(".")
    if part in model.HEAD or (name.startswith(TRAINING_ONLY) and not name.startswith(GENERATOR)):
        return num_levels(model) + 1
    if not len(model.layers):
        return 0 if part == "embeddings" else 1
    if part in ("norm", "final_norm", "virtual"):
        return len(model.layers)
    return int(rest.split(".")[0]) + 1 if part == "layers" else 0


def parameter_groups(
    model: Model, options: Options, is_adapter: Callable[[str], bool] = lambda name: False, lora_plus: float = 1.0
) -> list[dict[str, Any]]:
    """Returns AdamW's groups: {part} × {rate} × {decay, no decay}.

    Biases, norms, virtual tokens, the vectors l of IA³, which start at 1, and the magnitudes m of DoRA, which start at
    ‖W₀‖, have no weight decay. The head and LoRA's B have learning rates of their own. The rate of each layer is
    layer_decay times that of the layer above (Howard & Ruder 2018, arXiv 1801.06146, §3.2; Sun et al. 2019, arXiv
    1905.05583, Eq. 2). is_adapter: whether the parameter of that name belongs to an adapter.  lora_plus: factor of the
    rate of LoRA's B.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, LayerNorm) for p in module.parameters()}
    groups: dict[tuple[str, float, bool], list[Parameter]] = {}
    top = num_levels(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        level = depth(model, name)
        part = "adapter" if is_adapter(name) else "head" if level > top else "backbone"
        rate = options.learning_rate * options.layer_decay ** max(0, top - level)
        if part == "head" and options.head_learning_rate:
            rate = options.head_learning_rate
        rate *= lora_plus if name.endswith(".B") else 1.0
        decays = not (
            name.endswith(("bias", ".l", ".magnitude")) or name.startswith("virtual.") or id(parameter) in norms
        )
        groups.setdefault((part, rate, decays), []).append(parameter)
    return [
        {"params": members, "part": part, "peak": rate, "lr": rate, "weight_decay": options.weight_decay * decays}
        for (part, rate, decays), members in groups.items()
    ]


def describe_groups(groups: list[dict[str, Any]], total: int) -> str:
    """Describes in one line how many of `total` parameters are trained, by part, and their peak rates."""
    counts: dict[str, int] = {}
    rates: dict[str, set[float]] = {}
    for group in groups:
        counts[group["part"]] = counts.get(group["part"], 0) + sum(p.numel() for p in group["params"])
        rates.setdefault(group["part"], set()).add(group["peak"])
    spans = {part: f"{min(r):.3g}" if len(r) == 1 else f"{min(r):.3g} … {max(r):.3g}" for part, r in rates.items()}
    trained = sum(counts.values())
    by_part = ", ".join(f"{part} {count:,} at {spans[part]}" for part, count in counts.items())
    return f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%}): {by_part}"


def schedule(step: int, total: int, warmup: float, kind: str = "linear") -> float:
    """Returns the factor of the peak rate at step 0 … total - 1.

    The factor rises linearly during the warm-up, then falls linearly to 0 (linear) or stays 1 (constant).  warmup: a
    fraction of `total` if below 1, otherwise a number of steps; if it exceeds `total`, the factor stays below 1. After
    step total - 1 the factor is 0 (linear) or 1 (constant), unless the warm-up is still running. Raises ValueError for
    an unknown kind.
    """
    if kind not in ("linear", "constant"):
        raise ValueError(f"unknown schedule {kind!r}; known: linear, constant")
    # .07 · 100 is 7.000000000000001 in floating point
    rise = math.ceil(warmup * total - 1e-9) if warmup < 1 else int(warmup)
    if step < rise:
        return (step + 1) / rise
    return max(0, total - step) / max(1, total - rise) if kind == "linear" else 1.0


class Average:
    """Keeps θ̄, the running mean of the trained weights, which is scored and saved in their place.

    Polyak & Juditsky 1992; exponential as in Tarvainen & Valpola 2017, arXiv 1703.01780, §2. The mean covers mostly
    the last 1 / (1 - decay) steps, or the last ninth of all steps if that is fewer. decay 0: θ̄ is θ itself. Raises
    ValueError for a decay outside [0, 1).
    """

    def __init__(self, parameters: list[Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"--average {decay} is outside [0, 1)")
        self.parameters, self.decay = list(parameters), decay
        self.means = [p.detach().clone() for p in self.parameters] if decay else []

    def update(self, step: int) -> None:
        """Updates the mean after optimizer step 0, 1, …"""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, parameter in zip(self.means, self.parameters, strict=False):
            mean.lerp_(parameter.detach(), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the means as weights within the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges the means and the model's weights."""
        for mean, parameter in zip(self.means, self.parameters, strict=False):
            before = parameter.detach().clone()
            parameter.detach().copy_(mean)  # in place, since a sharded parameter has its memory elsewhere
            mean.copy_(before)

    def state(self) -> dict[str, Tensor]:
        """Returns the means by name, to resume from."""
        return {f"average.{number}": mean for number, mean in enumerate(self.means)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        for number, mean in enumerate(self.means):
            mean.copy_(rows_like(tensors[f"average.{number}"], mean))


def reinitialize(model: Model, count: int) -> None:
    """Initializes the top `count` layers at random (Zhang et al. 2021, arXiv 2006.05987, §5).

    Raises ValueError for a model without a stack of layers, and for a count outside 0 … L.
    """
    if count == 0:
        return
    if not len(model.layers):
        raise ValueError(f"--reinit-layers is for models with a stack of layers; {model.model_type} has none")
    if not 0 <= count <= len(model.layers):
        raise ValueError(f"--reinit-layers {count} is outside 0 … {len(model.layers)}")
    top = range(len(model.layers) - count, len(model.layers))
    new = type(model)(model.config).layers if isinstance(model, WordClassifier) else None  # from its constructor
    for number in top:
        if new is None:
            init_weights(model.layers[number], model.config.initializer_range)
        else:
            model.layers[number].load_state_dict(new[number].state_dict())
    prefixes = tuple(f"layers.{number}." for number in top)
    model.newly_initialized |= frozenset(name for name, _ in model.named_parameters() if name.startswith(prefixes))
