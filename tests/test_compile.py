"""Tests that torch.compile computes what the code computes without it."""

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from nn.dropout import Dropout
from nn.gru import GRU
from nn.lstm import LSTM

B, T, IN, D = 3, 5, 7, 2
MASK = torch.arange(T) < torch.tensor([5, 3, 1])[:, None]


@pytest.fixture(autouse=True)
def _new_compiler():
    torch.compiler.reset()


def result(layer: Module, compiled: Module, x: Tensor) -> tuple[Tensor, ...]:
    """Returns the output of a compiled layer and the gradients of its sum of squares."""
    y = compiled(x, MASK)
    return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_recurrence_equals_the_uncompiled_one_with_gradients(kind: type[Module]):
    torch.manual_seed(0)
    layer, x = kind(IN, D).double(), torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    compiled: Module = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(result(layer, compiled, x), result(layer, layer, x))
    with torch.no_grad():  # a graph of its own
        torch.testing.assert_close(compiled(x, MASK), layer(x, MASK))


def test_dropout_draws_another_mask_in_each_call():
    torch.manual_seed(0)
    p, x = 0.25, torch.ones(40_009)
    compiled = torch.compile(Dropout(p).train(), backend="aot_eager")
    first, second = compiled(x), compiled(x)
    assert first.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    assert abs((first == 0).float().mean().item() - p) < 4 * (p * (1 - p) / len(x)) ** 0.5
    assert not torch.equal(first, second)
