"""Adapters (Houlsby et al. 2019, arXiv 1902.00751, §2.1): a bottleneck with a residual after each sublayer.

    u = W x + b                                      the output of attention, or the second feed-forward layer; frozen
    y = u + W_up gelu(W_down u + b_down) + b_up      W_down: [M, D],  W_up: [D, M],  M = adapter_size

The sum with the residual and the norm of the sublayer follow, as in the paper. W_down ~ N(0, 0.01²) and W_up, b_down,
b_up = 0, so that training starts at the base model. Norms are trained too: a layer of BERT gains 2·(2·D·M + D + M)
parameters and trains its 4·D of norms, and the embedding norm has 2·D: L·(4·D·M + 6·D + 2·M) + 2·D parameters.

The activation between W_down and W_up is not linear, so an adapter cannot be merged. The file has peft_type
HOULSBY, which huggingface/peft does not have.

Differs from the paper: W_up starts at 0, not near 0; W_down is not truncated; the head is trained whole. Differs from
the published code: the dropout of the sublayer acts on y, not on u.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Parameter

from data.flags import option
from nn.encoder import Encoder
from nn.quantized_linear import QuantizedLinear
from peft.wrapped import Wrapped, linear_layers

AFTER = ("attention.output", "feed_forward.down")
INIT_STD = 0.01


@dataclass(frozen=True)
class HoulsbyOptions:
    adapter_size: int = option(64, "Houlsby adapters", "width M of the bottleneck")


class AdapterLinear(Wrapped):
    """Computes y = u + W_up gelu(W_down u + b_down) + b_up,  u = base(x).

    W_down -> down [M, D];  b_down -> down_bias [M];  W_up -> up [D, M];  b_up -> up_bias [D]. Raises ValueError for
    M < 1.
    """

    def __init__(self, base: Linear | QuantizedLinear, adapter_size: int) -> None:
        super().__init__(base)
        if adapter_size < 1:
            raise ValueError(f"adapter_size {adapter_size} must be at least 1")
        like, width = self.like(), base.out_features
        self.down = Parameter(like.new_empty(adapter_size, width).normal_(0.0, INIT_STD))
        self.down_bias = Parameter(like.new_zeros(adapter_size))
        self.up = Parameter(like.new_zeros(width, adapter_size))
        self.up_bias = Parameter(like.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., D]"""
        u = self.base(x)
        down, down_bias, up, up_bias = (p.to(u.dtype) for p in (self.down, self.down_bias, self.up, self.up_bias))
        return u + F.linear(F.gelu(F.linear(u, down, down_bias)), up, up_bias)


def apply(model: Encoder, options: HoulsbyOptions, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Wraps the last layers of both sublayers and makes the norms trainable, in place.

    init_ids has no effect. Returns the settings that the adapter's file records. Raises ValueError for a bottleneck
    that is not narrower than the model.
    """
    width = model.config.hidden_size
    if not 1 <= options.adapter_size < width:
        raise ValueError(f"--adapter-size {options.adapter_size} is outside 1 … {width - 1}: the width is {width}")
    for name in (name for name in linear_layers(model) if name.endswith(AFTER)):
        base: Any = model.get_submodule(name)
        model.set_submodule(name, AdapterLinear(base, options.adapter_size))
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, LayerNorm)]
    norms = [f"{name}.{leaf}" for name, module in modules for leaf, _ in module.named_parameters()]
    norms = [name for name in norms if name.split(".")[0] not in model.HEAD]
    for name in norms:
        model.get_parameter(name).requires_grad_(True)
    return {"adapter_size": options.adapter_size, "replaced": tuple(norms)}
