"""LoRA (Hu et al. 2021, arXiv 2106.09685, §4.1, Eq. 3): a frozen linear layer plus a trained product of low rank.

    y = W₀ x + b + s·B(A dropout(x)),   A: [R, in],  B: [out, R],  s = alpha / R

A ~ U(-1/√in, 1/√in) and B = 0, so that training starts at the base model. `merge` puts W₀ + s·B A in its place.
A layer of in × out gains R·(in + out) parameters.

Differs from the paper: A is uniform (as loralib and peft have it) where the paper says Gaussian. DeBERTa's query and
key layers also project the relative positions, and the adapter acts there too: it belongs to the layer.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.dropout import Dropout

OPTIONS = ("rank", "alpha", "lora_dropout", "targets")


class LoRALinear(Module):
    """y = base(x) + s·B(A dropout(x));   s = alpha / rank."""

    def __init__(self, base: Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(
                f"LoRA rank {rank} is outside 1 … {min(base.in_features, base.out_features)}, the layer's width"
            )
        self.base = base
        self.scale = alpha / rank
        self.A = Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = Parameter(base.weight.new_zeros(base.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # U(-1/√in, 1/√in)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        low = F.linear(self.dropout(x), self.A) * self.scale  # [..., R]: scaled where it is smallest
        return self.base(x) + F.linear(low, self.B)  # Eq. (3)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with W₀ + s·B A."""
        self.base.weight += self.scale * (self.B @ self.A)
        return self.base


def choose_targets(model: Module, targets: str) -> list[str]:
    """Names of the linear layers that `targets` means: `all-linear` (all but the head), or layer names with commas
    between them (`query,value`), each matching the end of a module's name. Raises ValueError where one matches
    nothing."""
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    inner = [name for name in layers if name.split(".")[0] not in model.HEAD]
    if targets == "all-linear":
        return inner
    chosen: list[str] = []
    for target in filter(None, (part.strip() for part in targets.split(","))):
        found = [name for name in inner if name == target or name.endswith(f".{target}")]
        if not found:
            reason = "is part of the head, which is trained anyway" if target in layers else "matches no linear layer"
            known = ", ".join(sorted({name.rpartition(".")[2] for name in inner}))
            raise ValueError(f"LoRA target {target!r} {reason}; known: {known}, all-linear")
        chosen += found
    if not chosen:
        raise ValueError("no LoRA target given; for example query,value or all-linear")
    return [name for name in layers if name in chosen]


def apply(model: Module, rank: int = 8, alpha: float = 16.0, lora_dropout: float = 0.0, targets: str = "") -> dict:
    """Wraps the target layers of `model` in place; targets "" -> the model's own default. Returns what the adapter's
    config must remember."""
    targets = targets or ",".join(model.LORA_TARGETS)
    names = choose_targets(model, targets)
    for name in names:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), rank, alpha, lora_dropout))
    return {"rank": rank, "alpha": alpha, "lora_dropout": lora_dropout, "names": names}


def merge(model: Module) -> None:
    """Puts the merged plain layer in each wrapped one's place."""
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    for name, module in wrapped:
        model.set_submodule(name, module.merged())
