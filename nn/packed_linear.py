"""Linear layers for scoring in bf16 on a CPU: weights in oneDNN's own layout.

torch's Linear arranges its weight for oneDNN in every call, and autocast casts it before. If nothing is trained, both
are needed once. The numbers differ from those of Linear in the order of the sums only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import Linear

from nn.quant import Int8Linear

FUNCTIONS = ("_linear_pointwise", "_reorder_linear_weight")  # of torch.ops.mkldnn


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether oneDNN multiplies in `dtype` here: bf16, on an x86 CPU with AVX-512."""
    mkldnn = torch.backends.mkldnn
    if device.type != "cpu" or dtype != torch.bfloat16 or not (mkldnn.is_available() and mkldnn.enabled):
        return False
    if not (torch.cpu._is_avx512_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in FUNCTIONS)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x Wᵀ + b in bf16. x: [..., K];  weight: W of [N, K], packed;  bias: bf16 [N] -> [..., N]"""
    return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight, bias, "none", [], "")


def packed(layer: Linear | Int8Linear, rows: int) -> Callable[[Tensor], Tensor]:
    """Returns a function that computes what a layer computes. Its parameters and buffers are no longer read.

    rows: of x in most products; the layout depends on it
    """
    weight = layer.weight if isinstance(layer, Linear) else layer.dequantized()
    bias = None if layer.bias is None else layer.bias.bfloat16()
    weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), rows)
    return partial(packed_product, weight=weight, bias=bias)


@contextmanager
def packed_weights(layers: Sequence[Linear | Int8Linear], rows: int) -> Iterator[None]:
    """Makes the layers compute with packed weights in a `with` block, in which nothing is trained.

    The layers' own weights stay as they are: a packed one takes two bytes more for each weight. For 8-bit layers, which
    would multiply in bf16, it is diag(s) Q.
    """
    own = [layer for layer in layers if "forward" not in vars(layer)]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for layer in own:
                layer.forward = packed(layer, rows)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer in own:
            vars(layer).pop("forward", None)
