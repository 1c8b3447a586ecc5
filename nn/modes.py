"""Puts models into eval() mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Module


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Puts a model into eval() mode for the block, and restores the mode of each module, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
