"""Computes fp32 products of matrices with oneDNN on processors for which the default library is slow.

On x86, torch multiplies fp32 matrices with Intel's MKL, which uses AVX-512 on Intel's processors only, and AVX2 on
others. oneDNN, the part of torch that multiplies in bf16, uses AVX-512 on all of them. Only the order of the sums
differs, as between any two processors. The times of both: tests/bench/onednn.py.

    with FastProducts():
        loss = model(input_ids, mask).sum()  # layers as written; only the library of their products differs
    loss.backward()

torch's function multiplies two matrices. The products of a batch, as in attention, are computed one after the other.
If a loop multiplies by the same matrix in each step, as in a recurrent layer, the matrix is `packed` before the loop.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from nn.processor import processor_field

# Least number of multiplications for which oneDNN is used: of a product, or of a product per thread if it is one of a
# batch or packed. In smaller products, the call takes longer than oneDNN saves (tests/bench/onednn.py).
SMALLEST = 2**22
SMALLEST_PACKED = 2**21
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


def separate_rows(x: Tensor) -> Tensor:
    """Copies a matrix whose rows overlap in memory, which oneDNN rejects. Returns other matrices unchanged.

    x: [M, K], such as windows over a text
    """
    rows, columns = x.stride()
    overlap = rows < columns * x.size(1) and columns < rows * x.size(0)
    return x.contiguous() if overlap else x


def without_gaps(weight: Tensor) -> Tensor:
    """Copies a matrix that is not contiguous by rows or by columns. Returns other matrices unchanged.

    If W is a part of a larger matrix, oneDNN takes a thousand times as long.  weight: [N, K]
    """
    return weight if weight.is_contiguous() or weight.mT.is_contiguous() else weight.contiguous()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x Wᵀ + b. x: [M, K];  weight: W, [N, K], or of `packed`;  bias: [N] -> [M, N]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def product_of_views(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `product`, without b as (W xᵀ)ᵀ if that copies less: torch copies a transposed first factor."""
    copied = [0 if factor.is_contiguous() else factor.numel() for factor in (x, weight)]
    if bias is not None or copied[0] <= copied[1]:
        return product(separate_rows(x), without_gaps(weight), bias)
    return product(separate_rows(weight), without_gaps(x)).mT


class Product(torch.autograd.Function):
    """y = x Wᵀ + b, of two matrices or of each pair of two batches;  ∂L/∂x = g W;  ∂L/∂W = gᵀ x;  ∂L/∂b = Σ g"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: [M, K];  weight: W, [N, K];  bias: [N] -> [M, N]. Or [I, M, K] and [I, N, K], without bias -> [I, M, N].

        Only the tensors that a gradient needs are saved.
        """
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        if x.dim() == 2:
            return product_of_views(x, weight, bias)
        each = [product_of_views(a, w) for a, w in zip(x, weight, strict=True)]
        return torch.stack(each) if len(each) > 1 else each[0][None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """g: ∂L/∂y, [M, N] or [I, M, N]"""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            Product.apply(g, weight.mT, None) if for_x else None,
            Product.apply(g.mT, x.mT, None) if for_weight else None,
            g.sum(0) if for_bias else None,
        )


def is_plain_fp32(*tensors: Tensor) -> bool:
    """Returns whether autocast is off and all tensors are plain fp32 tensors on a CPU, not of a subclass, such as
    sharded tensors."""
    plain = all(type(t) in (Tensor, Parameter) for t in tensors)
    fp32_on_cpu = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return plain and fp32_on_cpu and not torch.is_autocast_enabled("cpu")


def is_suitable(x: Tensor, weight: Tensor) -> bool:
    """Returns whether oneDNN computes x Wᵀ. x: [..., K];  weight: W, [N, K], or [..., N, K] of a batch as that of x"""
    if not is_plain_fp32(x, weight) or min(x.dim(), weight.dim()) < 2:
        return False
    if weight.dim() == 2:
        return x.numel() * weight.size(0) >= SMALLEST
    each = x.size(-2) * x.size(-1) * weight.size(-2)  # MKL divides a batch among the threads, oneDNN each product
    return x.shape[:-2] == weight.shape[:-2] and x.numel() > 0 and each >= SMALLEST * torch.get_num_threads()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes F.linear, or x Wᵀ of a batch of W.

    x: [..., K];  weight: [N, K];  bias: [N] -> [..., N];  or [..., M, K] and [..., N, K] -> [..., M, N]
    """
    if weight.dim() == 2:
        y = Product.apply(x.reshape(-1, x.size(-1)), weight, bias)
    else:
        y = Product.apply(*(t.reshape(-1, *t.shape[-2:]) for t in (x, weight)), None)
    # `view` would make a view, which cannot be changed in place where another autograd.Function returns it
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.size(-1)))


class Blocks(threading.local):
    """Counts the open blocks of FastProducts in this thread."""

    depth = 0


BLOCKS = Blocks()


class FastProducts(TorchFunctionMode):
    """Replaces F.linear and x @ W with `linear` in a `with` block."""

    def __enter__(self) -> Any:
        BLOCKS.depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        BLOCKS.depth -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls `function`, or `linear` in its place."""
        if function is F.linear and not kwargs and is_suitable(args[0], args[1]):
            bias = args[2] if len(args) > 2 else None
            if bias is None or bias.shape == args[1].shape[:1]:  # torch broadcasts other shapes
                return linear(*args)
        if function in MATMUL and not kwargs and args[1].dim() >= 2 and is_suitable(args[0], weight := args[1].mT):
            return linear(args[0], weight)
        return function(*args, **(kwargs or {}))


def direct_calls() -> AbstractContextManager:
    """Returns a context for a loop of small operations: in a block of FastProducts each takes about 1 µs more.

    Only `product` uses oneDNN there.
    """
    return torch._C.DisableTorchFunction()


def packed(w: Tensor, rows: int) -> list[Tensor] | None:
    """Arranges the matrices of a loop for `product`, or returns None if the default library is to compute x W.

    w: W, [N, K, M], of N products with `rows` rows
    """
    smallest = SMALLEST_PACKED * torch.get_num_threads()
    fast = BLOCKS.depth and is_plain_fp32(w) and rows * w[0].numel() >= smallest
    return [torch.ops.mkldnn._reorder_linear_weight(m, rows) for m in w.mT.contiguous()] if fast else None


def current_library() -> AbstractContextManager:
    """Returns a context that keeps the current library, for a backward pass outside the block.

    Activation checkpointing needs it, which computes layers again, and so does an autograd.Function (`same_library`).
    """
    return FastProducts() if BLOCKS.depth else nullcontext()


def same_library(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `backward` of an autograd.Function compute with ctx.library, the `current_library()` of its `forward`."""

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Any) -> Any:
        with ctx.library:
            return backward(ctx, *gradients)

    return run


@functools.cache
def is_faster() -> bool:
    """Returns whether the processor has AVX-512 and is not Intel's, and torch has both libraries."""
    functions = ("_linear_pointwise", "_reorder_linear_weight")
    both = torch.backends.mkl.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in functions)
    return both and torch.cpu._is_avx512_supported() and processor_field("vendor_id") not in ("", "GenuineIntel")
