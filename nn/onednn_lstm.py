"""Computes a layer of an LSTM with oneDNN, the library that torch.nn.LSTM uses on a CPU.

A call computes all steps of a direction or their gradients, where the loops of nn/recurrence.py call several operations
in each step. The results are those of `plain_lstm` (nn/recurrence.py) up to rounding. Under autocast to bf16, the
outputs h, the weights and the gradients are rounded; c and the gates stay in fp32.

Padding is on the right, and the second direction starts on it. For its state to stay 0 there, its input gate i is
forced to 0: x has one more element, which is 1 at padding, and -SATURATED is its weight in W_i. |W_i x + b_i| must be
far below SATURATED.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from nn.autocast import product_dtype
from nn.first_order import first_order
from nn.recurrence import SATURATED
from nn.tracing import is_traced, is_transformed

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
MODE = 2  # of oneDNN's functions: LSTM


def limit_primitives() -> None:
    """Limits the primitives that oneDNN keeps in this process to 128, if it has none yet. Its default is 1,024.

    In each layer, each shape of a batch has four primitives of its own, which take memory.
    """
    os.environ.setdefault(CAPACITY, "128")


def is_suitable(x: Tensor, weight: Tensor) -> bool:
    """Returns whether oneDNN computes the layer: on a CPU, in fp32, or in bf16 if the processor multiplies it.

    x: [T, B, in];  weight: W, [N, 4D, in]
    """
    if torch.compiler.is_compiling() or is_transformed():
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    plain = all(type(t) in (Tensor, Parameter) and t.device.type == "cpu" for t in (x, weight))
    if not plain or weight.dtype != torch.float32 or not x.numel():
        return False
    dtype = product_dtype(weight)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_lstm(x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
    """Computes a layer in one or two directions. The dtype of the products is that of autocast, or else of weight.

    x: [T, B, in];  weight: W, [N, 4D, in];  recurrent: U, [N, 4D, D];  bias: b, [N, 4D];  padding: bool [T, B]
    -> h [B, T, N·D] in the dtype of the products, 0 at padding
    """
    dtype, padded = product_dtype(weight), is_traced() or bool(padding.any())
    with torch.autocast("cpu", enabled=False):
        if len(weight) > 1 and padded:
            x, weight = mark_padding(x, weight, padding)
        x = x.to(dtype).contiguous()
        parameters = zip(*(p.to(dtype).unbind() for p in (weight, recurrent, bias)), strict=True)
        train = torch.is_grad_enabled()  # no longer known within an autograd.Function
        states = [OneDNNLSTM.apply(x, w, u, b, n == 1, train) for n, (w, u, b) in enumerate(parameters)]  # [T, B, D]
        h = torch.cat(states, -1)
    return (h.masked_fill(padding[..., None], 0) if padded else h).transpose(0, 1)


def mark_padding(x: Tensor, weight: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Appends to x an element that is 1 at padding, and to W its weights, which close the input gate.

    x: [T, B, in];  weight: W, [N, 4D, in];  padding: bool [T, B] -> [T, B, in + 1], [N, 4D, in + 1]
    """
    column = weight.new_zeros(*weight.shape[:2], 1)
    column[:, : weight.size(1) // 4] = -SATURATED
    return torch.cat([x, padding[..., None].to(x.dtype)], -1), torch.cat([weight, column], -1)


class OneDNNLSTM(Function):
    """Computes the states of one direction. All tensors have one dtype, fp32 or bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, u: Tensor, b: Tensor, reverse: bool, train: bool) -> Tensor:
        """Returns h [T, B, D]. x: [T, B, in];  w: [4D, in];  u: [4D, D];  b: [4D]

        reverse: whether x is read from its last step;  train: whether gradients may be needed
        """
        width = u.size(-1)
        zeros = x.new_zeros(1, x.size(1), width)  # the initial h and c
        inputs = [x, w, u, b, torch.zeros_like(b), zeros, zeros]  # two biases, as in torch.nn.LSTM
        # batch_sizes, mode, hidden_size, num_layers, has_biases, bidirectional, batch_first, train
        options: list[Any] = [reverse, [], MODE, width, 1, True, False, False, train]
        detached: list[Any] = [t.detach() for t in inputs]
        with torch.set_grad_enabled(train):  # otherwise there is no buffer for the backward pass
            h, *others = torch.mkldnn_rnn_layer(*detached, *options)
        if train:
            ctx.save_for_backward(*inputs, h, *others)  # the last h and c, and that buffer
            ctx.reverse = reverse
        return h

    @staticmethod
    @first_order
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """dh: [T, B, D] -> ∂L/∂x, ∂L/∂W, ∂L/∂U, ∂L/∂b of the direction"""
        *saved, buffer = ctx.saved_tensors
        gradients = (dh.contiguous(), None, None)  # of h, of the last h and of the last c
        # mode, hidden_size, num_layers, has_biases, train, bidirectional, batch_sizes, batch_first
        options: list[Any] = [ctx.reverse, MODE, dh.size(-1), 1, True, True, False, [], False]
        dx, dw, du, db, *_ = torch.ops.aten.mkldnn_rnn_layer_backward(*saved, *gradients, *options, buffer)
        return dx, dw, du, db, None, None
