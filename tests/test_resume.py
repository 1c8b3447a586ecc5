"""Tests what a resumed run continues from, and what ends a run that diverged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import fail_at, final_weights, same
from safetensors.torch import load_file

import train
from data.checked import read_json
from data.checksums import SUMS, seal
from data.errors import Diverged
from data.files import write_json, write_text
from data.resolve import resolve
from data.runs import Run
from data.tables import epochs
from eval import main as evaluate
from nn.runtime import machine_of
from train import TABLES


@pytest.fixture
def stopped(small_run: list[str], tmp_path: Path) -> Run:
    """A run of two epochs that was stopped in the second."""
    with pytest.MonkeyPatch.context() as patch:
        fail_at(8, patch)
        with pytest.raises(SystemExit):
            train.main([*small_run, "--save-minutes", "0"])
    return Run.open(tmp_path / "runs/small")


@pytest.mark.parametrize("loss", ["ce", "mlm"])
def test_a_model_that_computes_nan_never_becomes_the_best(small_run: list[str], tmp_path: Path, loss: str):
    small_run[small_run.index("lora")] = "none"
    rate = ["--learning-rate", "1e30", "--warmup", "0", "--schedule", "constant", "--batch-size", "100"]
    with pytest.raises(Diverged, match=r"not finite|held-out loss is nan"):
        train.main([*small_run, "--loss", loss, "--epochs", "1", *rate])
    assert not (tmp_path / "runs/small/best").exists()


def test_the_way_out_of_a_loss_that_is_not_finite(small_run: list[str], capsys: pytest.CaptureFixture[str]):
    """Before the first step no rate is the cause. A resumed run names the way out too."""
    small_run[small_run.index("lora")] = "none"
    for name, options, way_out in (
        ("loss", "--loss rdrop --rdrop-alpha 1e38", "other options of the loss"),
        ("rate", "--learning-rate 1e30 --warmup 0 --save-minutes 0", "a lower --learning-rate"),
    ):
        for arguments in ([*small_run, *options.split(), "--name", name], ["--resume", f"runs/{name}"]):
            with pytest.raises(Diverged):
                train.main(arguments)
            assert f"would fail at this step again; start another run with {way_out}\n" in capsys.readouterr().out


def test_a_finished_run_has_its_damaged_log_written_again(small_run: list[str], tmp_path: Path):
    train.main([*small_run, "--epochs", "1", "--validation-reviews", "20"])
    log = tmp_path / "runs/small/log.jsonl"
    before = log.read_text()
    for damaged in (before[:-20], "garbage\n", None):
        log.unlink() if damaged is None else log.write_text(damaged)
        train.main(["--resume", "runs/small"])
        (epoch,) = epochs(Run.open("runs/small"))
        assert epoch in [json.loads(line) for line in before.splitlines()]
    log.write_text(before)
    train.main(["--resume", "runs/small"])
    assert log.read_text() == before


def test_an_unfinished_run_is_scored_with_a_note(stopped: Run, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    evaluate(["--run", str(stopped.folder), "--text", "a good film"])
    assert f"note: {stopped.folder} is not finished; this is its best epoch so far" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_changes_no_weights(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_run += ["--dropout", "0.2"]
    train.main([*small_run, "--name", "whole"])
    with monkeypatch.context() as patch:
        patch.setattr("nn.training.clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
        with pytest.raises(Diverged, match="the gradient is not finite at epoch 1/2, step 1"):
            train.main(small_run)
    state = load_file(tmp_path / "runs/small/state/state.safetensors")
    assert not any(name.startswith("optimizer") for name in state)
    train.main(["--resume", "runs/small"])  # repeats the step, with the same dropout
    assert same(final_weights(tmp_path / "runs/small"), final_weights(tmp_path / "runs/whole"))


def test_frozen_word_vectors_are_part_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    vectors = tmp_path / "vectors.txt"
    write_text(vectors, "film 1 0 0.5 1\ngood 0 1 0.25 2\nbad 1 1 0.5 3\n")
    command = (
        "--model lstm --no-train-vectors --no-whiten-vectors --data demo --train-reviews 64 --epochs 2 --runs runs"
    )
    shape = ["--shape", "hidden_size=4 embedding_size=4", "--word-vectors", str(vectors), "--precision", "fp32"]
    command = [*command.split(), *shape]
    train.main([*command, "--name", "whole"])
    with monkeypatch.context() as patch:
        fail_at(3, patch)
        with pytest.raises(SystemExit):
            train.main([*command, "--name", "small", "--save-minutes", "0"])
    write_text(vectors, vectors.read_text().replace("0.5", "7"))
    train.main(["--resume", "runs/small"])
    whole, resumed = (load_file(f"runs/{name}/state/state.safetensors") for name in ("whole", "small"))
    assert same(whole, resumed)


def test_best_is_replaced_when_the_state_of_its_epoch_is_saved(tmp_path: Path):
    run = Run.create(tmp_path / "r", {})
    for epoch in (1, 2):
        write_text(run.next_best / f"{epoch}" / "weights", f"{epoch}")
    write_text(run.next_best / "1" / SUMS, "")
    run.keep_best(1)
    assert (run.best / "weights").read_text() == "1"
    write_text(run.next_best / "2" / "weights", "2")  # without checksums: the process was killed while it wrote them
    run.keep_best(2)
    assert (run.best / "weights").read_text() == "1"
    assert not run.next_best.exists()
    run.best.rename(run.folder / ".best-before")  # killed between two renames
    run.keep_best(1)
    assert (run.best / "weights").read_text() == "1"


def test_a_missing_state_is_no_start_from_nothing(stopped: Run):
    shutil.rmtree(stopped.state_file.parent)
    log = stopped.log_file.read_text()
    with pytest.raises(FileNotFoundError, match=r"state.safetensors is missing, although .*best exists; restore it"):
        train.main(["--resume", str(stopped.folder)])
    assert stopped.log_file.read_text() == log


def test_a_lost_best_is_replaced_by_the_next_epoch(stopped: Run, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(stopped.best)
    train.main(["--resume", str(stopped.folder)])
    assert "best is missing; the best of the next epochs replaces it" in capsys.readouterr().out
    assert read_json(stopped.folder / "result.json")["best_epoch"] == 2
    shutil.rmtree(stopped.best)
    (stopped.folder / "result.json").unlink()
    with pytest.raises(ValueError, match="best is missing; no epoch is left that could replace it"):
        train.main(["--resume", str(stopped.folder)])


def test_an_option_of_the_order_is_not_changed_within_a_run(stopped: Run):
    config = stopped.config
    config["options"]["batch_size"] = 7
    write_json(stopped.folder / "config.json", seal(config))
    with pytest.raises(ValueError, match=r"config.json changed since .* its batch_size was 13; restore it"):
        train.main(["--resume", str(stopped.folder)])


def test_a_moved_checkpoint_names_the_run(small_run: list[str], stopped: Run):
    Path(small_run[3]).rename("moved")
    with pytest.raises(FileNotFoundError, match=r"small was started from it: restore it there"):
        train.main(["--resume", str(stopped.folder)])


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Run.create(tmp_path / "r", {"machine": "CPU, 2 threads, float16"})
    settings, _ = resolve(["--device", "cpu"], TABLES)
    assert machine_of(settings.options, run).dtype == torch.float16
    assert "began in torch.float16 and keeps it" in capsys.readouterr().out
    settings, _ = resolve(["--device", "cpu", "--precision", "fp32"], TABLES)
    assert machine_of(settings.options, run).dtype == torch.float32


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(ValueError, match="--adam-epsilon 0 divides 0 by 0"):
        resolve(["--adam-epsilon", "0"], TABLES)


def test_the_state_records_the_options_that_are_not_changed_within_a_run(stopped: Run):
    names = "model peft loss train_reviews train_on_validation max_length truncate epochs batch_size tokens_per_batch"
    expected = [*names.split(), "accumulation", "average", "unfreeze", "seed"]
    _, state = stopped.load_state()
    assert state["options"] == {name: stopped.config["options"][name] for name in expected}
