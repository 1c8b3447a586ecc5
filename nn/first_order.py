"""Refuses second derivatives through the backward pass of an autograd.Function, which autograd does not record."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `backward` raise RuntimeError if its result is to be differentiated again (create_graph=True).

    Differs from `torch.autograd.function.once_differentiable`, which raises only if the second pass reaches the inputs
    of `backward`: `torch.autograd.grad(penalty, parameters)` does not, and omits these terms without an error.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            function = backward.__qualname__.partition(".")[0]
            raise RuntimeError(f"{function} has no second derivatives; compute this gradient without create_graph")
        return backward(ctx, *gradients)

    return checked
