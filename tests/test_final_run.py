"""--train-on-validation: a run without validation reviews, which keeps its last epoch."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train
from data.checked import read_json
from data.errors import Diverged
from data.files import write_json
from data.held_out import ancestors
from data.rows import best_by_model, publish
from data.runs import Run
from data.tables import results_table
from eval import main as evaluate
from tests.conftest import assert_same, demo_splits, fail_at

SETTINGS = ["--model", "gru", "--word-vectors", "none", "--shape", "hidden_size=8 embedding_size=10"]
SETTINGS += ["--batch-size", "8", "--max-length", "40", "--precision", "fp32"]


def write_files(folder: Path) -> None:
    """Writes train.csv, own.csv and test.csv with 50, 20 and 30 built-in reviews of both labels."""
    frames = demo_splits()
    parts = {"train": frames.train[:50], "own": frames.validation[:20], "test": frames.test[:30]}
    for name, frame in parts.items():
        frame.rename(columns={"sentiment": "label"}).to_csv(folder / f"{name}.csv", index=False)


def run(name: str, *arguments: str, epochs: int = 2) -> Run:
    """Trains on train.csv and scores test.csv."""
    train.main([*SETTINGS, "--data", ".", "--epochs", str(epochs), "--name", name, *arguments])
    return Run.open(f"runs/{name}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a folder with the three files the current one."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains runs/final on all labelled reviews, and runs/held-out without the validation reviews."""
    path = tmp_path_factory.mktemp("final")
    write_files(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        run("final", "--train-on-validation")
        run("held-out")
    return path


@pytest.fixture
def runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the folder of the two runs the current one."""
    monkeypatch.chdir(trained)
    return trained


def load_best(run: Run) -> dict[str, torch.Tensor]:
    """Returns the tensors of best/ and of the saved state."""
    return load_file(run.best / "model.safetensors") | load_file(run.state_file)


def test_no_review_is_held_out(folder: Path, capsys: pytest.CaptureFixture[str]):
    final = run("final", "--train-on-validation", epochs=3)
    out = capsys.readouterr().out
    assert "reviews: 50 train, 30 test" in out
    assert "val_" not in out
    assert "validation: accuracy" not in out
    result = read_json(final.folder / "result.json")
    assert (result["validation"], result["best_epoch"]) == ({}, 3)
    assert result["test"]["count"] == 30
    assert [set(epoch) & {"val_acc", "val_loss"} for epoch in result["history"]] == [set()] * 3
    assert final.predictions("validation") is None
    assert len(final.predictions("test").labels) == 30
    state = load_file(final.state_file)  # of the last epoch
    best = load_file(final.best / "model.safetensors")
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in best.items())


def test_it_trains_as_a_run_with_other_validation_reviews(folder: Path):
    """All 50 reviews of the file are trained in both; with one epoch, the best is the last."""
    final = run("final", "--train-on-validation", epochs=1)
    other = run("other", "--validation", "own.csv", epochs=1)
    assert_same(load_best(final), load_best(other))
    assert np.array_equal(final.predictions("test").probabilities, other.predictions("test").probabilities)


def test_a_validation_file_is_trained_on_too(folder: Path, capsys: pytest.CaptureFixture[str]):
    run("final", "--train-on-validation", "--validation", "own.csv", epochs=1)
    assert "reviews: 70 train, 30 test" in capsys.readouterr().out


def test_a_stopped_run_ends_with_the_same_weights(runs: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        fail_at(10, patch)  # of 14 steps
        with pytest.raises(SystemExit):
            run("stopped", "--train-on-validation")
    train.main(["--resume", "runs/stopped"])
    assert_same(load_best(Run.open("runs/final")), load_best(Run.open("runs/stopped")))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--patience", "2"], "--patience has no effect here: --train-on-validation keeps the last epoch"),
        (["--validation-reviews", "5"], "--validation-reviews has no effect here: --train-on-validation leaves none"),
        (["--loss", "lm"], "--train-on-validation has no effect here: pretraining holds out texts of its own"),
    ],
)
def test_flags_without_effect_are_refused(folder: Path, flags: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        run("final", "--train-on-validation", *flags)
    assert not Path("runs").exists()


def test_its_score_is_that_of_the_test_reviews(runs: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(["--run", "runs/final"])
    out = capsys.readouterr().out
    assert "validation: no labelled reviews to score" in out
    assert "test: accuracy" in out


def test_its_training_reviews_are_not_scored_as_held_out_ones(runs: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(["--run", "runs/final", "--data", "."])
    out = capsys.readouterr().out
    assert "warning: 10 of 10 validation reviews were training reviews of runs/final and are not scored" in out


def test_a_validation_file_that_was_trained_on_is_not_scored(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "own.csv").rename(folder / "validation.csv")
    run("final", "--train-on-validation", epochs=1)
    evaluate(["--run", "runs/final", "--data", "."])
    out = capsys.readouterr().out
    assert "warning: 20 of 20 validation reviews were training reviews of runs/final and are not scored" in out
    assert "validation: no labelled reviews to score" in out


def test_mistakes_need_labelled_reviews(folder: Path):
    pd.read_csv("test.csv")[["id", "review"]].to_csv("test.csv", index=False)
    run("final", "--train-on-validation", epochs=1)
    for data in ([], ["--data", "."]):
        with pytest.raises(ValueError, match="--errors needs labelled reviews"):
            evaluate(["--run", "runs/final", "--errors", "5", *data])


def test_no_run_is_validated_by_reviews_that_its_weights_were_trained_on(runs: Path):
    start = ["--model", "gru", "--epochs", "1", "--seed", "43"]
    train.main([*start, "--train", "own.csv", "--weights", "runs/final/best", "--name", "other"])
    problem = "runs/final was trained on the validation reviews of this run; add --train-on-validation"
    for weights in ("final", "other"):  # also by a chain of runs
        with pytest.raises(ValueError, match=problem):
            train.main([*start, "--data", ".", "--weights", f"runs/{weights}/best", "--name", "next"])
    assert not Path("runs/next").exists()
    train.main([*start, "--data", ".", "--weights", "runs/final/best", "--train-on-validation", "--name", "next"])


def test_no_run_splits_a_file_on_which_its_weights_were_trained_as_a_whole(folder: Path, capsys):
    """The first run has a validation file, so that it was trained on all of train.csv."""
    run("whole", "--validation", "own.csv", epochs=1)
    start = ["--model", "gru", "--epochs", "1", "--seed", "43", "--weights", "runs/whole/best"]
    problem = "runs/whole was trained on the validation reviews of this run"
    with pytest.raises(ValueError, match=problem):
        train.main([*start, "--data", "train.csv", "--name", "next"])
    with pytest.raises(ValueError, match=problem):
        train.main([*start, "--train", "own.csv", "--validation", "train.csv", "--name", "next"])
    train.main([*start, "--data", ".", "--validation", "own.csv", "--name", "same"])
    assert "was trained on" not in capsys.readouterr().out
    train.main([*start, "--train", "own.csv", "--test", "train.csv", "--name", "other"])
    assert "runs/whole was trained on the test reviews: their score will be no measurement" in capsys.readouterr().out


def test_the_runs_from_which_a_run_started_may_be_incomplete(tmp_path: Path):
    for name, weights in (("a", "none"), ("b", "a"), ("c", "b")):
        other = Run.create(tmp_path / name, {"options": {"weights": f"{tmp_path / weights}/best"}})
        other.log("step", step=1)
    start = f"{tmp_path}/c/best"
    assert [one.name for one in ancestors(start)] == ["c", "b", "a"]
    write_json(tmp_path / "a/config.json", {"options": {"weights": start}})  # a ring has an end
    assert [one.name for one in itertools.islice(ancestors(start), 9)] == ["c", "b", "a"]
    write_json(tmp_path / "b/config.json", {})
    assert [one.name for one in ancestors(start)] == ["c"]
    (tmp_path / "b/config.json").unlink()
    assert [one.name for one in ancestors(start)] == ["c"]


def test_a_teacher_that_was_trained_on_the_validation_reviews_is_named(runs: Path, capsys: pytest.CaptureFixture[str]):
    warning = "warning: runs/final was trained on the validation reviews: their accuracy will be too high"
    taught = ["--loss", "distill", "--teacher", str(runs / "runs/final")]
    run("student", *taught, epochs=1)
    assert warning.replace("runs/final", str(runs / "runs/final")) in capsys.readouterr().out
    run("final-student", *taught, "--train-on-validation", epochs=1)
    assert "was trained on the validation reviews" not in capsys.readouterr().out


def test_weights_that_are_not_finite_do_not_replace_the_best(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """The last step of the second epoch makes a weight infinite: no validation loss shows it."""
    step, count = torch.optim.AdamW.step, iter(range(1, 100))

    def broken(self, *arguments, **named):
        step(self, *arguments, **named)
        if next(count) == 14:
            self.param_groups[0]["params"][0].data.view(-1)[0] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", broken)
        with pytest.raises(
            Diverged, match=r"the norm of the weights is not finite after epoch 2/2; best/ is as before"
        ):
            run("broken", "--train-on-validation")
    best = load_file("runs/broken/best/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in best.values() if tensor.is_floating_point())


@pytest.mark.parametrize("arguments", [["--threshold", "validation"], ["--plot", "curve.svg"]])
def test_what_needs_validation_reviews_is_refused(runs: Path, arguments: list[str]):
    with pytest.raises(ValueError, match="runs/final was trained on its validation reviews, from which a temperature"):
        evaluate(["--run", "runs/final", *arguments])


def test_no_ensemble_with_a_run_whose_validation_reviews_it_was_trained_on(runs: Path):
    with pytest.raises(ValueError, match="10 validation reviews of runs/held-out were training reviews of runs/final"):
        evaluate(["--run", "runs/final", "runs/held-out"])


def test_it_is_compared_on_the_test_reviews(runs: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(["--compare", "runs/final", "runs/held-out", "--plot", "curves.svg"])
    out = capsys.readouterr().out
    assert "final - held-out: test accuracy" in out
    assert "differ in their split: train_on_validation True and False" in out
    line = next(line for line in out.splitlines() if line.startswith("final"))
    assert line.split()[5] == "-"  # the best validation accuracy


def test_a_log_that_lost_its_epochs_is_damaged(runs: Path):
    shutil.copytree("runs/held-out", "runs/emptied")
    Path("runs/emptied/log.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"emptied/log\.jsonl is damaged or not the log of a run"):
        evaluate(["--compare", "runs/emptied"])


def test_a_published_row_is_no_candidate_for_the_best(runs: Path, monkeypatch: pytest.MonkeyPatch):
    results = runs / "results"
    monkeypatch.setattr("data.rows.RESULTS", results)
    monkeypatch.setattr("data.rows.TEST_REVIEWS", 30)
    publish("runs/final", "gru-final")
    publish("runs/held-out", "gru")
    assert "pretraining" not in read_json(results / "gru-final.json")
    lines = results_table(["gru"], results).splitlines()
    assert next(line for line in lines if line.startswith("| gru-final |")).split(" | ")[2] == "–"
    assert best_by_model(results)["gru"].name == "gru"
    publish("runs/final", "gru")  # replaces it
    assert not (results / "gru.validation.safetensors").exists()
