"""The base class of frozen linear layers with weights in few bits (nn/quant.py: 8 bits, nn/nf4.py: 4 bits)."""

from torch import Tensor
from torch.nn import Module, Parameter

from nn.autocast import product_dtype


class QuantizedLinear(Module):
    """Computes y = x Wᵀ + b. Subclasses store W as buffers, one of which is `scale`, in floating point."""

    weight: Tensor
    scale: Tensor
    bias: Parameter | None
    BITS: int  # of a weight

    def __init__(self, out_features: int, in_features: int, bias: Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.register_parameter("bias", bias)

    def dequantized(self) -> Tensor:
        """Returns W, fp32 [out, in]."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """Computes x Wᵀ in a precision of the subclass's choice: [M, in] -> [M, out]"""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of torch's Linear"""
        y = self.product(x.reshape(-1, x.size(-1)))
        y = y if self.bias is None else y.add_(self.bias.to(y.dtype))
        return y.to(product_dtype(x)).view(*x.shape[:-1], y.size(-1))
