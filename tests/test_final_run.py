"""--train-on-validation: a run without validation reviews, which keeps its last epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from data.checked import read_json
from data.rows import best_by_model, publish
from data.runs import Run
from data.tables import results_table
from eval import main as evaluate
from tests.conftest import assert_same, demo_splits, fail_at

SETTINGS = ["--model", "gru", "--word-vectors", "none", "--shape", "hidden_size=8 embedding_size=10"]
SETTINGS += ["--batch-size", "8", "--max-length", "40", "--precision", "fp32"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Writes train.csv, validation.csv and test.csv with 50, 20 and 30 built-in reviews of both labels."""
    monkeypatch.chdir(tmp_path)
    frames = demo_splits()
    parts = {"train": frames.train[:50], "validation": frames.validation[:20], "test": frames.test[:30]}
    for name, frame in parts.items():
        frame.rename(columns={"sentiment": "label"}).to_csv(tmp_path / f"{name}.csv", index=False)
    return {name: tmp_path / f"{name}.csv" for name in parts}


def run(files: dict[str, Path], *arguments: str, name: str = "final", epochs: int = 2) -> Run:
    """Trains on train.csv and scores test.csv."""
    given = ["--train", str(files["train"]), "--test", str(files["test"]), "--epochs", str(epochs), "--name", name]
    train.main([*SETTINGS, *given, *arguments])
    return Run.open(f"runs/{name}")


def test_no_review_is_held_out(files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    final = run(files, "--train-on-validation")
    out = capsys.readouterr().out
    assert "reviews: 50 train, 30 test" in out
    assert "val_" not in out
    assert "validation: accuracy" not in out
    result = read_json(final.folder / "result.json")
    assert (result["validation"], result["best_epoch"]) == ({}, 2)
    assert result["test"]["count"] == 30
    assert [set(epoch) & {"val_acc", "val_loss"} for epoch in result["history"]] == [set(), set()]
    assert final.predictions("validation") is None
    assert len(final.predictions("test").labels) == 30


def load_best(run: Run) -> dict[str, torch.Tensor]:
    """Returns the tensors of best/ and of the saved state."""
    return load_file(run.best / "model.safetensors") | load_file(run.state_file)


def test_it_trains_as_a_run_with_other_validation_reviews(files: dict[str, Path]):
    """All 50 reviews of the file are trained in both; with one epoch, the best is the last."""
    final = run(files, "--train-on-validation", epochs=1)
    other = run(files, "--validation", str(files["validation"]), name="other", epochs=1)
    assert_same(load_best(final), load_best(other))
    assert np.array_equal(final.predictions("test").probabilities, other.predictions("test").probabilities)


def test_a_validation_file_is_trained_on_too(files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run(files, "--train-on-validation", "--validation", str(files["validation"]))
    assert "reviews: 70 train, 30 test" in capsys.readouterr().out


def test_the_last_epoch_is_kept(files: dict[str, Path]):
    final = run(files, "--train-on-validation", epochs=3)
    best, state = load_file(final.best / "model.safetensors"), load_file(final.state_file)
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in best.items())


def test_a_stopped_run_ends_with_the_same_weights(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    whole = run(files, "--train-on-validation")
    with monkeypatch.context() as patch:
        fail_at(10, patch)  # of 14 steps
        with pytest.raises(SystemExit):
            run(files, "--train-on-validation", name="stopped")
    train.main(["--resume", "runs/stopped"])
    assert_same(load_best(whole), load_best(Run.open("runs/stopped")))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--patience", "2"], "--patience has no effect here: --train-on-validation keeps the last epoch"),
        (["--validation-reviews", "5"], "--validation-reviews has no effect here: --train-on-validation leaves none"),
        (["--loss", "lm"], "--train-on-validation has no effect here: pretraining holds out texts of its own"),
    ],
)
def test_flags_without_effect_are_refused(files: dict[str, Path], flags: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        run(files, "--train-on-validation", *flags)
    assert not Path("runs").exists()


def test_its_score_is_that_of_the_test_reviews(files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run(files, "--train-on-validation")
    capsys.readouterr()
    evaluate(["--run", "runs/final"])
    out = capsys.readouterr().out
    assert "validation: no labelled reviews to score" in out
    assert "test: accuracy" in out


def test_its_training_reviews_are_not_scored_as_held_out_ones(files: dict[str, Path], capsys):
    run(files, "--train-on-validation")
    capsys.readouterr()
    evaluate(["--run", "runs/final", "--data", str(files["train"].parent)])
    out = capsys.readouterr().out
    assert "warning: 20 of 20 validation" not in out  # validation.csv was not trained on
    files["validation"].unlink()
    evaluate(["--run", "runs/final", "--data", str(files["train"].parent)])
    out = capsys.readouterr().out
    assert "warning: 10 of 10 validation reviews were training reviews of runs/final and are not scored" in out


@pytest.mark.parametrize("arguments", [["--threshold", "validation"], ["--plot", "curve.svg"], ["runs/other"]])
def test_what_needs_validation_reviews_is_refused(files: dict[str, Path], arguments: list[str]):
    run(files, "--train-on-validation")
    run(files, "--train-on-validation", "--seed", "43", name="other")
    with pytest.raises(ValueError, match="runs/final was trained on its validation reviews, from which a temperature"):
        evaluate(["--run", "runs/final", *arguments])


def test_it_is_compared_on_the_test_reviews(files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run(files, "--train-on-validation")
    run(files, name="other")
    capsys.readouterr()
    evaluate(["--compare", "runs/final", "runs/other", "--plot", "curves.svg"])
    out = capsys.readouterr().out
    assert "final - other: test accuracy" in out
    assert "differ in their split: train_on_validation True and False" in out
    line = next(line for line in out.splitlines() if line.startswith("final"))
    assert line.split()[5] == "-"  # the best validation accuracy


def test_a_published_row_is_no_candidate_for_the_best(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    results = files["train"].parent / "results"
    monkeypatch.setattr("data.rows.RESULTS", results)
    run(files, "--train-on-validation")
    run(files, name="other")
    publish("runs/final", "gru-final")
    publish("runs/other", "gru")
    assert "pretraining" not in read_json(results / "gru-final.json")
    lines = results_table(["gru"], results).splitlines()
    assert next(line for line in lines if line.startswith("| gru-final |")).split(" | ")[2] == "–"
    assert best_by_model(results)["gru"].name == "gru"
