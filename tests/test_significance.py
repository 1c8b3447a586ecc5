"""McNemar's test, the paired bootstrap and the comparison of runs, against numbers computed by hand."""

import itertools
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import change_json, tiny_weights

import train
from data.checked import read_json
from data.compare import (
    Entry,
    ScoredPart,
    compare_pair,
    describe_seeds,
    differences,
    entries,
    files_of,
    flips,
    significance,
    sound,
)
from data.hub import CONFIG
from data.metrics import mean_and_deviation
from data.rows import RESULTS, PublishedRun, open_runs, publish
from data.runs import Run
from data.significance import bootstrap_interval, mcnemar
from eval import main as evaluate


def test_mcnemar_against_hand_numbers():
    """b = 1, c = 5: p = 2 (C(6, 0) + C(6, 1)) / 2⁶ = 14/64."""
    first = np.array([True] * 1 + [False] * 5 + [True] * 3 + [False])
    second = np.array([False] * 1 + [True] * 5 + [True] * 3 + [False])
    assert mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
    assert mcnemar(second, first) == (5, 1, pytest.approx(14 / 64))
    assert mcnemar(first, first) == (0, 0, 1.0)
    for b, c in ((0, 3), (7, 4), (5, 5), (20, 11)):
        one, two = np.arange(b + c) < b, np.arange(b + c) >= b
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
        assert mcnemar(one, two) == (b, c, min(1.0, 2 * tail / 2 ** (b + c)))
    alternating = np.arange(3000) % 2 == 0
    assert mcnemar(alternating, ~alternating)[2] == 1.0
    assert mcnemar(np.ones(3000, bool), np.zeros(3000, bool))[2] == 0.0  # 2 / 2³⁰⁰⁰, below the smallest float


def test_the_bootstrap_has_the_percentiles_of_all_samples():
    """Of 4 reviews there are 4⁴ samples with replacement, which are counted."""
    difference = np.array([1.0, 0.0, 0.0, -1.0])
    means = [np.mean(sample) for sample in itertools.product(difference, repeat=4)]
    exact = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(bootstrap_interval(difference, level=0.8), exact)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_the_bootstrap_of_the_same_reviews_is_the_same():
    difference = np.random.default_rng(1).normal(size=50)
    assert bootstrap_interval(difference) == bootstrap_interval(difference)


def test_the_bootstrap_of_many_reviews_is_normal():
    difference = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 5000, p=[0.04, 0.9, 0.06])
    half = 1.96 * difference.std() / np.sqrt(5000)
    low, high = bootstrap_interval(difference)
    np.testing.assert_allclose([low, high], [difference.mean() - half, difference.mean() + half], atol=0.1 * half)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains one configuration with two seeds, and another one. Returns their folder."""
    folder = tmp_path_factory.mktemp("three")
    text = f"--model bert --weights {tiny_weights(folder / 'weights')} --data demo --train-reviews 64 --epochs 1"
    text += f" --validation-reviews 100 --test-reviews 60 --learning-rate 1e-2 --runs {folder / 'runs'}"
    for name, further in (("a@42", ""), ("a@43", "--seed 43"), ("b", "--max-length 5 --loss rdrop")):
        train.main([*f"{text} --name {name} {further}".split()])
    return folder / "runs"


@pytest.fixture
def three_runs(trained, tmp_path, monkeypatch):
    """Returns a copy of the runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def test_compare_measures_the_difference_and_lists_the_flips(three_runs, capsys):
    evaluate(["--compare", "runs/a@42", "runs/a@43", "runs/b", "--out", "flips.csv"])
    lines = capsys.readouterr().out.splitlines()[4:]
    assert lines[0].startswith("warning: a and b differ in their truncation: max_length ")
    kept = [Run.open(f"runs/{name}").predictions("test") for name in ("a@42", "a@43", "b")]
    right = [one.probabilities.argmax(1) == one.labels for one in kept]
    tests = [read_json(three_runs / name / "result.json")["test"]["accuracy"] for name in ("a@42", "a@43", "b")]
    assert lines[1].startswith("a, 2 seeds, mean ± standard deviation: validation ")
    assert lines[1].endswith(f"test {np.mean(tests[:2]):.4f} ± {np.std(tests[:2], ddof=1):.4f}")
    assert lines[2].startswith(f"a - b: test accuracy {np.mean(tests[:2]) - tests[2]:+.4f}, 95 % interval ")
    b, c, p = mcnemar(right[0], right[2])
    assert f"McNemar of the first seeds p = {p:.2g} (only a right {b:,}, only b right {c:,})" in lines[2]
    parts = "validation 0 (AUC 0), test 0 (AUC 0)"
    assert re.sub(r"\d\.\d{4}", "0", lines[3]) == f"ensemble of all 3, mean of calibrated probabilities: {parts}"
    rows = [line.split(",") for line in (three_runs.parent / "flips.csv").read_text().splitlines()]
    assert rows[0] == ["position", "id", "label", "a@42", "a@43", "b"]
    disagree = np.flatnonzero([len(set(row)) > 1 for row in zip(*right, strict=True)])
    assert [int(row[0]) - 1 for row in rows[1:]] == disagree.tolist()
    assert all("_test_" in row[1] for row in rows[1:])


def test_published_rows_are_compared_without_a_model(three_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.rows.RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    from_run = [Run.open(three_runs / name).predictions("test") for name in ("a@42", "a@43", "b")]
    for name in ("a@42", "a@43", "b"):
        publish(str(three_runs / name), name)
    shutil.rmtree(three_runs)
    found = [run for name in ("a", "b") for run in open_runs(name)]
    assert [run.folder.name for run in found] == ["a@42", "a@43", "b"]
    for run, kept in zip(found, from_run, strict=True):
        published = run.predictions("test")
        np.testing.assert_array_equal(published.labels, kept.labels)
        np.testing.assert_allclose(published.probabilities, kept.probabilities, atol=0.51 / 255)
    evaluate(["--compare", "a", "b"])
    assert "a - b: test accuracy" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="c is neither a run folder nor a published row"):
        evaluate(["--compare", "c"])


def test_what_cannot_be_compared_is_said(three_runs, capsys):
    for name in ("a@43", "b"):
        path = three_runs / name / "test.probabilities.safetensors"
        path.unlink()
    change_json(three_runs / "b" / CONFIG, files={})
    evaluate(["--compare", "runs/a@42", "runs/b"])
    shown = capsys.readouterr().out
    assert "warning: a@42 and b may have different data: b recorded no files" in shown
    assert "a@42 - b: b kept no predictions of its test reviews" in shown
    assert "ensemble" not in shown
    with pytest.raises(ValueError, match="--out: b kept no predictions"):
        evaluate(["--compare", "runs/a@42", "runs/b", "--out", "flips.csv"])


def test_a_damaged_run_among_others_is_the_one_that_is_named(three_runs):
    damaged = three_runs / "b/test.probabilities.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"^runs/b/test\.probabilities\.safetensors is cut short or damaged"):
        evaluate(["--compare", "runs/a@42", "runs/b"])
    damaged.write_bytes(whole)
    both = [Run.open("runs/a@42"), Run.open("runs/b")]
    message = r"^one of runs/a@42, runs/b is damaged \('x'\); restore it, or leave it out$"
    with pytest.raises(ValueError, match=message), sound(both):
        raise KeyError("x")


def test_runs_with_other_test_files_are_not_compared(three_runs, capsys):
    """The labels of two sorted files are equal; their reviews are not."""
    options = read_json(three_runs / "b/config.json")["options"]
    change_json(three_runs / "b" / CONFIG, options=options | {"test": "/x/test.csv"})
    evaluate(["--compare", "runs/a@42", "runs/b"])
    shown = capsys.readouterr().out
    assert "a@42 - b: they were not scored on the same test reviews" in shown
    assert "ensemble" not in shown
    with pytest.raises(ValueError, match="--out: a@42 and b were not scored on the same test reviews"):
        evaluate(["--compare", "runs/a@42", "runs/b", "--out", "flips.csv"])


def test_a_run_that_repeats_another_is_no_second_seed(three_runs, capsys):
    shutil.copytree(three_runs / "a@42", three_runs / "again")
    evaluate(["--compare", "runs/a@42", "runs/again", "runs/b"])
    shown = capsys.readouterr().out
    assert "warning: again repeats a@42, seed included; it is left out" in shown
    assert "a@42 - b: test accuracy " in shown  # one seed is not called by the name of all
    assert "seeds, mean" not in shown
    assert "ensemble of all 2, mean" in shown


def test_runs_with_other_classes_are_not_compared(three_runs, capsys):
    change_json(three_runs / "b" / CONFIG, labels=["bad", "good"])
    evaluate(["--compare", "runs/a@42", "runs/b"])
    shown = capsys.readouterr().out
    assert "a@42 - b: their classes are negative, positive and bad, good" in shown
    assert "no ensemble of all 2: runs/a@42 has the labels negative, positive, runs/b bad, good" in shown
    with pytest.raises(
        ValueError, match="has the labels negative, positive, runs/b bad, good; they must agree, also in order"
    ):
        evaluate(["--compare", "runs/a@42", "runs/b", "--out", "flips.csv"])


def test_a_run_of_an_older_version_is_a_seed_of_the_same_experiment(three_runs, capsys):
    options = read_json(three_runs / "a@43" / "config.json")["options"]
    del options["window_pooling"]  # which older versions did not have
    change_json(three_runs / "a@43" / CONFIG, options=options)
    evaluate(["--compare", "runs/a@42", "runs/a@43"])
    assert "a, 2 seeds, mean" in capsys.readouterr().out


def test_a_run_of_an_older_version_is_resumed(three_runs, capsys):
    run, expected = three_runs / "b", read_json(three_runs / "b" / "result.json")["validation"]
    config = read_json(run / "config.json")
    for part in ("options", "origins"):
        del config[part]["unfreeze"], config[part]["warmup"]
    change_json(run / CONFIG, options=config["options"], origins=config["origins"])
    (run / "result.json").unlink()
    train.main(["--resume", str(run)])
    assert read_json(run / "result.json")["validation"]["accuracy"] == expected["accuracy"]
    assert capsys.readouterr().out.count("lacks unfreeze, warmup, as an older version wrote it") == 1


def test_seeds_of_a_published_row_are_one_experiment_whatever_their_versions_recorded():
    runs = [PublishedRun(RESULTS / f"{name}.json") for name in ("cnn-rdrop", "cnn-rdrop@43", "cnn", "cnn-rdrop@44")]
    assert runs[0].config["options"].keys() - runs[1].config["options"].keys()
    found, warnings = entries(runs)
    assert [(entry.name, len(entry.runs)) for entry in found] == [("cnn-rdrop", 3), ("cnn", 1)]
    assert warnings == []


def entry_of(files: dict[str, str], **options) -> Entry:
    """Returns an experiment that recorded these files and options."""
    run = SimpleNamespace(config={"files": files, "options": options})
    return Entry("x", [run])


def test_test_reviews_are_compared_by_the_digest_of_their_file():
    folder = entry_of({"/a/train.csv": "1", "/a/test.csv": "2"}, data="/a")
    other = entry_of({"/b/train.csv": "1", "/b/test.csv": "3"}, data="/b")
    named = entry_of({"/a/train.csv": "1", "/c/held.csv": "2"}, train="/a/train.csv", test="/c/held.csv")
    kaggle = entry_of({"/k/labeledTrainData.tsv.gz": "1", "/k/testData.tsv.gz": "2"}, data="/k")
    old = entry_of({}, data="/a")
    experiments = {"folder": folder, "other": other, "named": named, "kaggle": kaggle, "old": old}
    tests = {key: ScoredPart.of(entry, "test") for key, entry in experiments.items()}
    assert tests["folder"].equals(tests["named"])
    assert tests["folder"].equals(tests["kaggle"])
    assert tests["folder"].equals(tests["old"])  # no digest: by name
    assert not tests["folder"].equals(tests["other"])
    assert not tests["old"].equals(tests["named"])


def test_runs_with_a_test_file_that_was_added_later_are_seeds_of_one_experiment():
    def run(name: str, seed: int, **files: str) -> SimpleNamespace:
        config = {"options": {"seed": seed, "data": "/a"}, "files": {f"/a/{k}.csv": v for k, v in files.items()}}
        return SimpleNamespace(folder=Path(name), name=name, row="", config=config)

    runs = [run("x@42", 42, train="1"), run("x@43", 43, train="1", test="2"), run("x@44", 44, train="3")]
    found, warnings = entries(runs)
    assert [(entry.name, entry.runs) for entry in found] == [("x", runs[:2]), ("x@44", runs[2:])]
    assert warnings == []


def run_of(folder: str, files: dict[str, str], **options) -> SimpleNamespace:
    """Returns a run of /a that recorded these files and options."""
    config = {"options": {"data": "/a"} | options, "files": files}
    return SimpleNamespace(folder=Path(folder), name=folder, row="", config=config)


@pytest.mark.parametrize(
    "changes", [{"name": "y"}, {"runs": "other"}, {"resume": "x"}, {"device": "cuda"}, {"save_minutes": 1}]
)
def test_where_a_run_is_and_how_it_is_saved_make_no_other_experiment(changes: dict):
    runs = [run_of("x@42", {}, seed=42), run_of("x@43", {}, seed=43, **changes)]
    assert [entry.runs for entry in entries(runs)[0]] == [runs]


def test_a_run_without_digests_has_the_data_of_the_others_and_those_differ():
    one, two = {"/a/train.csv": "1", "/a/test.csv": "2"}, {"/a/train.csv": "1", "/a/test.csv": "3"}
    runs = [run_of("x@42", {}, seed=42), run_of("x@43", one, seed=43), run_of("x@44", two, seed=44)]
    assert [entry.runs for entry in entries(runs)[0]] == [runs[:2], runs[2:]]


def test_test_labels_that_differ_are_those_of_no_experiment():
    kept = [SimpleNamespace(labels=np.array(labels)) for labels in ([0, 1], [1, 0])]
    runs = [SimpleNamespace(predictions=lambda split, one=one: one) for one in kept]
    assert Entry("x", runs).labels() is None
    assert Entry("x", runs[:1] * 2).labels().tolist() == [0, 1]


def test_the_difference_is_that_of_the_first_experiment_to_the_second_over_all_seeds():
    """Four reviews. a: right on 3 and on 4; b: on 2, one of which is the mistake of the first seed of a."""
    labels = np.array([0, 0, 1, 1])

    def entry(name: str, *right: list[bool]) -> Entry:
        kept = [SimpleNamespace(labels=labels, probabilities=np.eye(2)[np.where(r, labels, 1 - labels)]) for r in right]
        config = {"options": {}, "files": {}}
        return Entry(
            name, [SimpleNamespace(config=config, labels=None, predictions=lambda split, k=k: k) for k in kept]
        )

    a, b = entry("a", [True, True, True, False], [True] * 4), entry("b", [True, False, False, True])
    found = compare_pair(a, b)
    assert found.startswith("a - b: test accuracy +0.3750, 95 % interval ")
    assert found.endswith("McNemar of the first seeds p = 1 (only a right 2, only b right 1)")
    assert compare_pair(b, a).startswith("b - a: test accuracy -0.3750, 95 % interval ")


def test_pretraining_and_unfinished_runs_are_not_compared():
    runs = [run_of(name, {}, max_length=number) for number, name in enumerate("abc")]
    for run, result in zip(runs, ({"validation": {"accuracy": 0.5}}, {"validation": {"loss": 1.0}}, None), strict=True):
        run.result, run.labels, run.predictions = result, None, lambda split: None
    assert significance(runs) == []
    runs[1].result = runs[0].result
    assert "a - b: a kept no predictions of its test reviews" in significance(runs)


def test_seeds_without_validation_reviews_have_a_mean_of_the_test_reviews():
    runs = [SimpleNamespace(result={"validation": {}, "test": {"accuracy": a}}) for a in (0.5, 0.7)]
    assert describe_seeds(Entry("x", runs)).endswith(f" validation {mean_and_deviation([])} test 0.6000 ± 0.1414")


@pytest.mark.parametrize(
    ("first", "second", "warning"),
    [
        (entry_of({}, data="demo"), entry_of({}, data="/a"), "x and x have different data"),
        (entry_of({}, data="demo", train="/a/t.csv"), entry_of({}, data="/a", train="/a/t.csv"), ""),
        (entry_of({"/a/one.csv": "1"}), entry_of({"/b/two.csv": "2"}), "x and x have different data"),
        (entry_of({"/a/one.csv": "1"}), entry_of({}), "x and x may have different data: x recorded no files"),
        (
            entry_of({}, validation="/a/v.csv", validation_reviews=5),
            entry_of({}, validation="/b/v.csv", validation_reviews=6),
            "x and x differ in their split: validation_reviews 5 and 6",
        ),
        (
            entry_of({"/a/v.csv": "5"}, validation="/a/v.csv"),
            entry_of({"/a/w.csv": "5"}, validation="/a/w.csv"),
            "",  # one file with two names
        ),
        (
            entry_of({}, train_on_validation=True),
            entry_of({}),
            "x and x differ in their split: train_on_validation True and False",
        ),
        (entry_of({}, max_length=9), entry_of({}), "x and x differ in their truncation: max_length 9 and 256"),
        (entry_of({}, truncate="tail"), entry_of({}), "x and x differ in their truncation: truncate tail and head"),
        (entry_of({}, window_stride=7), entry_of({}), "x and x differ in their truncation: window_stride 7 and 0"),
        (
            entry_of({}, window_pooling="max"),
            entry_of({}),
            "x and x differ in their truncation: window_pooling max and mean",
        ),
    ],
)
def test_the_warning_says_what_differs(first: Entry, second: Entry, warning: str):
    assert list(differences(first, second)) == ([f"warning: {warning}"] if warning else [])


def test_validation_reviews_are_compared_by_the_file_that_they_are_split_from():
    def part(files: dict[str, str], name: str = "validation", **options) -> ScoredPart:
        return ScoredPart.of(entry_of(files, **options), name)

    first, second = ({"/a/train.csv": digest, "/a/test.csv": "2"} for digest in "13")
    assert part(first).equals(part(first))
    assert not part(first).equals(part(second))
    assert part(first, "test").equals(part(second, "test"))
    assert not part(first, validation_reviews=5).equals(part(first))
    stanford = [part({"/a/aclImdb": digest}, "test") for digest in "112"]
    assert stanford[0].equals(stanford[1])
    assert not stanford[0].equals(stanford[2])


def test_an_error_without_the_folder_of_a_run_names_all_runs():
    runs = [SimpleNamespace(folder=Path(name)) for name in ("runs/a", "runs/b")]
    with (
        pytest.raises(ValueError, match=r"^one of runs/a, runs/b is damaged \(odd\); restore it"),
        sound(runs),
    ):
        raise ValueError("odd")
    with pytest.raises(ValueError, match=r"^runs/b is odd$"), sound(runs):
        raise ValueError("runs/b is odd")


def test_runs_with_one_folder_name_are_told_apart(three_runs, capsys):
    shutil.copytree("runs/b", "other/b")
    evaluate(["--compare", "runs/b", "runs/a@42", "other/b", "--out", "-"])
    printed = capsys.readouterr()
    assert {"runs/b", "other/b", "a@42"} <= set(printed.err.split())
    assert printed.out.startswith("position,id,label,runs/b,a@42,other/b")
    with pytest.raises(ValueError, match="--compare names runs/b twice; leave one out"):
        evaluate(["--compare", "runs/b", "runs/b"])


def test_the_test_of_mcnemar_is_that_of_the_first_seeds_if_either_experiment_has_several(three_runs, capsys):
    evaluate(["--compare", "runs/b", "runs/a@42", "runs/a@43"])
    assert "McNemar of the first seeds p = " in capsys.readouterr().out
    evaluate(["--compare", "runs/b", "runs/a@42"])
    assert "McNemar p = " in capsys.readouterr().out


def test_numbered_files_are_one_part_and_a_named_file_is_its_part_alone():
    files = {f"/d/train-0000{n}-of-00002.parquet": str(n) for n in range(2)}
    files |= {"/d/test.csv": "2", "/e/own.csv": "3"}
    found = files_of(entry_of(files, data="/d", test="/e/own.csv").runs[0])
    assert found == {"train": "01", "test": "3", "test.csv": "2"}


def test_the_deviation_of_seeds_is_that_of_a_sample():
    assert mean_and_deviation([0.5, 0.7]) == "0.6000 ± 0.1414"  # √(2 · 0.1² / 1)


def test_ids_of_other_reviews_than_those_that_were_scored_are_refused(three_runs):
    runs = [Run.open("runs/a@42"), Run.open("runs/b")]
    with pytest.raises(ValueError, match="--out: 59 test reviews were read, 60 were scored"):
        flips(runs, ["x"] * 59, ("negative", "positive"))
    assert flips(runs, [], ("negative", "positive"))[0].startswith("position,id,label,a@42,b\n")
