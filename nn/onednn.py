"""Computes the fp32 products of linear layers with oneDNN on processors for which the default library is slow.

On x86, torch multiplies fp32 matrices with Intel's MKL, which uses AVX-512 on Intel's processors only, and AVX2 on
others. oneDNN, the part of torch that multiplies in bf16, uses AVX-512 on all of them. Only the order of the sums
differs, as between any two processors. The times of both: tests/bench/onednn.py.

    with FastLinear():
        loss = model(input_ids, mask).sum()  # layers as written; only the library of their products differs
    loss.backward()

Products of two batches of matrices, as in attention, stay with MKL: torch has no such function for them.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from nn.processor import processor_field

SMALLEST = 2**22  # multiplications of a product; below, the call takes longer than oneDNN saves
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


def separate_rows(x: Tensor) -> Tensor:
    """Returns a copy of a matrix whose rows overlap in memory, which oneDNN refuses, and other matrices unchanged.

    x: [M, K], such as windows over a text
    """
    rows, columns = x.stride()
    overlap = rows < columns * x.size(1) and columns < rows * x.size(0)
    return x.contiguous() if overlap else x


class Product(torch.autograd.Function):
    """y = x Wᵀ + b;  ∂L/∂x = g W;  ∂L/∂W = gᵀ x;  ∂L/∂b = Σ g"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: [M, K];  weight: W, [N, K];  bias: [N] -> [M, N]. What no gradient needs is not kept."""
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return torch.ops.mkldnn._linear_pointwise(separate_rows(x), separate_rows(weight), bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """g: ∂L/∂y, [M, N]"""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            Product.apply(g, weight.t(), None) if for_x else None,
            Product.apply(g.t(), x.t(), None) if for_weight else None,
            g.sum(0) if for_bias else None,
        )


def is_suitable(x: Tensor, weight: Tensor) -> bool:
    """Returns whether oneDNN computes x Wᵀ. x: [..., K];  weight: W, [N, K]"""
    plain = {type(x), type(weight)} <= {Tensor, Parameter}  # a sharded tensor has another type
    fp32_on_cpu = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, weight))
    if not plain or not fp32_on_cpu or torch.is_autocast_enabled("cpu"):
        return False
    return weight.dim() == 2 and x.dim() >= 2 and x.numel() * weight.size(0) >= SMALLEST


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes F.linear. x: [..., K];  weight: [N, K];  bias: [N] -> [..., N]"""
    return Product.apply(x.reshape(-1, x.size(-1)), weight, bias).view(*x.shape[:-1], -1)


class FastLinear(TorchFunctionMode):
    """Replaces F.linear and x @ W, where W is a matrix, by `linear` in a `with` block."""

    depth = 0  # number of blocks that are open

    def __enter__(self) -> Any:
        FastLinear.depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        FastLinear.depth -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls `function`, or `linear` in its place."""
        if function is F.linear and not kwargs and is_suitable(args[0], args[1]):
            return linear(*args)
        if function in MATMUL and not kwargs and args[1].dim() == 2 and is_suitable(args[0], weight := args[1].t()):
            return linear(args[0], weight)
        return function(*args, **(kwargs or {}))


def current_library() -> AbstractContextManager:
    """Returns a context that keeps the current library for linear layers.

    Activation checkpointing needs it: the backward pass, outside the block, computes the layers again.
    """
    return FastLinear() if FastLinear.depth else nullcontext()


@functools.cache
def is_faster() -> bool:
    """Returns whether the processor has AVX-512 and is not Intel's, and torch has both libraries."""
    both = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return both and torch.cpu._is_avx512_supported() and processor_field("vendor_id") not in ("", "GenuineIntel")
