"""Tests that second derivatives through a hand-written backward pass are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module

from nn.block_attention import block_attention
from nn.dropout import Dropout
from nn.lstm import LSTMLayer
from nn.onednn_lstm import onednn_lstm
from nn.recurrence import fast_gru, fast_lstm
from peft.lora import LoRALinear


class Attention(Module):
    """Holds k and v of `block_attention` as parameters; its input is q."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = (torch.nn.Parameter(torch.randn(2, 3, 5, 7)) for _ in range(2))

    def forward(self, q: Tensor) -> Tensor:
        return block_attention(q, self.k, self.v, torch.ones(2, 1, 1, 5, dtype=torch.bool), Dropout(0.0))


def lora() -> Module:
    layer = LoRALinear(Linear(5, 3), rank=2, alpha=4.0)
    layer.B.data.normal_()
    return layer


class Recurrence(Module):
    """Holds U of a fast recurrence as a parameter; its input is a."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.gates, self.u = gates, torch.nn.Parameter(torch.randn(1, 5 * gates, 5))

    def forward(self, a: Tensor) -> Tensor:
        a, padding = a * 1, torch.zeros(1, 3, 2, dtype=torch.bool)  # a copy, since `a` is overwritten
        return fast_lstm(a, self.u, padding) if self.gates == 4 else fast_gru(a, self.u, torch.zeros(1, 5), padding)


class OneDNN(Module):
    """Computes the states of one direction of an LSTM layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = LSTMLayer(width, width, bidirectional=False)

    def forward(self, x: Tensor) -> Tensor:
        layer, padding = self.layer, torch.zeros(3, 2, dtype=torch.bool)
        return onednn_lstm(x, layer.weight, layer.recurrent, layer.bias, padding)


FUNCTIONS: dict[str, tuple[Callable[[], Module], tuple[int, ...]]] = {
    "LowRank": (lora, (4, 5)),
    "BlockAttention": (Attention, (2, 3, 4, 7)),
    "LSTMFunction": (lambda: Recurrence(4), (1, 3 * 2, 4 * 5)),
    "GRUFunction": (lambda: Recurrence(3), (1, 3 * 2, 3 * 5)),
}


if torch.backends.mkldnn.is_available():
    FUNCTIONS["OneDNNLSTM"] = (lambda: OneDNN(5), (3, 2, 5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_refused(name: str):
    """A penalty on a gradient would otherwise lack terms, without an error."""
    build, shape = FUNCTIONS[name]
    x = torch.randn(shape, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivatives"):
        torch.autograd.grad(build()(x).square().sum(), x, create_graph=True)


def test_first_derivatives_are_computed():
    for build, shape in FUNCTIONS.values():
        x = torch.randn(shape, requires_grad=True)
        (gradient,) = torch.autograd.grad(build()(x).square().sum(), x)
        assert gradient.abs().sum() > 0
