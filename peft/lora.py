"""LoRA (Hu et al. 2021, arXiv 2106.09685, §4.1, Eq. 3): a frozen linear layer plus a trained product of low rank.

    y = W₀ x + b + s·B(A dropout(x)),   A: [R, in],  B: [out, R],  s = alpha / R

rsLoRA (Kalajdzievski 2023, arXiv 2312.03732, §3): s = alpha / √R.
DoRA (Liu et al. 2024, arXiv 2402.09353, Eq. 5 and §4.3) trains the length of each row of the sum by itself:

    W' = W₀ + s·B A,   y = m ⊙ (W' x) / ‖W'‖ + b,   ‖W'‖: length of each row, [out], a constant for the gradient

A ~ U(-1/√in, 1/√in), B = 0 and m = ‖W₀‖, so that training starts at the base model. `merged` puts one plain layer in
its place; `unmerge` takes the change out again, to within rounding (about 1e-8 of W₀ in fp32). A layer of in × out
gains R·(in + out) parameters, and out more with DoRA.

With u = A (d ⊙ x), d the dropout's mask over 1 - p, and g = ∂L/∂y, the gradients of the update are

    ∂L/∂B = s·Σ g uᵀ,   ∂L/∂A = s·Σ (Bᵀg)(d ⊙ x)ᵀ,   ∂L/∂x = d ⊙ s·Aᵀ(Bᵀg)

`LowRank` keeps for them x itself, u and one byte an element for d. Left to autograd, every adapter would keep a copy of
d ⊙ x, under mixed precision even without dropout; so all adapters on one x share it. W₀ gets no gradient, nor does
anything below the first adapter.

Differs from the paper: A is uniform (as loralib and peft have it) where the paper says Gaussian. DeBERTa's query and
key layers also project the relative positions, and the adapter acts there too: it belongs to the layer.
"""

import math
import re

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from nn.dropout import Dropout
from nn.quant import Int8Linear

OPTIONS = ("rank", "alpha", "lora_dropout", "targets", "rslora", "dora", "lora_bias", "rank_pattern", "alpha_pattern")
BIASES = ("none", "all", "lora_only")


class LowRank(torch.autograd.Function):
    """s·B(A (d ⊙ x)), and the gradients of the module docstring, in `dtype`."""

    @staticmethod
    def forward(ctx, x: Tensor, A: Tensor, B: Tensor, s: float, keep: Tensor | None, p: float, dtype: torch.dtype):
        """x: [..., in];  A: [R, in];  B: [out, R];  keep: uint8 like x, 0 where dropped with probability p, or None."""
        ctx.s, ctx.p, ctx.dtype = s, p, dtype
        u = LowRank.dropped(x, keep, p, dtype) @ A.to(dtype).t()  # [..., R]
        ctx.save_for_backward(x, A, B, keep, u)
        return (u * s) @ B.to(dtype).t()  # scaled where it is smallest

    @staticmethod
    def dropped(x: Tensor, keep: Tensor | None, p: float, dtype: torch.dtype) -> Tensor:
        """d ⊙ x"""
        return x.to(dtype) if keep is None else (x.to(dtype) * keep).mul_(1 / (1 - p))

    @staticmethod
    def backward(ctx, g: Tensor):
        x, A, B, keep, u = ctx.saved_tensors
        below = (g @ B.to(g.dtype)) * ctx.s  # s·Bᵀg, [..., R]
        d_A = below.flatten(0, -2).t() @ LowRank.dropped(x, keep, ctx.p, ctx.dtype).flatten(0, -2)  # [R, in]
        d_B = g.flatten(0, -2).t() @ u.flatten(0, -2) * ctx.s  # [out, R]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = LowRank.dropped(below @ A.to(g.dtype), keep, ctx.p, g.dtype).to(x.dtype)  # [..., in]
        return d_x, d_A.to(A.dtype), d_B.to(B.dtype), None, None, None, None


class LoRALinear(Module):
    """y = base(x) + s·B(A dropout(x));   s = alpha / rank, or alpha / √rank with rslora."""

    def __init__(
        self, base: Linear | Int8Linear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(
                f"LoRA rank {rank} is outside 1 … {min(base.in_features, base.out_features)}, the layer's width"
            )
        self.base = base
        self.rank, self.alpha = rank, alpha
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        like = base.scale if isinstance(base, Int8Linear) else base.weight
        self.A = Parameter(like.new_empty(rank, base.in_features))
        self.B = Parameter(like.new_zeros(base.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # U(-1/√in, 1/√in)
        self.dropout = Dropout(dropout)

    def update(self, x: Tensor) -> Tensor:
        """s·B(A dropout(x)): [..., in] -> [..., out]"""
        mixed = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if mixed else x.dtype
        keep, p = self.dropout.mask(x) if self.dropout.active else (None, 0.0)
        with torch.autocast(x.device.type, enabled=False):
            return LowRank.apply(x, self.A, self.B, self.scale, keep, p, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return self.base(x) + self.update(x)  # Eq. (3)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The base layer with W₀ + s·B A. Raises ValueError for an 8-bit base: rounding would undo most of it."""
        if isinstance(self.base, Int8Linear):
            raise ValueError("LoRA is not merged into 8-bit weights, whose rounding undoes it; load without --quantize")
        self.base.weight += self.scale * (self.B @ self.A)
        return self.base

    @torch.no_grad()
    def unmerge(self) -> None:
        self.base.weight -= self.scale * (self.B @ self.A)


class DoRALinear(LoRALinear):
    """y = m ⊙ (W₀ x + s·B(A dropout(x))) / ‖W'‖ + b;   m -> magnitude [out]."""

    def __init__(
        self, base: Linear | Int8Linear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__(base, rank, alpha, dropout, rslora)
        self.magnitude = Parameter(self.frozen_weight().norm(dim=1))

    def frozen_weight(self) -> Tensor:
        base = self.base
        return base.dequantized() if isinstance(base, Int8Linear) else base.weight.detach()

    def stretch(self) -> Tensor:
        """m / ‖W'‖: [out]; ‖W'‖ gets no gradient (§4.3)."""
        return self.magnitude / (self.frozen_weight() + self.scale * (self.B @ self.A)).detach().norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        bias = 0.0 if self.base.bias is None else self.base.bias
        return self.stretch() * (self.base(x) - bias + self.update(x)) + bias  # Eq. (5)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The base layer with m ⊙ W' / ‖W'‖."""
        self.stretched = self.stretch()
        super().merged()
        self.base.weight *= self.stretched[:, None]
        return self.base

    @torch.no_grad()
    def unmerge(self) -> None:
        self.base.weight /= self.stretched[:, None]
        super().unmerge()


def choose_targets(model: Module, targets: str) -> list[str]:
    """Names of the linear layers that `targets` means: `all-linear` (all but the head), `re:PATTERN` (whole names), or
    layer names with commas between them (`query,value`), each matching the end of a module's name. Raises ValueError
    where one matches nothing."""
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear | Int8Linear)]
    inner = [name for name in layers if name.split(".")[0] not in model.HEAD]
    if targets == "all-linear":
        return inner
    parts = [targets] if targets.startswith("re:") else [part.strip() for part in targets.split(",") if part.strip()]
    chosen: list[str] = []
    for target in parts:
        found = [name for name in inner if matches(name, target)]
        if not found:
            reason = "is part of the head, which is trained anyway" if target in layers else "matches no linear layer"
            known = ", ".join(sorted({name.rpartition(".")[2] for name in inner}))
            raise ValueError(f"LoRA target {target!r} {reason}; known: {known}, all-linear")
        chosen += found
    if not chosen:
        raise ValueError("no LoRA target given; for example query,value or all-linear")
    return [name for name in layers if name in chosen]


def matches(name: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.fullmatch(target[3:], name) is not None
    return name == target or name.endswith(f".{target}")


def parse_pattern(text: str, flag: str, kind: type) -> dict[str, int | float]:
    """`value=16 layers.0=4` -> {"value": 16, "layers.0": 4}. Raises ValueError."""
    values = {}
    for part in text.split():
        name, _, number = part.partition("=")
        try:
            values[name] = kind(number)
        except ValueError:
            raise ValueError(f"{flag} {part!r} is not NAME={kind.__name__}") from None
    return values


def by_pattern(name: str, patterns: dict[str, int | float], default: int | float, used: set[str]) -> int | float:
    """The value of the first pattern that is a whole part of a layer's dotted name (`value`, `layers.0`), or the
    default."""
    for pattern, value in patterns.items():
        if f".{pattern}." in f".{name}.":
            used.add(pattern)
            return value
    return default


def apply(
    model: Module,
    rank: int = 8,
    alpha: float = 16.0,
    lora_dropout: float = 0.0,
    targets: str = "",
    rslora: bool = False,
    dora: bool = False,
    lora_bias: str = "none",
    rank_pattern: str = "",
    alpha_pattern: str = "",
) -> dict:
    """Wraps the target layers of `model` in place; targets "" -> the model's own default. lora_bias: which biases are
    trained too: none, all, or lora_only (of the targets). Returns what the adapter's config must remember."""
    if lora_bias not in BIASES:
        raise ValueError(f"unknown lora_bias {lora_bias!r}; known: {', '.join(BIASES)}")
    names = choose_targets(model, targets or ",".join(model.LORA_TARGETS))
    ranks, alphas = (
        parse_pattern(rank_pattern, "rank_pattern", int),
        parse_pattern(alpha_pattern, "alpha_pattern", float),
    )
    used: set[str] = set()
    layer = DoRALinear if dora else LoRALinear
    for name in names:
        own = by_pattern(name, ranks, rank, used), by_pattern(name, alphas, alpha, used)
        model.set_submodule(name, layer(model.get_submodule(name), *own, lora_dropout, rslora))
    if unused := (ranks.keys() | alphas.keys()) - used:
        raise ValueError(f"no LoRA target matches the pattern {', '.join(sorted(unused))}")
    if lora_bias != "none":
        for name, parameter in model.named_parameters():
            inside = name.endswith(".base.bias")
            parameter.requires_grad_(inside or (lora_bias == "all" and name.endswith("bias")))
    remembered = {"rank": rank, "alpha": alpha, "lora_dropout": lora_dropout, "rslora": rslora, "dora": dora}
    return remembered | {"lora_bias": lora_bias, "names": names}


def wrapped(model: Module) -> list[tuple[str, LoRALinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]


def merge(model: Module) -> None:
    """Puts the merged plain layer in each wrapped one's place."""
    for name, module in wrapped(model):
        model.set_submodule(name, module.merged())
