import json
from pathlib import Path

import pytest
import torch

from data.meter import Meter
from data.runs import Run


def test_loading_a_state_truncates_the_log(tmp_path: Path):
    run = Run.create(tmp_path / "r", {"options": {}})
    run.log("step", step=1)
    run.save_state({"x": torch.arange(3.0)}, {"step": 1, "sums": {"loss": 0.1 + 0.2}})
    run.log("step", step=2)
    with run.log_file.open("a") as file:
        file.write('{"event": "st')  # killed in the middle of a line
    tensors, progress = Run.open(tmp_path / "r").load_state()
    assert torch.equal(tensors["x"], torch.arange(3.0))
    assert progress["sums"]["loss"] == 0.1 + 0.2
    assert [json.loads(line)["step"] for line in run.log_file.read_text().splitlines()] == [1]


def test_without_a_saved_state_the_log_is_emptied(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.log("step", step=1)
    assert run.load_state() is None
    assert run.log_file.read_text() == ""


def test_the_error_of_a_damaged_state_names_the_file(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    run.save_state({"x": torch.zeros(100)}, {})
    run.state_file.write_bytes(run.state_file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"state\.safetensors is cut short or damaged"):
        run.load_state()


def test_meter_resumes_from_its_sums():
    sums = {"loss": 3.0, "right acc": 4, "of acc": 5, "count": 5, "tokens": 60, "seconds": 2.0}
    meter = Meter(sums, seconds=100.0, save_minutes=0.0)
    assert meter.record() == {"train_loss": 3 / 5, "train_acc": 4 / 5, "tokens_per_second": 30}
    assert meter.total() >= 100
    assert meter.save_is_due()
    assert not Meter(None, seconds=0.0, save_minutes=10.0).save_is_due()
