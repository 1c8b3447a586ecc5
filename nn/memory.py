"""What a training step keeps in memory, by a count and by measurement.

    weights    bytes of all parameters and buffers
    gradients  bytes of the trained parameters
    optimizer  AdamW's two moments, fp32, of the trained parameters
    saved      what a forward pass keeps for the backward pass: c + (L - 1)·s + s₁, with checkpointing c + L·i + s

L layers; s: what one keeps; s₁: the last one, of which [CLS] alone is wanted; i: its input; c: what is kept below and
above them. With checkpointing a layer keeps its input alone and runs again in the backward pass, one at a time (Chen et
al. 2016, arXiv 1604.06174, §3).

Left out: what lives within a single operation, and the gradients of activations, one or two of a layer's at a time.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Account(NamedTuple):
    """Bytes of each kind."""

    weights: int
    gradients: int
    optimizer: int
    saved: int = 0

    @property
    def total(self) -> int:
        return sum(self)


def bytes_of(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def standing(model: Module) -> Account:
    """What a model needs before any example comes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = 2 * 4 * sum(p.numel() for p in trained)
    return Account(bytes_of([*model.parameters(), *model.buffers()]), bytes_of(trained), moments)


def describe(model: Module, average: bool = False) -> str:
    """A line: what stands in memory, and what 8-bit and frozen weights save of it. average: a running mean of the
    trained weights is kept beside them."""
    mib, now = 2**20, standing(model)
    small = sum(b.numel() for b in model.buffers() if b.dtype == torch.int8)
    frozen = small + sum(p.numel() for p in model.parameters() if not p.requires_grad)
    line = f"memory: weights {now.weights / mib:,.0f} MiB" + f" (8 bits save {3 * small / mib:,.0f})" * (small > 0)
    line += f", gradients and moments {(now.gradients + now.optimizer) / mib:,.0f} MiB"
    line += f" (frozen weights save {12 * frozen / mib:,.0f})" * (frozen > 0)
    return line + f", their average {now.gradients / mib:,.0f} MiB" * average


def saved_bytes(model: Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of forward(), each storage once, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    size = sum(storage.nbytes() for storage in kept.values())
    del result
    return size


def account(model: Module, input_ids: Tensor, mask: Tensor, autocast: Callable[[], Any], layers: int = 0) -> Account:
    """The account of a training step of an encoder on these inputs (int64 [B, T], bool [B, T]), from running its first
    layer alone, and once all that is not a layer. layers: count so many instead of the model's own."""
    here, layers = model.layers, layers or len(model.layers)
    seen: dict[str, Any] = {}
    handle = here[0].register_forward_pre_hook(lambda module, inputs: seen.setdefault("inputs", inputs))
    checkpointing, model.checkpointing = model.checkpointing, False
    try:
        model.layers = here[:1]
        with autocast():
            whole = saved_bytes(model, lambda: model(input_ids, mask))
        handle.remove()
        x, mask, prefix, queries, *context = seen["inputs"]
        x = x.detach().requires_grad_()
        with autocast():
            last = saved_bytes(model, lambda: here[0](x, mask, prefix, queries, *context))
            each = saved_bytes(model, lambda: here[0](x, mask, prefix, None, *context))
    finally:
        model.layers, model.checkpointing = here, checkpointing
    inside = layers * bytes_of([x]) + each if checkpointing else (layers - 1) * each + last
    return standing(model)._replace(saved=max(0, whole - last) + inside)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and are alive: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

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
