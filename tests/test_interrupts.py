"""Tests that runs which are stopped, killed or out of memory can be resumed and end in the same weights."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, fail_at, final_weights, same
from processes import Program, run_script
from torch import Tensor

import train
from data.checked import read_json
from eval import main as evaluate
from nn.bert import Bert

EXTRAS = [[], ["--accumulation", "2"], ["--checkpointing"], ["--precision", "bf16"], ["--average", "0.9"]]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_resumed_run_equals_an_uninterrupted_run(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
):
    train.main([*small_run, *extra, "--name", "whole"])
    with monkeypatch.context() as patch:
        fail_at(3, patch)
        with pytest.raises(SystemExit):
            train.main([*small_run, *extra, "--save-minutes", "0"])
    assert not (tmp_path / "runs/small/result.json").exists()
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))
    logs = [(tmp_path / "runs" / name / "log.jsonl").read_text().splitlines() for name in ("small", "whole")]
    accuracy = [[json.loads(line)["val_acc"] for line in lines] for lines in logs]
    assert accuracy[0] == accuracy[1]


def test_ctrl_c_saves_and_prints_the_command_to_resume(small_run: list[str], tmp_path: Path, one_thread: None):
    small_run += ["--epochs", "2", "--batch-size", "1", "--train-reviews", "40"]
    train.main([*small_run, "--name", "whole"])
    process = Program(run_script, str(ROOT / "train.py"), *small_run, folder=tmp_path)
    log = tmp_path / "runs/small/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped and saved; continue with: python train.py --resume" in out
    assert "Traceback" not in err
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


def test_a_run_that_is_killed_at_any_moment_can_be_resumed(small_run: list[str], tmp_path: Path, one_thread: None):
    """Kills one run eight times (tests/crash.py), at moments of every kind, saving included."""
    small_run += ["--save-minutes", "0"]
    train.main([*small_run, "--name", "whole"])
    arguments = ["1,2,5,8,4,11,7,12", "runs/small", *small_run]
    process = Program(run_script, str(ROOT / "tests/crash.py"), *arguments, folder=tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


def test_a_damaged_state_is_replaced_by_the_one_before_with_the_same_final_weights(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train.main([*small_run, "--name", "whole"])
    with monkeypatch.context() as patch:
        fail_at(8, patch)
        with pytest.raises(SystemExit):
            train.main([*small_run, "--save-minutes", "0"])
    state = tmp_path / "runs/small/state/state.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 16
    state.write_bytes(content)
    train.main(["--resume", "runs/small"])
    assert "does not have its checksum; trying the state before it" in capsys.readouterr().out
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer/tokenizer.json", "best/adapter_model.safetensors", "best/adapter_config.json"]
)
def test_a_changed_byte_of_a_run_is_noticed(small_run: list[str], tmp_path: Path, name: str):
    train.main([*small_run, "--epochs", "1"])
    path = tmp_path / "runs/small" / name
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} (changed since|is not valid JSON)"):
        evaluate(["--run", "runs/small", "--text", "good"])


def test_two_starts_at_once_make_one_run(small_run: list[str], tmp_path: Path):
    arguments = [str(ROOT / "train.py"), *small_run, "--epochs", "1"]
    processes = [Program(run_script, *arguments, folder=tmp_path) for _ in range(2)]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert sorted(code for *_, code in ends) == [0, 2]
    refused = next(err for _, err, code in ends if code == 2)
    assert "small is in use by process" in refused or "small exists" in refused
    assert len(refused.splitlines()) == 1


def test_a_long_step_is_left_between_two_passes(small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal within a step of several passes gives up the step; the resumed run repeats it with the same dropout."""
    long = [*small_run, "--accumulation", "5", "--dropout", "0.2"]
    train.main([*long, "--name", "whole"])
    forward, calls = Bert.forward, iter(range(1, 1000))

    def interrupted(self: Bert, input_ids: Tensor, mask: Tensor) -> Tensor:
        if self.training and next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, input_ids, mask)

    with monkeypatch.context() as patch:
        patch.setattr(Bert, "forward", interrupted)
        with pytest.raises(SystemExit) as stop:
            train.main(long)
    assert stop.value.code == 143
    assert next(calls) == 4
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "/tmp/x", "a\nb"])
def test_a_name_is_one_folder(small_run: list[str], name: str):
    with pytest.raises(ValueError, match="must be the name of one folder; --runs DIR names its parent"):
        train.main([*small_run[:-1], name])


def test_batches_by_tokens_train_and_resume(small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    at = small_run.index("--batch-size")
    arguments = [*small_run[:at], *small_run[at + 2 : -1], "tokens", "--tokens-per-batch", "2048"]
    with monkeypatch.context() as patch:
        fail_at(3, patch)
        with pytest.raises(SystemExit):
            train.main(arguments)
    train.main(["--resume", str(tmp_path / "runs/tokens")])
    assert len(read_json(tmp_path / "runs/tokens/result.json")["history"]) == 2


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a forward pass of more than four training reviews run out of memory."""
    forward = Bert.forward

    def limited(self: Bert, input_ids: Tensor, mask: Tensor) -> Tensor:
        if self.training and len(input_ids) > 4:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, input_ids, mask)

    monkeypatch.setattr(Bert, "forward", limited)


def test_out_of_memory_splits_the_passes_and_continues(
    small_run: list[str], small_memory: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train.main([*small_run, "--epochs", "1", "--out-of-memory", "halve"])
    assert "each forward pass is split into 4" in capsys.readouterr().out
    assert read_json(tmp_path / "runs/small/result.json")["test"]["count"] == 600


def test_out_of_memory_can_stop_the_run(small_run: list[str], small_memory: None):
    with pytest.raises(torch.OutOfMemoryError):
        train.main([*small_run, "--epochs", "1", "--out-of-memory", "stop"])
