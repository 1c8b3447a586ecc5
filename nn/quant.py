"""8-bit weights (LLM.int8(): Dettmers et al. 2022, arXiv 2208.07339, §2–3).

    W ≈ diag(s) Q,   s_n = max_k |W_nk| / 127,   Q_nk = round(W_nk / s_n) ∈ {-127 … 127}       absmax by row, §2.1
    x ≈ diag(t) P,   likewise by token, without the outlier columns o: those with any |x| >= 6
    y = diag(t) (P Qᵀ) diag(s) + x_o W_oᵀ + b                                                  Eq. (8)
    ∂L/∂x = (g ⊙ s) Q                                                                          W is frozen

The rounding error of a weight is at most s_n/2. An int8 weight takes a quarter of fp32's memory; `Int8Embedding` does
the same for an embedding table, which is half of DeBERTa-v3-base.

Three paths give the product: `int8` as above, through torch._int_mm; `bf16`, where Q goes to bf16, which holds it
exactly, and s comes afterwards; `fp32`, the plain form. `auto` under mixed precision takes int8 where nothing needs a
gradient and bf16 elsewhere; in fp32 it takes int8 on CPUs that multiply it (AVX-512 VNNI), and fp32 elsewhere.

Differs from the paper: weights by row and activations by token, as bitsandbytes has it ("vector-wise").
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, Linear, Module, Parameter

OUTLIER = 6.0  # §3.2
PATHS = ("auto", "int8", "bf16", "fp32")
QUANTIZED = "int8-absmax"  # how config.json says that weights are stored so


def multiplies_int8(device: torch.device) -> bool:
    """Whether this is a CPU with instructions for it: there it takes a fourth of fp32's time, elsewhere it may take
    more."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """w: [N, K] -> (Q int8 [N, K], s fp32 [N]). Rows of 0 get s = 0. Halves are rounded to even."""
    w = w.float()
    absmax = torch.maximum(w.amax(1), -w.amin(1))  # [N]
    q = w * (127 / absmax.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
    return q.round_().to(torch.int8), absmax / 127


def int8_product(x: Tensor, q: Tensor, s: Tensor, threshold: float = OUTLIER) -> Tensor:
    """Eq. (8) without b. x: [M, K];  q: int8 [N, K];  s: [N] -> [M, N], fp32."""
    x = x.float()
    outlier = torch.maximum(x.amax(0), -x.amin(0)).ge(threshold).nonzero()[:, 0]  # columns
    p, t = quantize_rows(x.index_fill(1, outlier, 0) if len(outlier) else x)  # [M, K], [M]
    y = torch._int_mm(p, q.t()).float().mul_(t[:, None]).mul_(s)  # [M, N]
    if len(outlier):
        y += x[:, outlier] @ (q[:, outlier].float() * s[:, None]).t()
    return y


class Int8Matmul(torch.autograd.Function):
    """x diag(s) Qᵀ by one of the paths, for a frozen weight: nothing of x is saved. x: [M, K];  q: int8 [N, K]"""

    @staticmethod
    def forward(ctx, x: Tensor, q: Tensor, s: Tensor, path: str) -> Tensor:
        ctx.save_for_backward(q, s)
        ctx.dtype, ctx.path = x.dtype, path
        if path == "int8":
            return int8_product(x, q, s).to(x.dtype)
        if path == "bf16":
            return F.linear(x.to(torch.bfloat16), q.to(torch.bfloat16)) * s.to(torch.bfloat16)
        return F.linear(x, q.to(x.dtype) * s[:, None].to(x.dtype))

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None]:
        q, s = ctx.saved_tensors
        wide = torch.bfloat16 if ctx.path == "bf16" else g.dtype
        return ((g * s).to(wide) @ q.to(wide)).to(ctx.dtype), None, None, None


class Int8Linear(Module):
    """y = x diag(s) Qᵀ + b;   Q -> weight int8 [out, in], s -> scale fp32 [out]. Looks like a Linear; frozen."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Parameter | None, path: str = "auto") -> None:
        super().__init__()
        if path not in PATHS:
            raise ValueError(f"unknown path {path!r}; known: {', '.join(PATHS)}")
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight.shape
        self.path = path

    @classmethod
    def from_linear(cls, layer: Linear, path: str = "auto") -> "Int8Linear":
        return cls(*quantize_rows(layer.weight.detach()), layer.bias, path)

    def dequantized(self) -> Tensor:
        """diag(s) Q: fp32 [out, in]"""
        return self.weight.float() * self.scale[:, None]

    def chosen_path(self, x: Tensor) -> str:
        if self.path != "auto":
            return self.path
        if not torch.is_autocast_enabled(x.device.type) and x.dtype != torch.bfloat16:
            return "int8" if multiplies_int8(x.device) else "fp32"
        whole = x.device.type == "cpu" or (
            x.shape[:-1].numel() > 16 and not self.in_features % 8 | self.out_features % 8
        )
        return "int8" if whole and not (torch.is_grad_enabled() and x.requires_grad) else "bf16"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        with torch.autocast(x.device.type, enabled=False):
            path = self.chosen_path(x)
            y = Int8Matmul.apply(x.flatten(0, -2), self.weight, self.scale, path)
            y = y if self.bias is None else y.add_(self.bias.to(y.dtype))
            return y.unflatten(0, x.shape[:-1])


class Int8Embedding(Module):
    """row w = s_w Q_w;   Q -> weight int8 [V, E], s -> scale fp32 [V]. Looks like an Embedding; frozen."""

    def __init__(self, weight: Tensor, scale: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx

    @classmethod
    def from_embedding(cls, layer: Embedding) -> "Int8Embedding":
        return cls(*quantize_rows(layer.weight.detach()), layer.padding_idx)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [...] -> fp32 [..., E]"""
        return self.weight[input_ids].float() * self.scale[input_ids][..., None]


def quantizable(model: Module) -> list[str]:
    """Names of the modules that `quantize_int8` replaces: linear layers and the word table, but nothing of the head,
    and no adapter."""
    return [
        name
        for name, module in model.named_modules()
        if name.split(".")[0] not in (*model.HEAD, "virtual", "projection")
        and (isinstance(module, Linear) or (name == "embeddings.word" and isinstance(module, Embedding)))
    ]


def quantize_int8(model: Module) -> Module:
    """Replaces the model's linear layers and word table by 8-bit ones, in place. Heads, poolers, norms, convolutions
    and adapters stay as they are."""
    for name in quantizable(model):
        module = model.get_submodule(name)
        new = Int8Linear.from_linear(module) if isinstance(module, Linear) else Int8Embedding.from_embedding(module)
        model.set_submodule(name, new)
    return model


def is_quantized(model: Module) -> bool:
    return any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules())


def put_quantized(model: Module, name: str, weight: Tensor, scale: Tensor | None = None) -> None:
    """Puts an 8-bit module in the place of the module `name`: from fp weights, or from Q and s."""
    old = model.get_submodule(name)
    q, s = quantize_rows(weight) if scale is None else (weight, scale)
    if isinstance(old, Embedding):
        model.set_submodule(name, Int8Embedding(q, s, old.padding_idx))
    else:
        model.set_submodule(name, Int8Linear(q, s, old.bias))


def resident_bytes(model: Module) -> int:
    """What parameters and buffers take."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
