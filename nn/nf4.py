"""4-bit weights with double quantization (QLoRA: Dettmers et al. 2023, arXiv 2305.14314, §3 and appendix E).

    w ≈ c_i NF4[k],   c_i = max |w| of the block i of 64 weights,    k ∈ {0 … 15}: the nearest value to w / c_i
    c ≈ c̄ + s_j D[m],  s_j = max |c - c̄| of the block j of 256 c's,   m ∈ {0 … 255}: the nearest value to (c - c̄) / s_j
    y = x Wᵀ + b,   ∂L/∂x = g W                                                            Eq. (5); W is frozen

c̄ is the mean of all c of a layer. The values of NF4 are quantiles of the normal distribution, scaled to [-1, 1], with
an exact zero. They are closest together near 0, where normally distributed weights are most frequent. D is the dynamic
8-bit type (Dettmers 2016, arXiv 1511.04561). It covers seven powers of ten with 1, 2, 4, … 64 values of each sign, from
the lowest power to the highest, so that large numbers have the smallest relative error; D also contains 0 and 1, but
not -1.

A weight takes 4 + 8/64 + 32/(64·256) = 4.127 bits. W is dequantized for each product, in the forward and in the
backward pass, and rounded to the precision of the product: fp32, or the dtype of autocast.

Differs from the paper: D in place of an 8-bit float type, as in bitsandbytes. All codes equal those of the portable
form of bitsandbytes. Its CPU kernel rounds (c - c̄) / s_j to 65,536 levels first, and takes the neighbour of m for one
c in a thousand.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from nn.autocast import product_dtype
from nn.quantized_linear import QuantizedLinear
from nn.tracing import cached

BLOCK, CONSTANTS = 64, 256  # weights with one c;  c's with one s
TINY = 1e-38  # in place of the maximum of a block of zeros
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
# fmt: on


def dynamic_values() -> Tensor:
    """Computes D: fp32 [256], ascending.

    2^i values of each sign are evenly spaced between 10^(i-7) and 10^(i-6), i < 7.
    """
    values = [torch.tensor([0.0, 1.0])]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1)
        middle = 10 ** (i - 6) * ((bounds[:-1] + bounds[1:]) / 2)
        values += [middle, -middle]
    return torch.cat(values).sort().values


DYNAMIC = dynamic_values()


@cached
def tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the two weights of each byte, [256, 2], and D on a device."""
    byte = torch.arange(256)
    return torch.stack([NF4[byte // 16], NF4[byte % 16]], 1).to(device), DYNAMIC.to(device)


class NF4Weight(NamedTuple):
    """A weight W [N, K] in 4 bits."""

    weight: Tensor  # k, uint8, two in a byte, the first one in the upper half; zeros complete the last block
    absmax: Tensor  # m, uint8 [blocks]
    scale: Tensor  # s, fp32 [blocks / 256, rounded up]
    offset: Tensor  # c̄, fp32 []


def quantize_blocks(x: Tensor, size: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes in blocks. x: fp32 [n];  values: ascending within [-1, 1] -> indices uint8 [blocks, size], max |x|

    Zeros complete the last block. The lower of two equally near values is taken.
    """
    x = F.pad(x, (0, -len(x) % size)).view(-1, size)
    absmax = x.abs().amax(1)  # [blocks]
    bounds = ((values[:-1] + values[1:]) / 2).to(x.device)
    scaled = (x * (1 / absmax.clamp(min=TINY))[:, None]).clamp(-1, 1)
    return torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8), absmax


def quantize_nf4(w: Tensor) -> NF4Weight:
    """Quantizes a floating-point weight [N, K]."""
    k, c = quantize_blocks(w.float().flatten(), BLOCK, NF4)
    offset = c.mean()
    m, s = quantize_blocks(c - offset, CONSTANTS, DYNAMIC)
    return NF4Weight((k[:, ::2] << 4 | k[:, 1::2]).flatten(), m.flatten()[: len(c)].clone(), s, offset)


def dequantize_nf4(q: NF4Weight, shape: tuple[int, int]) -> Tensor:
    """Computes W from its codes: fp32 [N, K]. shape: (N, K)"""
    pairs, dynamic = tables(q.weight.device)
    s = q.scale.float().repeat_interleave(CONSTANTS)[: len(q.absmax)]
    c = dynamic[q.absmax.int()] * s + q.offset.float()  # [blocks]
    w = pairs[q.weight.int()].view(-1, BLOCK) * c[:, None]
    return w.flatten()[: shape[0] * shape[1]].view(shape)


class NF4Linear(QuantizedLinear):
    """y = x Wᵀ + b with W in 4 bits: the fields of NF4Weight are buffers. Replaces a frozen Linear."""

    absmax: Tensor
    offset: Tensor
    BITS = 4

    def __init__(self, q: NF4Weight, out_features: int, in_features: int, bias: Parameter | None) -> None:
        super().__init__(out_features, in_features, bias)
        for name, tensor in q._asdict().items():
            self.register_buffer(name, tensor)

    def dequantized(self) -> Tensor:
        """Returns W, fp32 [out, in]."""
        q = NF4Weight(self.weight, self.absmax, self.scale, self.offset)
        return dequantize_nf4(q, (self.out_features, self.in_features))

    def product(self, x: Tensor) -> Tensor:
        """Computes x Wᵀ in the dtype of autocast, or else of x: [M, in] -> [M, out]"""
        return NF4Matmul.apply(x, self, product_dtype(x))


class NF4Matmul(torch.autograd.Function):
    """x Wᵀ in `dtype`. Between the passes neither W nor x is kept, since W is frozen. x: [M, in] for M tokens"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear, dtype: torch.dtype) -> Tensor:
        """x: [M, in] -> [M, out]"""
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return x.to(dtype) @ layer.dequantized().to(dtype).t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """g: [M, out] -> ∂L/∂x [M, in], which autograd converts to the dtype of x"""
        return g @ ctx.layer.dequantized().to(g.dtype), None, None
