"""Gated recurrent units (Cho et al. 2014, arXiv 1406.1078, Eq. 5–8), stacked and bidirectional.

    r = σ(W_r x + U_r h₋ + b_r)      z = σ(W_z x + U_z h₋ + b_z)
    n = tanh(W_n x + b_n + r ⊙ (U_n h₋ + d_n))
    h = (1 - z) ⊙ n + z ⊙ h₋

h₋ is the state of the step before, 0 at the start. W x + b of all steps is one product; the loop over time and its
backward pass are in nn/recurrence.py. Padding never affects the states of real steps.

Differs from the paper: r is applied after U_n, not before it, and there are biases, as in torch.nn.GRU and cuDNN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.recurrence import check_width, fast_gru, join_directions, project_inputs, stack_directions
from nn.words import Pooling, WordClassifier, WordConfig


class GRULayer(Module):
    """Computes one layer in one or two directions.

    W -> weight [N, 3D, in], U -> recurrent [N, 3D, D], b -> bias [N, 3D], d_n -> recurrent_bias [N, D]; rows in the
    order r, z, n. Initialization: U orthogonal (Saxe et al. 2014), W as Glorot & Bengio 2010, biases 0.
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 1 + bidirectional
        self.weight = Parameter(torch.empty(directions, 3 * hidden_size, input_size))
        self.recurrent = Parameter(torch.empty(directions, 3 * hidden_size, hidden_size))
        self.bias = Parameter(torch.zeros(directions, 3 * hidden_size))
        self.recurrent_bias = Parameter(torch.zeros(directions, hidden_size))
        for n in range(directions):
            for gate in range(3):
                rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
                torch.nn.init.xavier_uniform_(self.weight.data[n, rows])
                torch.nn.init.orthogonal_(self.recurrent.data[n, rows])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T], padding on the right -> h [B, T, N·D], 0 at padding."""
        check_width(x, self.weight)
        x, padding = x.transpose(0, 1), ~mask.T  # [T, B, in], [T, B]
        a = project_inputs(x, weight=self.weight, bias=self.bias)  # [N, T·B, 3D]
        stacked = stack_directions(padding, len(a))  # [N, T, B]
        h = fast_gru(a, u=self.recurrent, d=self.recurrent_bias, padding=stacked)  # [N, T, B, D]
        return join_directions(h, padding)  # [B, T, N·D]


class GRU(Module):
    """Stacks GRU layers, with dropout between them. Raises ValueError for fewer than one layer."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers {num_layers} must be at least 1")
        widths = [input_size] + [hidden_size * (1 + bidirectional)] * (num_layers - 1)
        self.layers = ModuleList(
            GRULayer(input_size=width, hidden_size=hidden_size, bidirectional=bidirectional) for width in widths
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T] -> h of the last layer [B, T, N·D], 0 at padding."""
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, mask)
        return x


@dataclass(frozen=True, kw_only=True)
class GRUConfig(WordConfig):
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max+mean"  # last, mean, max, attention, or several: max+mean


class GRUClassifier(WordClassifier):
    """Classifies a review by its GRU states, pooled over time."""

    model_type, architecture = "gru", "GRUClassifier"
    Config = GRUConfig

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(config)
        c = config
        self.gru = GRU(
            input_size=c.embedding_size,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            bidirectional=c.bidirectional,
            dropout=c.dropout,
        )
        width = c.hidden_size * (1 + c.bidirectional)
        self.pooling = Pooling(c.pooling, width=width, bidirectional=c.bidirectional)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(self.pooling.width, len(c.labels))

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes the GRU states. x: [B, T, E];  mask: bool [B, T] -> [B, T, N·D]"""
        return self.gru(x, mask)
