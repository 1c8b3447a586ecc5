"""Sharded training: each of R ranks keeps 1/R of weights, gradients and moments (`--shard`).

ZeRO-3 (Rajbhandari et al. 2020, arXiv 1910.02054, §5.3) by torch's FSDP2, fully sharded data parallelism (Zhao et al.
2023, arXiv 2304.11277). Every parameter is cut along its first dimension. A unit is what is gathered at once: a layer,
or everything outside the layers.

    forward     all-gather a layer, compute, keep the own rows only
    backward    all-gather the layer again, compute, reduce-scatter:  g_r = rows of rank r in Σ_s g_s
    step        AdamW on the own rows

    bytes of a rank     n (w + g + m) / R + weights of one layer + weights and gradients of all outside the layers
    bytes it sends      3 (R - 1)/R n w in a pass: two all-gathers, one reduce-scatter (an all-reduce: 2 (R - 1)/R n g)

n: parameters;  w, g, m: bytes of a weight, its gradient, its moments. The parameters outside the layers, those of
embeddings and heads, stay gathered during the passes of a step, since objectives use them outside of a `forward`.
`compute` runs an objective as the forward pass of FSDP2's outermost unit. Quantized weights are sharded too. All ranks
must compute the same number of passes.

Differs from FSDP2's defaults: gradients are sums over ranks, not means, since a rank has a part of the loss
(data/ranks.py). Weights are exchanged in fp32; autocast casts them for products.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import Module, Parameter

from data.ranks import alone, is_first, size
from nn import Model
from nn.distributed import broadcast_model
from nn.encoder import Encoder
from nn.quant import Int8Embedding
from nn.quantized_linear import QuantizedLinear
from nn.runtime import bytes_of

Value = TypeVar("Value")


def place(model: Model, device: torch.device, sharded: bool) -> Model:
    """Moves a model to the device, whole or sharded, in place, and returns it. All ranks get the values of rank 0.

    A single process keeps the model whole.
    """
    if sharded and not alone():
        broadcast_model(model)
        return shard(model, device)
    broadcast_model(model.to(device))
    return model


def shard(model: Model, device: torch.device) -> Model:
    """Shards a model over all ranks and moves it to the device, layer by layer, in place. Returns the model.

    All ranks must have the same values.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method  # takes half a second

    mesh = init_device_mesh(device.type, (size(),))
    for module in model.modules():
        if isinstance(module, QuantizedLinear | Int8Embedding):  # FSDP2 shards parameters, not buffers
            weight = module.weight
            del module.weight
            module.weight = Parameter(weight, requires_grad=False)
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    root: Any = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    root.within = MethodType(within, model)
    register_fsdp_forward_method(root, "within")
    root.set_reshard_after_backward(False, recurse=False)  # an adversarial loss takes gradients within a pass
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has sums only
    return model


def layers(model: Module) -> list[Module]:
    """Returns the layers of an encoder, and of the generator of replaced-token detection."""
    return [layer for module in model.modules() if isinstance(module, Encoder) for layer in module.layers]


def is_sharded(model: Module) -> bool:
    """Returns whether `shard` was applied."""
    return hasattr(model, "within")


def within(model: Module, work: Callable[[], Value]) -> Value:
    """Returns work(). FSDP2 first gathers the parameters outside the layers, as for the model's `forward`."""
    return work()


def compute(function: Callable[..., Value], model: Model, *arguments: Any) -> Value:
    """Returns function(model, *arguments), a pass that may use every part of the model, sharded or not."""
    if not is_sharded(model):
        return function(model, *arguments)
    return model.within(lambda: function(model, *arguments))  # type: ignore[operator, union-attr]


def release(model: Module) -> None:
    """Frees what is whole outside the layers after a step's passes, or after scoring.

    Otherwise the next pass would use the values from before the optimizer step.
    """
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]


def describe_shards(model: Module) -> str:
    """Describes in one line what a rank keeps, and the largest unit, which is whole while it is computed."""
    units = [bytes_of(layer.parameters()) for layer in layers(model)]
    total, mib = bytes_of(model.parameters()), 2**20
    outside = (total - sum(units)) / mib
    line = f"shards: each of {size()} ranks keeps {total / size() / mib:,.0f} MiB of the weights; a pass gathers"
    return f"{line} {outside:,.0f} MiB outside the layers, and layer by layer at most {max(units) / mib:,.0f} MiB"


# ------------------------------------------------------------------------------------------------- saving, restoring


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor with the rows of all ranks, in the memory of the CPU. All ranks must call it."""
    found = tensor.detach()
    return found.full_tensor().cpu() if hasattr(found, "full_tensor") else found


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with the rows of all ranks on rank 0, and {} on the others. One tensor is gathered at a time.

    All ranks must call it.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = whole(tensor)
        if is_first():
            kept[name] = found
    return kept


def rows_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cuts a tensor as `like` is cut: returns this rank's rows if `like` is sharded, otherwise the tensor.

    All ranks must have the same tensor.
    """
    if not hasattr(like, "device_mesh") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = like.device_mesh
    rows = distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return rows.clone()  # not a view, which would keep the whole tensor


@contextmanager
def gathered(model: Module) -> Iterator[None]:
    """Gives rank 0 the whole parameters for the block, in the memory of the CPU; the others have their rows.

    One parameter is gathered at a time. All ranks must enter it. The block computes nothing with the model.
    """
    release(model)
    modules = list(model.modules()) if is_sharded(model) else []
    sharded = [(module, *named) for module in modules for named in module.named_parameters(recurse=False)]
    try:
        for module, leaf, parameter in sharded:
            found = whole(parameter)
            if is_first():
                module._parameters[leaf] = Parameter(found, requires_grad=parameter.requires_grad)
        yield
    finally:
        for module, leaf, parameter in sharded:
            module._parameters[leaf] = parameter
