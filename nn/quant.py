"""8-bit weights (LLM.int8(): Dettmers et al. 2022, arXiv 2208.07339, §2–3).

    W ≈ diag(s) Q,   s_n = max_k |W_nk| / 127,   Q_nk = round(W_nk / s_n) ∈ {-127 … 127}       absmax, §2.1
    x ≈ diag(t) P,   likewise by token, without its outliers x_o: its values with |x| >= 6    Eq. (7)
    y = diag(t) (P Qᵀ) diag(s) + x_o (diag(s) Q)ᵀ + b                                         Eq. (8)
    ∂L/∂x = (g ⊙ s) Q                                                                          W is frozen

The rounding error of a weight is at most s_n/2. An int8 weight takes a quarter of the memory of fp32. `Int8Embedding`
quantizes the embedding table, which has half of the parameters of DeBERTa-v3-base.

Three paths compute the product:
    int8   the equations above, with torch._int_mm
    bf16   Q is converted to bf16, which represents it exactly; the product is multiplied by s. Scoring on a CPU
           multiplies by diag(s) Q in bf16, once converted and packed (nn/packed_linear.py)
    fp32   diag(s) Q is computed in the dtype of x: the plain form
`auto` under mixed precision: int8 on a CUDA GPU for inputs without a gradient, more than 16 rows, and widths that are
multiples of 8; bf16 otherwise. `auto` in fp32: int8 on CPUs with int8 instructions (AVX-512 VNNI); fp32 otherwise.

One scale for each row of W [out, in] and for each token is the paper's vector-wise quantization (§3.1). In shapes, M is
the number of tokens, N that of output features and K that of input features.

Differs from the paper: x_o is multiplied by the 8-bit weights, since no others are kept; the paper multiplies it by
16-bit ones. There, x_o contains every column with an outlier in any token of the batch. Here it contains only each
token's own outliers, so that the logits of a review do not depend on the other reviews in its batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Embedding, Linear, Module, Parameter

from nn import Model
from nn.nf4 import NF4Linear, quantize_nf4
from nn.onednn import current_library, same_library
from nn.quantized_linear import QuantizedLinear

OUTLIER = 6.0  # §3.2
TINY = 1e-36  # 127 / TINY is finite in fp32
PATHS = ("auto", "int8", "bf16", "fp32")
FORMS = ("none", "int8", "nf4")  # of frozen weights: --quantize
QUANTIZED = "int8-absmax"  # value of the field `quantization` in config.json


def multiplies_int8(device: torch.device) -> bool:
    """Returns whether the device is a CPU with int8 instructions. With them an int8 product is 4 × as fast as fp32;
    without them it may be slower."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()


def prefers_bf16(device: torch.device) -> bool:
    """Returns whether 8-bit weights are multiplied faster in bf16 than in int8 under mixed precision.

    This holds on the CPUs that were measured, with AVX-512 for bf16 and with AMX: the rounding of the activations takes
    longer than int8 products save.
    """
    return device.type == "cpu"


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes by row. w: [N, K] -> Q int8 [N, K], s fp32 [N]. A row of zeros has s = 0. Halves round to even.

    A row whose largest |w| is below TINY has s = TINY / 127, since 127 / |w| may be infinite.
    """
    w = w.float()
    absmax = torch.maximum(w.amax(1), -w.amin(1))  # [N]
    largest = absmax.clamp(min=TINY)
    return (w * (127 / largest)[:, None]).round_().to(torch.int8), largest.masked_fill(absmax == 0, 0) / 127


def aligned(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Appends zeros, so that torch._int_mm has the sizes that it requires on a GPU: more than 16 rows, multiples of 8.

    p: int8 [M, K];  q: int8 [N, K] -> the same, or larger
    """
    missing_k = -p.size(1) % 8
    p = F.pad(p, (0, missing_k, 0, max(0, 17 - p.size(0))))
    return p, F.pad(q, (0, missing_k, 0, -q.size(0) % 8))


def int8_product(x: Tensor, q: Tensor, s: Tensor, threshold: float = OUTLIER) -> Tensor:
    """Computes Eq. (8) without b. x: [M, K];  q: int8 [N, K];  s: [N];  threshold: least |x| of an outlier
    -> fp32 [M, N]"""
    x, s = x.float(), s.float()
    if not len(x):
        return x.new_zeros(0, len(q))
    columns = torch.maximum(x.amax(0), -x.amin(0)).ge(threshold).nonzero()[:, 0]  # those with an outlier
    some = x[:, columns]  # [M, number of columns]
    outlier = some.abs() >= threshold  # of the row itself
    p, t = quantize_rows(x.index_copy(1, columns, some.masked_fill(outlier, 0)) if len(columns) else x)  # [M, K], [M]
    left, right = aligned(p, q) if x.is_cuda else (p, q)
    y = torch._int_mm(left, right.t())[: len(p), : len(q)].float().mul_(t[:, None]).mul_(s)  # [M, N]
    if len(columns):
        y += some.masked_fill(~outlier, 0) @ (q[:, columns].float() * s[:, None]).t()
    return y


class Int8Matmul(torch.autograd.Function):
    """x Qᵀ diag(s) on one of the paths. The weight is frozen, so x is not saved. x: [M, K];  q: int8 [N, K];  s: [N]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor, s: Tensor, path: str) -> Tensor:
        """path: int8, bf16 or fp32 -> [M, N]; bf16 on the path bf16, else the dtype of x"""
        ctx.library = current_library()
        ctx.save_for_backward(q, s)
        ctx.dtype, ctx.path = x.dtype, path
        if path == "int8":
            return int8_product(x, q, s).to(x.dtype)
        if path == "bf16":
            return F.linear(x.to(torch.bfloat16), q.to(torch.bfloat16)).mul_(s.to(torch.bfloat16))
        return F.linear(x, q.to(x.dtype) * s[:, None].to(x.dtype))

    @staticmethod
    @same_library
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        """g: [M, N] -> ∂L/∂x [M, K], in the dtype of x"""
        q, s = ctx.saved_tensors
        dtype = torch.bfloat16 if ctx.path == "bf16" else g.dtype
        return ((g * s).to(dtype) @ q.to(dtype)).to(ctx.dtype), None, None, None


class Int8Linear(QuantizedLinear):
    """y = x Qᵀ diag(s) + b;   Q -> weight int8 [out, in], s -> scale fp32 [out]. Replaces a frozen Linear.

    path: auto, int8, bf16 or fp32 (module docstring). Raises ValueError for another path.
    """

    weight: Tensor
    BITS = 8

    def __init__(self, weight: Tensor, scale: Tensor, bias: Parameter | None, path: str = "auto") -> None:
        super().__init__(weight.size(0), weight.size(1), bias)
        if path not in PATHS:
            raise ValueError(f"unknown path {path!r}; known: {', '.join(PATHS)}")
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.path = path

    @classmethod
    def from_linear(cls, layer: Linear, path: str = "auto") -> "Int8Linear":
        """Quantizes the weight of `layer` and shares its bias."""
        weight, scale = quantize_rows(layer.weight.detach())
        return cls(weight=weight, scale=scale, bias=layer.bias, path=path)

    def dequantized(self) -> Tensor:
        """Returns diag(s) Q, fp32 [out, in]."""
        return self.weight.float() * self.scale[:, None]

    def chosen_path(self, x: Tensor) -> str:
        """Resolves `auto` for the input x (module docstring). Returns int8, bf16 or fp32."""
        if self.path != "auto":
            return self.path
        if not torch.is_autocast_enabled(x.device.type) and x.dtype != torch.bfloat16:
            return "int8" if multiplies_int8(x.device) else "fp32"
        multiples = self.in_features % 8 == 0 and self.out_features % 8 == 0
        large = x.shape[:-1].numel() > 16 and multiples  # needs no padding (`aligned`)
        supported = x.device.type == "cpu" or (x.device.type == "cuda" and large)
        gradient = torch.is_grad_enabled() and x.requires_grad
        return "int8" if supported and not gradient and not prefers_bf16(x.device) else "bf16"

    def multiplies_bf16(self) -> bool:
        """Returns whether the path for inputs in bf16 without a gradient is bf16 on the weight's device."""
        return self.path == "bf16" or (self.path == "auto" and prefers_bf16(self.weight.device))

    def product(self, x: Tensor) -> Tensor:
        """Computes x Qᵀ diag(s) on the chosen path: [M, in] -> [M, out]"""
        path = self.chosen_path(x)  # which depends on autocast
        with torch.autocast(x.device.type, enabled=False):
            return Int8Matmul.apply(x, self.weight, self.scale, path)


class Int8Embedding(Module):
    """row w = s_w Q_w;   Q -> weight int8 [V, E], s -> scale [V], which has the dtype of the rows.

    Replaces a frozen Embedding.
    """

    weight: Tensor
    scale: Tensor
    BITS = 8

    def __init__(self, weight: Tensor, scale: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx

    @classmethod
    def from_embedding(cls, layer: Embedding) -> "Int8Embedding":
        """Quantizes the table of `layer`."""
        weight, scale = quantize_rows(layer.weight.detach())
        return cls(weight=weight, scale=scale.to(layer.weight.dtype), padding_idx=layer.padding_idx)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [...] -> [..., E] in the dtype of the scale; bf16 and fp16 represent Q exactly"""
        return self.weight[input_ids].to(self.scale.dtype) * self.scale[input_ids][..., None]


def quantizable(model: Model) -> list[str]:
    """Returns the names of the modules that `quantize` replaces: the word embeddings and the linear layers outside
    the head and the adapter."""
    return [
        name
        for name, module in model.named_modules()
        if name.split(".")[0] not in (*model.HEAD, "virtual", "projection")
        and (isinstance(module, Linear) or (name == "embeddings.word" and isinstance(module, Embedding)))
    ]


def quantize(model: Model, form: str) -> Model:
    """Replaces the linear layers of `model` with 8-bit or 4-bit layers and its word embeddings with an 8-bit table, in
    place, and returns it.

    Head, pooler, norms, convolutions and adapter keep their precision. form: int8 or nf4. Raises ValueError for another
    form.
    """
    for name in quantizable(model):
        weight = model.get_parameter(f"{name}.weight").detach()
        put_quantized(model, name, weight, form=form, dtype=weight.dtype)
    return model


def quantize_int8(model: Model) -> Model:
    """Quantizes `model` to 8 bits, in place, and returns it."""
    return quantize(model, "int8")


def put_quantized(
    model: Module,
    name: str,
    weight: Tensor,
    scale: Tensor | None = None,
    form: str = "int8",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replaces the module `name` with a quantized module.

    weight: floating point, quantized here; or Q, with s in scale.  form: int8 or nf4, of a linear layer.  dtype: of the
    rows of a table. Raises ValueError for another form.
    """
    if form not in FORMS[1:]:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS[1:])}")
    old: Any = model.get_submodule(name)
    if isinstance(old, Linear) and form == "nf4":
        model.set_submodule(name, NF4Linear(quantize_nf4(weight), weight.size(0), weight.size(1), old.bias))
        return
    q, s = quantize_rows(weight) if scale is None else (weight, scale)
    if isinstance(old, Embedding):
        model.set_submodule(name, Int8Embedding(weight=q, scale=s.to(dtype), padding_idx=old.padding_idx))
    else:
        model.set_submodule(name, Int8Linear(weight=q, scale=s, bias=old.bias))


def form_of(model: Module) -> str:
    """Returns the form of the weights of `model`: none, int8 or nf4."""
    bits = {module.BITS for module in model.modules() if isinstance(module, QuantizedLinear)}
    table = any(isinstance(module, Int8Embedding) for module in model.modules())
    return "nf4" if 4 in bits else "int8" if bits or table else "none"


def is_quantized(model: Module) -> bool:
    """Returns whether `model` contains quantized modules."""
    return form_of(model) != "none"


def describe_products(device: torch.device, mixed: bool, form: str = "int8") -> str:
    """Describes in one line how quantized weights are multiplied in scoring. mixed: precision is bf16 or fp16"""
    if form == "nf4":
        return "4-bit weights: stored in NF4, dequantized to the precision of the run for each product"
    bf16 = mixed and (prefers_bf16(device) or device.type not in ("cpu", "cuda"))
    path = "bf16" if bf16 else "int8" if mixed or multiplies_int8(device) else "fp32"
    why = ", which is faster on a CPU" if bf16 and device.type == "cpu" else ""
    return f"8-bit weights: stored in int8, multiplied in {path}{why}"


def quantized_weights(model: Module) -> tuple[int, int]:
    """Returns the number of quantized weights and their size in bytes, with scales. Those of a sharded model are
    parameters (nn/sharding.py)."""
    modules = [module for module in model.modules() if isinstance(module, QuantizedLinear | Int8Embedding)]
    count = sum(module.weight.numel() * 8 // module.BITS for module in modules)
    named = [pair for module in modules for pair in (*module.named_buffers(), *module.named_parameters())]
    return count, sum(t.numel() * t.element_size() for name, t in named if name != "bias")
