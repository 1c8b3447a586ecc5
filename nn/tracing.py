"""Tells whether torch records or transforms the operations of a call: torch.export, torch.jit.trace, torch.func.

Fast code looks at the values of a batch, such as whether its mask hides a token. A trace would keep what its example
showed, and for other inputs the numbers would be wrong. Traced calls therefore take the plain way, which is the same
for all values. torch.compile checks its assumptions in each call, so it is no trace.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")


def is_transformed() -> bool:
    """Returns whether a transform of torch.func is active: vmap, grad, jacrev. No autograd.Function here has one."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def is_traced() -> bool:
    """Returns whether the operations of this call are computed again for other inputs, or are transformed."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed()


def cached(function: Callable[..., Value]) -> Callable[..., Value]:
    """Keeps the last 128 results of a function, except those of a trace: they are tensors without numbers."""
    kept = functools.lru_cache(maxsize=128)(function)

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Value:
        is_fake = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        return function(*arguments, **named) if is_fake or is_traced() else kept(*arguments, **named)

    run.cache_clear, run.cache_info = kept.cache_clear, kept.cache_info  # type: ignore[attr-defined]
    return run
