"""Accounts for the memory of a training step, by counting and by measurement.

    weights    bytes of all parameters and buffers
    gradients  bytes of the trained parameters
    optimizer  AdamW's two moments, fp32, of the trained parameters
    saved      activations saved for the backward pass: c + (L - 1)·s + s₁, with checkpointing c + L·i + s

L layers; s: saved by one layer; s₁: by the last one, which computes [CLS] only; i: the input of a layer; c: saved below
and above the layers. With checkpointing each layer saves its input only and is recomputed in the backward pass, one
layer at a time (Chen et al. 2016, arXiv 1604.06174, §4).

Not counted: tensors that exist within a single operation, and the gradients of activations, one or two of a layer at a
time.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nn.encoder import Encoder
from nn.runtime import bytes_of, static_memory


class Account(NamedTuple):
    """Bytes of each kind."""

    weights: int
    gradients: int
    optimizer: int
    saved: int

    @property
    def total(self) -> int:
        return sum(self)


def resident_bytes(model: Module) -> int:
    """Returns the size of all parameters and buffers, in bytes."""
    return bytes_of([*model.parameters(), *model.buffers()])


def saved_bytes(model: Module, forward: Callable[[], Any]) -> int:
    """Measures the bytes that autograd saves of forward(), each storage once, without the model's parameters."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # referenced, so that its address is not reused
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    size = sum(storage.nbytes() for storage in kept.values())
    del result
    return size


def account(model: Encoder, input_ids: Tensor, mask: Tensor, autocast: Callable[[], Any], layers: int = 0) -> Account:
    """Accounts for a training step of an encoder on input_ids int64 [B, T] and mask bool [B, T].

    Measures the first layer, and once everything that is not a layer. layers: number of layers to account for; 0: the
    model's own.
    """
    stack, layers = model.layers, layers or len(model.layers)
    seen: dict[str, Any] = {}

    def keep(module: Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["args"], seen["kwargs"] = args, kwargs

    handle = stack[0].register_forward_pre_hook(keep, with_kwargs=True)
    checkpointing, model.checkpointing = model.checkpointing, False
    try:
        model.layers = stack[:1]
        with autocast():
            whole = saved_bytes(model, lambda: model(input_ids, mask))
        handle.remove()
        (x, *args), kwargs = seen["args"], seen["kwargs"]
        x = x.detach().requires_grad_()
        with autocast():
            last = saved_bytes(model, lambda: stack[0](x, *args, **kwargs))
            each = saved_bytes(model, lambda: stack[0](x, *args, **kwargs | {"queries": None}))
    finally:
        model.layers, model.checkpointing = stack, checkpointing
    inside = layers * bytes_of([x]) + each if checkpointing else (layers - 1) * each + last
    return Account(*static_memory(model), saved=max(0, whole - last) + inside)


class Live(TorchDispatchMode):
    """Counts the bytes of live tensors created within it: `now`, and their maximum, `peak`.

    Those made from numpy's arrays, such as dropout masks, are counted too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __enter__(self) -> "Live":
        self.patch = mock.patch.object(torch, "from_numpy", self.from_numpy)
        self.patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.stop()

    def from_numpy(self, array: np.ndarray, convert: Callable[[np.ndarray], Tensor] = torch.from_numpy) -> Tensor:
        tensor = convert(array)
        self.add(tensor.untyped_storage())
        return tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.seen:
                    self.add(storage)
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size
