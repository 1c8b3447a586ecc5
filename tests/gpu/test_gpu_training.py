"""Training runs on a GPU: precisions, loss scaling after an overflow, checkpointing, resuming."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, fail_at, final_weights, free_port, tiny, token_batch
from torch.amp import GradScaler

import train
from data.checked import read_json
from data.runs import Run
from data.seeds import random_state, set_random_state
from eval import main as evaluate

RESUMED = {"rtol": 1e-5, "atol": 1e-6}  # a sum of torch may have another order in the second run on a GPU
OVERFLOW = 2.0**40  # a scale of the loss at which gradients in fp16 are infinite


def arguments(small_run: list[str], device: torch.device, precision: str, *more: str) -> list[str]:
    """Returns the arguments of the small run on a device."""
    fewer = ["--validation-reviews", "20", "--test-reviews", "20"]
    return [*small_run, *fewer, "--device", device.type, "--precision", precision, *more]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_in_each_precision(precision: str, device: torch.device, small_run: list[str], tmp_path: Path):
    train.main(arguments(small_run, device, precision))
    result = read_json(tmp_path / "runs/small/result.json")
    assert 0 < result["history"][-1]["val_loss"] < 1
    evaluate(["--run", "runs/small", "--device", device.type])


def test_fp16_halves_its_scale_after_an_overflow(
    device: torch.device, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Steps whose gradient is infinite are left out; the run ends with finite weights and a smaller scale."""
    monkeypatch.setattr(train, "GradScaler", lambda *a, **k: GradScaler(*a, init_scale=OVERFLOW, **k))
    train.main(arguments(small_run, device, "fp16", "--epochs", "4"))
    _, state = Run.open("runs/small").load_state()
    assert 1 < state["scaler"]["scale"] < OVERFLOW
    weights = final_weights(tmp_path / "runs/small")
    assert all(x.isfinite().all() for x in weights.values() if x.is_floating_point())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_goes_on_with_its_random_state(
    precision: str, device: torch.device, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that stops after five steps and goes on ends with the weights of one that never stopped."""
    given = arguments(small_run, device, precision)
    train.main([*given, "--name", "whole"])
    fail_at(6, monkeypatch)
    with pytest.raises(SystemExit):  # `fail_at` raises the error of a signal
        train.main([*given, "--name", "stopped"])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "runs/stopped"])
    whole, stopped = (final_weights(tmp_path / "runs" / name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, x in whole.items():
        torch.testing.assert_close(stopped[name], x, **RESUMED)


def test_one_rank_ends_with_the_weights_of_a_run_without_ranks(
    device: torch.device, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a GPU the rank's group is NCCL's."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in (variables | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    given = arguments(small_run, device, "fp32")
    command = [sys.executable, str(ROOT / "train.py"), *given, "--name", "rank"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in variables:
        monkeypatch.delenv(name)
    train.main([*given, "--name", "alone"])
    rank, alone = (final_weights(tmp_path / "runs" / name) for name in ("rank", "alone"))
    assert rank.keys() == alone.keys()
    for name, x in alone.items():
        torch.testing.assert_close(rank[name], x, **RESUMED)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_checkpointing_draws_the_same_dropout_masks(name: str, device: torch.device):
    model = tiny(name).train().to(device)
    ids, mask = (x.to(device) for x in token_batch([7, 4]))
    state, found = random_state(device), []
    for model.checkpointing in (False, True):
        set_random_state(state, device)
        found.append(torch.autograd.grad(model(ids, mask).square().sum(), list(model.parameters())))
    for stored, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, stored, **RESUMED)


def test_the_random_state_is_restored(device: torch.device):
    state = random_state(device)
    first = torch.rand(9, device=device), torch.rand(9)
    set_random_state(state, device)
    assert all(torch.equal(x, y) for x, y in zip(first, (torch.rand(9, device=device), torch.rand(9)), strict=True))
