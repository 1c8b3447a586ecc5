"""The dtype of matrix products under torch.autocast, for an autograd.Function, whose inputs autocast does not cast."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a torch Linear multiplies x: that of autocast, or else of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
