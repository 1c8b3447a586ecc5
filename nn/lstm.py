"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000), stacked and bidirectional.

    i = σ(W_i x + U_i h₋ + b_i)      f = σ(W_f x + U_f h₋ + b_f)
    g = tanh(W_g x + U_g h₋ + b_g)   o = σ(W_o x + U_o h₋ + b_o)
    c = f ⊙ c₋ + i ⊙ g               h = o ⊙ tanh(c)

h₋ and c₋ are the states of the step before, 0 at the start. W x + b of all steps is one product; the loop over time and
its backward pass are in nn/recurrence.py. In fp32 and bf16 on a CPU, oneDNN computes the layer (nn/onednn_lstm.py).
Padding never affects the states of real steps.

Differs from the papers: tanh in place of their scaled logistic functions; the exact gradient, which they truncate;
gates for each cell, not for a block of cells. As in torch.nn.LSTM, there are no peephole connections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from nn.dropout import Dropout
from nn.onednn_lstm import is_suitable, limit_primitives, onednn_lstm
from nn.recurrence import check_width, fast_lstm, join_directions, project_inputs, stack_directions
from nn.words import Pooling, WordClassifier, WordConfig


class LSTMLayer(Module):
    """Computes one layer in one or two directions.

    W -> weight [N, 4D, in], U -> recurrent [N, 4D, D], b -> bias [N, 4D]; rows in the order i, f, g, o.
    Initialization: U orthogonal (Saxe et al. 2014), b_f = 1 (Jozefowicz et al. 2015), W as Glorot & Bengio 2010.
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = True) -> None:
        super().__init__()
        directions = 1 + bidirectional
        self.weight = Parameter(torch.empty(directions, 4 * hidden_size, input_size))
        self.recurrent = Parameter(torch.empty(directions, 4 * hidden_size, hidden_size))
        self.bias = Parameter(torch.zeros(directions, 4 * hidden_size))
        for n in range(directions):
            for gate in range(4):
                rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
                torch.nn.init.xavier_uniform_(self.weight.data[n, rows])
                torch.nn.init.orthogonal_(self.recurrent.data[n, rows])
        self.bias.data[:, hidden_size : 2 * hidden_size] = 1.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T], padding on the right -> h [B, T, N·D], 0 at padding.

        Under autocast to bf16, h is bf16 if oneDNN computes it.
        """
        check_width(x, self.weight)
        x, padding = x.transpose(0, 1), ~mask.T  # [T, B, in], [T, B]
        if is_suitable(x, self.weight):
            return onednn_lstm(x, weight=self.weight, recurrent=self.recurrent, bias=self.bias, padding=padding)
        a = project_inputs(x, weight=self.weight, bias=self.bias)  # [N, T·B, 4D]
        h = fast_lstm(a, u=self.recurrent, padding=stack_directions(padding, len(a)))  # [N, T, B, D]
        return join_directions(h, padding)  # [B, T, N·D]


class LSTM(Module):
    """Stacks LSTM layers, with dropout between them. Raises ValueError for fewer than one layer."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers {num_layers} must be at least 1")
        limit_primitives()
        widths = [input_size] + [hidden_size * (1 + bidirectional)] * (num_layers - 1)
        self.layers = ModuleList(
            LSTMLayer(input_size=width, hidden_size=hidden_size, bidirectional=bidirectional) for width in widths
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, in];  mask: bool [B, T] -> h of the last layer [B, T, N·D] in the weights' dtype, 0 at padding."""
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if number else x, mask)
        return x.to(next(self.parameters()).dtype)


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(WordConfig):
    hidden_size: int = 128
    num_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max+mean"  # last, mean, max, attention, or several: max+mean


class LSTMClassifier(WordClassifier):
    """Classifies a review by its LSTM states, pooled over time."""

    model_type, architecture = "lstm", "LSTMClassifier"
    Config = LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        c = config
        self.lstm = LSTM(
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
        """Computes the LSTM states. x: [B, T, E];  mask: bool [B, T] -> [B, T, N·D]"""
        return self.lstm(x, mask)
