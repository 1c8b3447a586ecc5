"""Tests what is done on CUDA and MPS as far as a CPU can show it; tests/gpu computes on a GPU."""

import shutil
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import reviews_for
from torch import Tensor

import data.ranks
from data.errors import out_of_memory
from data.seeds import random_state, set_random_state
from nn import runtime
from nn.quant import Int8Linear
from nn.runtime import Machine, check_checkpointing, choose_machine
from nn.training import attempt
from nn.triton_compiler import can_compile_kernels

MPS = torch.device("mps")


def test_only_pinned_memory_is_copied_without_waiting(monkeypatch: pytest.MonkeyPatch):
    """Other memory may be freed before an MPS device has read it."""
    waits = []
    monkeypatch.setattr(Tensor, "to", lambda x, device, non_blocking=False: waits.append(not non_blocking) or x)
    reviews_for("ce").to(MPS)
    assert waits == [True] * len(waits)
    assert waits


def test_a_numbered_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch):
    current: list[torch.device] = []
    monkeypatch.setattr(runtime, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    choose_machine("cuda:1", "fp32")
    choose_machine("cuda", "fp32")
    assert current == [torch.device("cuda:1")]


def test_the_random_state_of_mps_is_saved_and_restored(monkeypatch: pytest.MonkeyPatch):
    states = [torch.tensor([7])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    saved = random_state(MPS)
    states.append(torch.tensor([8]))
    set_random_state(saved, MPS)
    assert [state.item() for state in states] == [7, 8, 7]


def test_checkpointing_on_mps_is_refused():
    with pytest.raises(ValueError, match="cannot repeat the dropout masks of MPS; start a run without it"):
        check_checkpointing(True, Machine(MPS, torch.float32))
    check_checkpointing(False, Machine(MPS, torch.float32))
    check_checkpointing(True, Machine(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("x.csv: out of memory is what it is about"), False),
    ],
    ids=str,
)
def test_failed_allocations_are_recognised(error: BaseException, expected: bool):
    assert out_of_memory(error) == expected


def test_a_failed_pass_is_freed_before_ranks_exchange():
    kept: list[weakref.ref] = []
    alive: list[bool] = []

    def work() -> Any:
        large = torch.zeros(10, requires_grad=True) * 2
        kept.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    t: Any = SimpleNamespace(
        settings=SimpleNamespace(options=SimpleNamespace(out_of_memory="halve", epochs=1)),
        progress=SimpleNamespace(num_splits=1, epoch=0, step=0),
        machine=SimpleNamespace(device=torch.device("cpu")),
        entry=SimpleNamespace(additive=True, pretraining=False),
        gradient_sum=SimpleNamespace(finish=lambda: alive.append(kept[0]() is not None)),
        model=SimpleNamespace(),
        optimizer=SimpleNamespace(zero_grad=lambda **_: None),
        before={},
    )
    batches: Any = [SimpleNamespace(labels=[0, 1])]
    assert attempt(t, batches, work) is None
    assert alive == [False]


def test_without_a_compiler_no_kernel_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    can_compile_kernels.cache_clear()
    assert not can_compile_kernels()
    can_compile_kernels.cache_clear()
    assert "note: Triton needs a C compiler" in capsys.readouterr().out


def test_8_bit_products_on_mps_are_in_half_precision(monkeypatch: pytest.MonkeyPatch):
    """torch has int8 products on CPUs and CUDA only."""
    layer: Any = Int8Linear.from_linear(torch.nn.Linear(8, 8))
    x: Any = SimpleNamespace(device=MPS, dtype=torch.float32, shape=torch.Size([40, 8]), requires_grad=False)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    assert layer.chosen_path(x) == "bf16"
    x.device = torch.device("cuda")
    assert layer.chosen_path(x) == "int8"


def test_ranks_do_not_share_mps(monkeypatch: pytest.MonkeyPatch):
    for name, value in zip(data.ranks.TORCHRUN, ("0", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for device in ("mps", "mps:0", "auto"):
        with pytest.raises(ValueError, match="MPS cannot be shared by ranks"), data.ranks.joined(device):
            pass
