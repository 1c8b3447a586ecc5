"""IA³ (Liu et al. 2022, arXiv 2205.05638, §3.3): keys, values and the inner activations are scaled by trained vectors.

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V)            keys and values:    y = l ⊙ (W x + b),    l: [out, 1]
    W₂ (l_ff ⊙ act(W₁ x + b₁)) + b₂                   second FFN layer:   y = W (l ⊙ x) + b,    l: [1, in]

W and b are frozen. l = 1, so that training starts at the base model. A layer of the encoder has a vector for its keys,
its values and its inner activations: L·(2·D + F) parameters. Merged, the first kind has the weight l ⊙ W and the bias
l ⊙ b, the second W with column j times l_j. `unmerge` restores copies of both, because l may be 0.

Differs from the paper: the head is trained whole. DeBERTa's key layer also projects the relative positions, and they
are scaled too. ModernBERT has queries, keys and values in one layer, which is scaled whole: L·(3·D + F) parameters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from nn.encoder import Encoder
from nn.quantized_linear import QuantizedLinear
from peft.wrapped import Wrapped, linear_layers

SCALED_OUTPUTS = ("attention.key", "attention.value", "attention.query_key_value")
SCALED_INPUTS = ("feed_forward.down",)


class IA3Linear(Wrapped):
    """Computes y = l ⊙ base(x), or base(l ⊙ x) with scales_input."""

    def __init__(self, base: Linear | QuantizedLinear, scales_input: bool) -> None:
        super().__init__(base)
        self.scales_input = scales_input
        shape = (1, base.in_features) if scales_input else (base.out_features, 1)
        self.l = Parameter(self.like().new_ones(shape))

    def scaled(self, x: Tensor) -> Tensor:
        """Computes l ⊙ x in the dtype of l, so that bf16 rounds the product and not l. Returns the dtype of x."""
        return (x * self.l.flatten()).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return self.base(self.scaled(x)) if self.scales_input else self.scaled(self.base(x))

    @torch.no_grad()
    def merged(self) -> Linear:
        """Scales the base layer's weight, and its bias if l scales the output, in place. Returns the base layer.

        Raises ValueError for a quantized base.
        """
        if isinstance(self.base, QuantizedLinear):
            raise ValueError(
                f"IA³ cannot be merged into {self.base.BITS}-bit weights; merge it into the backbone in floating point "
                "(--base names another backbone)"
            )
        self.before = [p.clone() for p in self.base.parameters()]
        self.base.weight *= self.l
        if self.base.bias is not None and not self.scales_input:
            self.base.bias *= self.l.flatten()
        return self.base

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the weight and the bias of the base layer, in place."""
        for parameter, value in zip(self.base.parameters(), self.before, strict=True):
            parameter.copy_(value)
        del self.before


def apply(model: Encoder, options: Any, init_ids: list[int] | None = None) -> dict[str, Any]:
    """Wraps the layers of keys, values and the second layers of feed-forward blocks, in place.

    options and init_ids have no effect. Returns the settings that the adapter's file records.
    """
    names = linear_layers(model)
    inputs = [name for name in names if name.endswith(SCALED_INPUTS)]
    return wrap(model, [name for name in names if name.endswith((*SCALED_OUTPUTS, *SCALED_INPUTS))], inputs)


def wrap(model: Encoder, names: list[str], inputs: list[str]) -> dict[str, Any]:
    """Wraps linear layers, in place. inputs: those of the names whose input is scaled. Returns the settings."""
    for name in names:
        base: Any = model.get_submodule(name)
        model.set_submodule(name, IA3Linear(base, scales_input=name in inputs))
    return {"names": list(names), "inputs": list(inputs)}
