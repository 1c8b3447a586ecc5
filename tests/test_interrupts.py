"""Runs that are stopped, killed or out of memory, and go on."""

import json
import signal
import time

import pytest
import torch
from conftest import fail_at, final_weights, program, same

import train
from nn.bert import Bert
from nn.files import read_json

EXTRAS = [[], ["--accumulation", "2"], ["--checkpointing"], ["--precision", "bf16"], ["--average", "0.9"]]


@pytest.mark.parametrize("extra", EXTRAS)
def test_ten_steps_equal_five_and_a_resumed_five(small_run, tmp_path, monkeypatch, extra):
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


def test_ctrl_c_saves_and_says_how_to_go_on(small_run, tmp_path, one_thread):
    small_run += ["--epochs", "3", "--batch-size", "1"]
    train.main([*small_run, "--name", "whole"])
    process = program(*small_run, cwd=tmp_path)
    log = tmp_path / "runs/small/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped and saved; go on with: python train.py --resume" in out
    assert "Traceback" not in err
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_weights(small_run, tmp_path, one_thread):
    """One run dies twelve times, at moments of every kind (tests/crash.py), saving included, and goes on."""
    small_run += ["--save-minutes", "0"]
    train.main([*small_run, "--name", "whole"])
    process = program("1,2,3,5,8,4,9,6,11,7,10,12", "runs/small", *small_run, script="tests/crash.py", cwd=tmp_path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    train.main(["--resume", "runs/small"])
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


def test_batches_by_tokens_train_and_resume(small_run, tmp_path, monkeypatch):
    arguments = [*small_run[:-1], "tokens", "--tokens-per-batch", "2048"]
    with monkeypatch.context() as patch:
        fail_at(3, patch)
        with pytest.raises(SystemExit):
            train.main(arguments)
    train.main(["--resume", str(tmp_path / "runs/tokens")])
    assert len(read_json(tmp_path / "runs/tokens/result.json")["history"]) == 2


@pytest.mark.parametrize("way", ["halve", "stop"])
def test_out_of_memory(way, small_run, tmp_path, monkeypatch, capsys):
    """A pass of more than four reviews fails: with `halve` the run goes on in pieces, to the same gradient."""
    forward = Bert.forward

    def small_memory(self, input_ids, mask):
        if self.training and len(input_ids) > 4:
            raise torch.OutOfMemoryError("pretended")
        return forward(self, input_ids, mask)

    monkeypatch.setattr(Bert, "forward", small_memory)
    arguments = [*small_run, "--epochs", "1", "--out-of-memory", way]
    if way == "stop":
        with pytest.raises(torch.OutOfMemoryError):
            train.main(arguments)
        return
    train.main(arguments)
    assert "cut into 4 pieces" in capsys.readouterr().out
    assert read_json(tmp_path / "runs/small/result.json")["test"]["count"] == 600
