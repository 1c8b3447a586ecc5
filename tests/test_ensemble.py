"""The mean of calibrated probabilities: its equation, its splits, its commands."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import tiny, tiny_tokenizer, tiny_weights

import train
from data import Splits
from data.calibration import scaled
from data.checked import read_json
from data.ensemble import (
    Ensemble,
    Member,
    check_same,
    check_splits,
    kept_predictions,
    mean_log_probabilities,
    print_ensemble,
    shared_labels,
)
from data.kept_predictions import Predictions
from data.labels import SENTIMENT, UNKNOWN
from data.runs import Run
from eval import main as evaluate
from eval import score_part
from nn.checkpoint import save_pretrained


def test_the_mean_equals_the_loop():
    logits = np.random.default_rng(0).normal(size=(3, 5, 2))
    temperatures = [0.5, 1.0, 2.0]
    found = np.exp(mean_log_probabilities(logits, temperatures))
    for i in range(5):
        p = [np.exp(z[i] / t) / np.exp(z[i] / t).sum() for z, t in zip(logits, temperatures, strict=True)]
        np.testing.assert_allclose(found[i], np.mean(p, axis=0), rtol=1e-12)


def frames(*texts: str) -> Splits:
    """Returns splits with one review a character: training, validation, test."""
    return Splits(*(pd.DataFrame({"review": list(text), "sentiment": 0}) for text in texts), pd.DataFrame())


def test_reviews_that_another_member_was_trained_on_are_named():
    check_splits({"a": frames("abcd", "efa", "xy"), "b": frames("abc", "efa", "xy")})  # `a` is a duplicate in the data
    with pytest.raises(ValueError, match="1 validation reviews of a were training reviews of b, so its score is no"):
        check_splits({"a": frames("abcd", "ef", "xy"), "b": frames("abce", "df", "xy")})
    with pytest.raises(ValueError, match="2 test reviews of b were training reviews of a"):
        check_splits({"a": frames("abxy", "ef", "z"), "b": frames("ab", "ef", "xy")})
    unlabelled = frames("ab", "ef", "xyc")
    unlabelled.test.loc[2, "sentiment"] = UNKNOWN  # is not scored
    check_splits({"a": unlabelled, "b": frames("abc", "ef", "xy")})
    for other, split in ((frames("ab", "fe", "xy"), "validation"), (frames("ab", "ef", "xyz"), "test")):
        with pytest.raises(ValueError, match=f"a and b have different {split} reviews; score a file"):
            check_splits({"a": frames("ab", "ef", "xy"), "b": other})


def test_a_given_backbone_is_that_of_the_moved_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "--peft lora --data demo --train-reviews 64 --validation-reviews 100 --test-reviews 2 --epochs 1"
    tokenizer = tiny_tokenizer("wordpiece")
    for name in ("a", "b"):
        folder = tmp_path / f"weights-{name}"
        save_pretrained(tiny("bert", seed=ord(name), vocab_size=tokenizer.vocab_size), folder)
        tokenizer.save(folder)
        train.main([*f"--model bert --weights weights-{name} {text} --name {name}".split()])
    (tmp_path / "two.csv").write_text("review,label\ngood film,1\nbad film,0\n")
    both = ["--run", "runs/a", "runs/b", "--data", "two.csv"]
    capsys.readouterr()
    evaluate(both)
    expected = capsys.readouterr().out
    with pytest.raises(ValueError, match="no run is an adapter whose backbone was moved; leave it out"):
        evaluate([*both, "--base", "weights-a"])
    (tmp_path / "weights-a").rename(tmp_path / "moved")
    evaluate([*both, "--base", "moved"])
    assert capsys.readouterr().out == expected
    with pytest.raises(FileNotFoundError, match="runs/a --base DIR_OR_ID --merge FOLDER, and let --teacher name"):
        train.main([*f"--model bert --weights moved {text} --loss distill --teacher runs/a --name c".split()])


def test_an_ensemble_scores_predicts_and_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = f"--model bert --weights {tiny_weights(tmp_path / 'weights')} --data demo --train-reviews 64"
    for name in ("a", "b"):
        train.main([*f"{text} --validation-reviews 100 --test-reviews 60 --epochs 1 --name {name}".split()])
    capsys.readouterr()
    evaluate(["--run", "runs/a", "runs/b"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(": acc")[0].partition(" (")[0] for line in shown] == [
        "validation, runs/a", "validation, runs/b", "validation, ensemble of 2",
        "test, runs/a", "test, runs/b", "test, ensemble of 2",
    ]  # fmt: skip
    temperature = read_json(tmp_path / "runs/a/calibration.json")["temperature"]
    assert f"test, runs/a (temperature {temperature:.3f}): accuracy" in shown[3]
    (tmp_path / "two.csv").write_text("review,label\ngood film,1\nbad film,0\n")
    evaluate(["--run", "runs/a", "runs/b", "--predict", "two.csv", "--out", "out.csv"])
    members = capsys.readouterr().out.splitlines()
    assert [re.split(r":| \(", line)[0] for line in members] == [
        "two.csv, runs/a", "two.csv, runs/b", "out.csv", "two.csv"
    ]  # fmt: skip
    assert (tmp_path / "out.csv").read_text().startswith("id,label,p_negative,p_positive\n2,")
    evaluate(["--run", "runs/a", "runs/b", "--data", "two.csv"])
    evaluate(["--run", "runs/a", "runs/b", "--text", "good film"])
    assert capsys.readouterr().out.splitlines()[-1].split(" ")[0] in ("negative", "positive")
    for flags, message in (
        ("--merge out", "--merge takes one run"),
        ("--errors 3", "--errors takes one run"),
        ("--truncate windows", "--truncate does not change the predictions that the runs kept"),
        ("--quantize int8", "--quantize does not change"),
        ("--window-pooling mean", "--window-pooling does not change"),  # the default, but runs may have another
        ("--window-stride 0", "--window-stride does not change"),
        ("--out x.csv", "--out needs something to write"),
    ):
        for folders in (["runs/a", "runs/b"], ["runs/a runs/b"]):
            with pytest.raises(ValueError, match=message):
                evaluate(["--run", *folders, *flags.split()])
    with pytest.raises(ValueError, match="--text is empty"):
        evaluate(["--run", "runs/a", "runs/b", "--text", " "])
    (tmp_path / "runs/b/validation.probabilities.safetensors").unlink()
    with pytest.raises(ValueError, match="b kept no probabilities of its validation reviews"):
        evaluate(["--run", "runs/a", "runs/b"])


def test_equal_members_are_their_ensemble(small_run, tmp_path, capsys):
    train.main(small_run)
    shutil.copytree(tmp_path / "runs/small", tmp_path / "runs/copy")
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "runs/small"), str(tmp_path / "runs/copy")])
    lines = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == lines[1] == lines[2]
    assert Run(tmp_path / "runs/small").predictions("test").probabilities.shape == (600, 2)


LOGITS = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])


def fake_ensemble(*temperatures: float) -> Ensemble:
    """Returns an ensemble of members that give every file LOGITS."""
    scorer = SimpleNamespace(labels=("negative", "positive"), score_frame=lambda frame, check: LOGITS)
    return Ensemble([Member(f"m{n}", temperature, scorer) for n, temperature in enumerate(temperatures)])


def test_the_loss_of_a_member_is_that_of_its_calibrated_probabilities(capsys):
    frame = pd.DataFrame({"sentiment": [0, 1, 1]})
    score_part(fake_ensemble(1.0, 3.0), frame, "x.csv")
    lines = capsys.readouterr().out.splitlines()
    for number, (temperature, line) in enumerate(zip((1.0, 3.0), lines, strict=True)):
        loss = -scaled(LOGITS, temperature)[np.arange(3), frame["sentiment"]].mean()
        assert line.startswith(f"x.csv, m{number} (temperature {temperature:.3f}): accuracy 0.6667 on 3 reviews, ")
        assert f"loss {loss:.4f}," in line


def test_the_members_have_no_metrics_if_a_review_has_no_label(capsys):
    logits = score_part(fake_ensemble(1.0, 2.0), pd.DataFrame({"sentiment": [0, UNKNOWN, 1]}), "x.csv")
    np.testing.assert_allclose(logits, mean_log_probabilities([LOGITS, LOGITS], [1.0, 2.0]))
    assert capsys.readouterr().out == ""


def test_members_have_the_same_classes_in_the_same_order():
    spelled = {"a": ("negative", "positive"), "b": ("NEG", "1")}
    check_same(spelled)
    scorers = [SimpleNamespace(labels=labels) for labels in (("negative", "positive"), ("positive", "negative"))]
    with pytest.raises(
        ValueError, match=r"^a has the labels negative, positive, b positive, negative; they must agree"
    ):
        Ensemble([Member(name, 1.0, scorer) for name, scorer in zip("ab", scorers, strict=True)])
    runs = [SimpleNamespace(folder=name, labels=labels) for name, labels in (("a", None), ("b", spelled["b"]))]
    assert shared_labels(runs) == SENTIMENT  # an older version recorded no names
    assert shared_labels(runs[::-1]) == spelled["b"]


def test_runs_with_other_labels_of_as_many_reviews_are_no_ensemble():
    kept = [Predictions(np.exp(scaled(LOGITS, 1.0)), np.array(labels)) for labels in ([0, 1, 1], [0, 0, 1])]
    runs = [SimpleNamespace(folder=n, predictions=lambda split, n=n: kept[n]) for n in range(2)]
    with pytest.raises(ValueError, match=r"^0 and 1 have different test reviews$"):
        kept_predictions(runs, "test")


def test_a_member_without_test_probabilities_among_others_is_named(monkeypatch, capsys):
    """Without any, the test reviews have no labels."""
    monkeypatch.setattr("data.ensemble.calibration", lambda run: 1.0)
    kept = Predictions(np.exp(scaled(LOGITS, 1.0)), np.array([0, 1, 1]))

    def run(name: str, *splits: str) -> SimpleNamespace:
        return SimpleNamespace(folder=name, predictions=lambda split: kept if split in splits else None)

    labels = ("negative", "positive")
    with pytest.raises(ValueError, match="b kept no probabilities of its test reviews"):
        print_ensemble([run("a", "validation", "test"), run("b", "validation")], labels)
    capsys.readouterr()
    print_ensemble([run("a", "validation"), run("b", "validation")], labels)
    assert capsys.readouterr().out.endswith("\ntest: no run kept probabilities of labelled test reviews\n")
