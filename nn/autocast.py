"""Chooses the dtype of sums and of matrix products.

torch.autocast does not cast the inputs of an autograd.Function, so a Function casts them to `product_dtype`.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums: fp32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def at_least_fp32(x: Tensor) -> Tensor:
    """Returns x in fp32, or unchanged if it has fp32 or float64."""
    return x.to(wide(x.dtype))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Returns a context without autocast on the device of x. The device `meta` has no autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a torch Linear multiplies x: that of autocast, which leaves float64 as it is, or of
    x."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):  # `meta` has none
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
