"""LoRA (Hu et al. 2021, arXiv 2106.09685, §4.1, Eq. 3): a frozen linear layer plus a trained product of low rank.

    y = W₀ x + b + s·B(A dropout(x)),   A: [R, in],  B: [out, R],  s = alpha / R

              ┌──── W₀, frozen ────┐
        x ────┤                    ├──(+)── y
              └─ dropout ─ A ─ B ·s┘          trained: A and B

rsLoRA (Kalajdzievski 2023, arXiv 2312.03732, §3): s = alpha / √R.
DoRA (Liu et al. 2024, arXiv 2402.09353, Eq. 5 and §4.3) trains the norm of each row of the sum separately:

    W' = W₀ + s·B A,   y = m ⊙ (W' x) / ‖W'‖ + b,   ‖W'‖: norm of each row, [out], a constant for the gradient

A ~ U(-1/√in, 1/√in), B = 0 and m = ‖W₀‖, so that training starts at the base model. `merged` returns one plain layer
with the same output; `unmerge` restores W₀ up to rounding (about 1e-8 of W₀ in fp32). A layer of in × out gains
R·(in + out) parameters; DoRA adds `out` more.

With u = A (d ⊙ x), d the dropout mask over 1 - p, and g = ∂L/∂y, the gradients of the update are

    ∂L/∂B = s·Σ g uᵀ,   ∂L/∂A = s·Σ (Bᵀg)(d ⊙ x)ᵀ,   ∂L/∂x = d ⊙ s·Aᵀ(Bᵀg)

`LowRank` saves x itself, u, and one byte per element for d. Autograd would save a copy of d ⊙ x for each adapter, under
mixed precision even without dropout; here all adapters on one x share it. W₀ gets no gradient, and neither does
anything below the first adapter.

Differs from the paper: A is uniform, as in loralib and huggingface/peft; the paper uses a Gaussian. DoRA's norms are
those of the rows of W' [out, in], as in the published code; the paper writes norms of columns. DeBERTa's query and key
layers also project the relative positions, and the adapter is part of that projection too. With --lora-dropout, DoRA
drops elements of x before A only; the published code and huggingface/peft also drop them in the part
(m/‖W'‖ - 1) ⊙ W₀ x.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import linear

from data.flags import option
from nn.autocast import product_dtype
from nn.dropout import Dropout
from nn.encoder import Encoder
from nn.first_order import first_order
from nn.onednn import current_library, same_library
from nn.quantized_linear import QuantizedLinear
from nn.tracing import is_transformed
from peft.rules import RANGES, matches
from peft.wrapped import Wrapped, linear_layers, wrapped

BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoRAOptions:
    rank: int = option(8, "LoRA", "rank R of the update")
    alpha: float = option(16.0, "LoRA", "the update is scaled by alpha / R")
    lora_dropout: float = option(0.0, "LoRA", "dropout on the input of the update", "P")
    targets: str = option(
        "", "LoRA", "layers (query,value), re:PATTERN or all-linear; default: the model's own", "NAMES"
    )
    rslora: bool = option(False, "LoRA", "scale by alpha / √R (rsLoRA)")
    dora: bool = option(False, "LoRA", "train the norm of each row separately (DoRA)")
    lora_bias: str = option("none", "LoRA", "biases that are trained as well", choices=BIASES)
    rank_pattern: str = option("", "LoRA", "other ranks for some layers: value=16 layers.0=4", "PATTERN=N")
    alpha_pattern: str = option("", "LoRA", "other alphas for some layers: value=16 layers.0=4", "PATTERN=NUMBER")
    lora_plus: float = option(
        1.0, "LoRA", "factor of B's learning rate (LoRA+: Hayou et al. 2024, arXiv 2402.12354)", "FACTOR"
    )

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):
            raise TypeError(f"targets is text, such as query,value or re:PATTERN, not {type(self.targets).__name__}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout {self.lora_dropout} is outside [0, 1)")
        if self.lora_plus < 0:
            raise ValueError(f"--lora-plus {self.lora_plus} is negative")


class LoRALinear(Wrapped):
    """Computes y = base(x) + s·B(A dropout(x));   s = alpha / rank, or alpha / √rank with rslora.

    Raises ValueError for a rank below 1 and for an alpha that no adapter file may contain.
    """

    def __init__(
        self, base: Linear | QuantizedLinear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__(base)
        if rank < 1:
            raise ValueError(f"LoRA rank {rank} must be at least 1")
        least, most = RANGES["lora_alpha"]
        if not least <= alpha <= most:  # a file with such a value is refused too
            raise ValueError(f"LoRA alpha {alpha} is outside {least:,} … {most:,}")
        self.rank, self.alpha = rank, alpha
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        self.A = Parameter(self.like().new_empty(rank, base.in_features))
        self.B = Parameter(self.like().new_zeros(base.out_features, rank))
        torch.nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # U(-1/√in, 1/√in)
        self.dropout = Dropout(dropout)

    def update(self, x: Tensor) -> Tensor:
        """Computes s·B(A dropout(x)): [..., in] -> [..., out]"""
        if is_transformed():
            return self.scale * linear(linear(self.dropout(x), self.A), self.B)
        dtype = product_dtype(x)
        keep, p = self.dropout.mask(x) if self.dropout.active else (None, 0.0)
        with torch.autocast(x.device.type, enabled=False):
            return LowRank.apply(x, self.A, self.B, self.scale, keep, p, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return self.base(x) + self.update(x)  # Eq. (3)

    def delta(self) -> Tensor:
        """Computes s·B A: [out, in]"""
        return self.scale * (self.B @ self.A)

    def merged_weight(self) -> Tensor:
        """Computes W₀ + s·B A: [out, in]"""
        return self.base.weight + self.delta()

    @torch.no_grad()
    def merged(self) -> Linear:
        """Adds s·B A to the base layer's weight, in place, and returns the base layer.

        Raises ValueError for a quantized base, whose rounding would remove most of the update.
        """
        if isinstance(self.base, QuantizedLinear):
            raise ValueError(
                f"LoRA cannot be merged into {self.base.BITS}-bit weights, because rounding removes it; merge it into "
                "the backbone in floating point (--base names another backbone)"
            )
        self.base.weight += self.delta()
        return self.base

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtracts s·B A from the base layer's weight, in place."""
        self.base.weight -= self.delta()


class DoRALinear(LoRALinear):
    """Computes y = m ⊙ (W₀ x + s·B(A dropout(x))) / ‖W'‖ + b;   m -> magnitude [out]."""

    READS_BASE = True  # the norm ‖W'‖ needs W₀ itself

    def __init__(
        self, base: Linear | QuantizedLinear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__(base, rank, alpha, dropout, rslora)
        self.magnitude = Parameter(self.frozen_weight().norm(dim=1))

    def frozen_weight(self) -> Tensor:
        """Returns W₀ in floating point: [out, in]"""
        base = self.base
        return base.dequantized() if isinstance(base, QuantizedLinear) else base.weight.detach()

    def row_scale(self) -> Tensor:
        """Computes m / ‖W'‖: [out], 1 where W' has a row of zeros, which stays zero. ‖W'‖ gets no gradient (§4.3)."""
        norm = (self.frozen_weight() + self.delta()).detach().norm(dim=1)  # [out]
        return torch.where(norm > 0, self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        bias = 0.0 if self.base.bias is None else self.base.bias
        y = self.base(x)
        return (self.row_scale() * (y - bias + self.update(x)) + bias).to(y.dtype)  # Eq. (5)

    def merged_weight(self) -> Tensor:
        """Computes m ⊙ W' / ‖W'‖: [out, in]"""
        return self.row_scale()[:, None] * super().merged_weight()

    @torch.no_grad()
    def merged(self) -> Linear:
        """Sets the base layer's weight to m ⊙ W' / ‖W'‖, in place, and returns the base layer."""
        self.merged_row_scale = self.row_scale()
        super().merged()
        self.lost_rows = self.base.weight[self.merged_row_scale == 0]
        self.base.weight *= self.merged_row_scale[:, None]
        return self.base

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores W₀ from m ⊙ W' / ‖W'‖, in place."""
        weight = self.base.weight  # perhaps of another dtype or device than when it was merged
        scale, lost_rows = (tensor.to(weight) for tensor in (self.merged_row_scale, self.lost_rows))
        lost = scale == 0
        weight /= scale.masked_fill(lost, 1)[:, None]
        weight[lost] = lost_rows
        super().unmerge()


def rows(x: Tensor) -> Tensor:
    """Flattens all dimensions but the last. [..., K] -> [N, K]"""
    return x.reshape(-1, x.size(-1))


class LowRank(torch.autograd.Function):
    """Computes s·B(A (d ⊙ x)) and the gradients of the module docstring, in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, s: float, keep: Tensor | None, p: float, dtype: torch.dtype
    ) -> Tensor:
        """x: [..., in];  A: [R, in];  B: [out, R];  keep: uint8 like x, 0 where dropped with probability p, or None;
        dtype: of the products -> [..., out]"""
        ctx.s, ctx.p, ctx.dtype = s, p, dtype
        u = LowRank.dropped(x, keep, p, dtype) @ A.to(dtype).t()  # [..., R]
        ctx.library = current_library()
        ctx.save_for_backward(x, A, B, keep, u)
        return (u * s) @ B.to(dtype).t()  # s multiplies u, the smallest factor

    @staticmethod
    def dropped(x: Tensor, keep: Tensor | None, p: float, dtype: torch.dtype) -> Tensor:
        """Computes d ⊙ x."""
        return x.to(dtype) if keep is None else (x.to(dtype) * keep).mul_(1 / (1 - p))

    @staticmethod
    @first_order
    @same_library
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """g: ∂L/∂y, [..., out] -> ∂L/∂x, ∂L/∂A, ∂L/∂B, and None for the other inputs"""
        x, A, B, keep, u = ctx.saved_tensors
        s_Bt_g = (g @ B.to(g.dtype)) * ctx.s  # [..., R]
        d_A = rows(s_Bt_g).t() @ rows(LowRank.dropped(x, keep, ctx.p, ctx.dtype))  # [R, in]
        d_B = rows(g).t() @ rows(u) * ctx.s  # [out, R]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = LowRank.dropped(s_Bt_g @ A.to(g.dtype), keep, ctx.p, g.dtype).to(x.dtype)  # [..., in]
        return d_x, d_A.to(A.dtype), d_B.to(B.dtype), None, None, None, None


# -------------------------------------------------------------------------------------- which layers, which ranks


def choose_targets(model: Encoder, targets: str) -> list[str]:
    """Returns the names of the linear layers that `targets` selects, in the model's order.

    targets: `all-linear` (all but the head), `re:PATTERN` (matched against whole names), or comma-separated layer names
    (`query,value`), each matched against the end of a module's name. Raises ValueError if one matches nothing.
    """
    layers = linear_layers(model)
    inner = [name for name in layers if name.split(".")[0] not in model.HEAD]
    if targets == "all-linear":
        return inner
    if targets.startswith("re:"):
        try:
            re.compile(targets[3:])
        except re.error as error:
            raise ValueError(f"LoRA target {targets!r} is not a regular expression: {error}") from None
        patterns = [targets]
    else:
        patterns = [part.strip() for part in targets.split(",") if part.strip()]
    if not patterns:
        raise ValueError("no LoRA target given; for example query,value or all-linear")
    chosen: set[str] = set()
    for target in patterns:
        found = [name for name in inner if is_target(name, target)]
        if not found:
            reason = "is part of the head, which is trained anyway" if target in layers else "matches no linear layer"
            known = ", ".join(sorted({name.rpartition(".")[2] for name in inner}))
            raise ValueError(f"LoRA target {target!r} {reason}; known: {known}, all-linear")
        chosen.update(found)
    return [name for name in layers if name in chosen]


def is_target(name: str, target: str) -> bool:
    """Returns whether `target` is the last part of a module's name, or its pattern (`re:`) matches all of it."""
    return matches(name, target[3:] if target.startswith("re:") else [target])


def parse_pattern(text: str, flag: str, kind: type) -> dict[str, Any]:
    """Parses `value=16 layers.0=4` into {"value": 16, "layers.0": 4}. kind: int or float, of the values

    Raises ValueError for a part that is not NAME=NUMBER and for a repeated name.
    """
    values: dict[str, Any] = {}
    for part in text.split():
        name, _, number = part.partition("=")
        if name in values:
            raise ValueError(f"{flag} names {name} twice: {name}={values[name]} and {part}")
        try:
            values[name] = kind(number)
        except ValueError:
            form = f"NAME={'N' if kind is int else 'NUMBER'}"
            raise ValueError(f"{flag} {part!r} is not {form}; a space separates two") from None
    return values


def matching_patterns(name: str, patterns: dict[str, Any]) -> list[str]:
    """Returns the patterns that are whole components of a layer's dotted name (`value`, `layers.0`), in order."""
    return [pattern for pattern in patterns if f".{pattern}." in f".{name}."]


def by_pattern(name: str, patterns: dict[str, Any], default: float) -> Any:
    """Returns the value of the first pattern that matches a layer's name, or the default."""
    return next((patterns[pattern] for pattern in matching_patterns(name, patterns)), default)


# ---------------------------------------------------------------------------------------------------------- apply


def apply(model: Encoder, options: LoRAOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Wraps the layers that the options select, in place. Returns the settings that the adapter's file records.

    init_ids has no effect on LoRA. Raises ValueError for a target, bias or pattern that does not exist, for biases that
    the model does not have, for an alpha of 0 or less, and for a rank above the width of a layer.
    """
    o = options
    names = choose_targets(model, o.targets or ",".join(model.LORA_TARGETS))
    ranks = parse_pattern(o.rank_pattern, "rank_pattern", int)
    alphas = parse_pattern(o.alpha_pattern, "alpha_pattern", float)
    if not o.alpha > 0:
        raise ValueError(f"alpha {o.alpha:g} must be above 0; alpha / R scales the update")
    if useless := next((name for name, alpha in alphas.items() if not alpha > 0), None):
        raise ValueError(f"alpha_pattern {useless}={alphas[useless]:g} must be above 0; alpha / R scales the update")
    used = {pattern for name in names for table in (ranks, alphas) for pattern in matching_patterns(name, table)[:1]}
    if unused := (ranks.keys() | alphas.keys()) - used:
        raise ValueError(f"no LoRA target matches the pattern {', '.join(sorted(unused))}")
    layers = {name: (by_pattern(name, ranks, o.rank), by_pattern(name, alphas, o.alpha)) for name in names}
    for name, (rank, _) in layers.items():
        base: Any = model.get_submodule(name)
        if rank > (width := min(base.in_features, base.out_features)):
            raise ValueError(f"LoRA rank {rank} is outside 1 … {width}, the width of {name}")
    in_backbone = [name for name in biases(model, layers, o.lora_bias) if name.split(".")[0] not in model.HEAD]
    if o.lora_bias != "none" and not in_backbone:
        raise ValueError(f"lora_bias {o.lora_bias}: this {model.model_type} has no such biases; leave it out")
    return wrap(model, layers, o)


def wrap(model: Encoder, layers: dict[str, tuple[int, float]], options: LoRAOptions) -> dict[str, Any]:
    """Wraps linear layers, in place. layers: name -> (rank, alpha). Returns the settings that the file records.

    Raises ValueError for an unknown kind of trained biases.
    """
    kind = DoRALinear if options.dora else LoRALinear
    adapted: dict[str, Any] = {}  # all are built before the first is attached, since building may raise ValueError
    for name, (rank, alpha) in layers.items():
        base: Any = model.get_submodule(name)
        adapted[name] = kind(base, rank, alpha, dropout=options.lora_dropout, rslora=options.rslora)
    trained = biases(model, layers, options.lora_bias)
    for name, module in adapted.items():
        model.set_submodule(name, module)
    for bias in trained.values():
        bias.requires_grad_(True)
    return asdict(options) | {"names": list(layers)}


def biases(model: Module, layers: Iterable[str], which: str) -> dict[str, Parameter]:
    """Returns biases by name: all, those of some layers (lora_only), or none. Raises ValueError for another kind."""
    if which not in BIASES:
        raise ValueError(f"unknown lora_bias {which!r}; known: {', '.join(BIASES)}")
    inside = {f"{name}.bias" for name in layers}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (which == "all" and name.endswith("bias")) or (which == "lora_only" and name in inside)
    }


@contextmanager
def merged_copies(model: Module, dtype: torch.dtype) -> Iterator[None]:
    """Replaces LoRA layers with plain layers that have merged weights in `dtype`, in a `with` block.

    W₀ is unchanged. Layers with quantized weights keep their adapter. Nothing may be trained in the block.
    """
    layers = [(name, module) for name, module in wrapped(model) if isinstance(module, LoRALinear)]
    layers = [(name, module) for name, module in layers if not isinstance(module.base, QuantizedLinear)]
    try:
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor cannot become a parameter
            for name, module in layers:
                plain = Linear(module.base.in_features, module.base.out_features, bias=False, device="meta")
                plain.weight = Parameter(module.merged_weight().to(dtype), requires_grad=False)
                plain.bias = module.base.bias
                model.set_submodule(name, plain)
        yield
    finally:
        for name, module in layers:
            model.set_submodule(name, module)
