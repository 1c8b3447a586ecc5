"""The base class of methods that wrap linear layers, and the names of their parameters in adapter files."""

from typing import Any

from torch import Tensor
from torch.nn import Linear, Module

from nn import Model
from nn.quantized_linear import QuantizedLinear

# the parameters of wrapped layers -> their names in adapter files, those of huggingface/peft where it has the method
LEAVES = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
    "l": "ia3_l",
    "down": "houlsby_down.weight",
    "down_bias": "houlsby_down.bias",
    "up": "houlsby_up.weight",
    "up_bias": "houlsby_up.bias",
}


def linear_layers(model: Module) -> list[str]:
    """Returns the names of all linear layers, as they are without an adapter."""
    found = [name for name, module in model.named_modules() if isinstance(module, Linear | QuantizedLinear)]
    return [name.removesuffix(".base") for name in found]


class Wrapped(Module):
    """Takes the place of a frozen linear layer, base, and computes a function of its input and its output."""

    def __init__(self, base: Linear | QuantizedLinear) -> None:
        super().__init__()
        self.base: Any = base

    def like(self) -> Tensor:
        """Returns a floating-point tensor of the base layer, on its device, for `new_zeros` and the like."""
        return self.base.scale if isinstance(self.base, QuantizedLinear) else self.base.weight

    def merged(self) -> Linear:
        """Changes the base layer, in place, into a plain layer with the same output, and returns it."""
        raise NotImplementedError

    def unmerge(self) -> None:
        """Restores the base layer from before `merged`."""
        raise NotImplementedError


def wrapped(model: Module) -> list[tuple[str, Any]]:
    """Returns the names and modules of the wrapped layers."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Wrapped)]


def added_modules(model: Model) -> list[Module]:
    """Returns the modules that a method has added: those of each wrapped layer except its base, and virtual tokens."""
    added = [child for _, layer in wrapped(model) for name, child in layer.named_children() if name != "base"]
    return added if model.virtual is None else [*added, model.virtual]


def merge(model: Module) -> None:
    """Replaces every wrapped layer with its merged plain layer, in place."""
    for name, module in wrapped(model):
        model.set_submodule(name, module.merged())
