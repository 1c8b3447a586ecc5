"""eval.py on files and folders of others: classes by name, flags honoured or refused, no output over an input."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import change_json

import train
from data.checked import read_json
from data.cleaning import clean
from data.files import write_tensors
from data.hub import CONFIG, LINEAR
from data.kept_predictions import read_predictions
from data.metrics import auc, metrics, print_metrics
from data.predictions import predictions_csv, print_answer, read_lines
from data.rows import RESULTS
from data.runs import Run, check_digests
from data.text_lines import header_titles
from eval import main as evaluate

WORDS = {"a": "awful boring dull", "b": "fine decent watchable", "c": "superb moving brilliant"}


def write_reviews(path: Path, labels: str, count: int = 12, names: dict[str, str] | None = None) -> Path:
    """Writes a CSV file with `count` reviews of each class. labels: the classes; names: how they are spelled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{WORDS[label]} film {n}", (names or {}).get(label, label)) for n in range(count) for label in labels]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a linear model of the classes a, b and c, trained on a subset of its file."""
    folder = tmp_path_factory.mktemp("three")
    write_reviews(folder / "train.csv", "abc", 40)
    text = f"--model nb_linear --train {folder}/train.csv --train-reviews 90 --min-count 1 --epochs 2 --name r"
    train.main([*text.split(), "--shape", "min_reviews=1", "--runs", str(folder)])
    return folder / "r"


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what eval.py prints."""
    capsys.readouterr()
    evaluate(arguments)
    return capsys.readouterr().out


def test_the_classes_of_a_folder_are_those_of_the_run_by_name(three, tmp_path, capsys):
    for name in ("train", "test"):
        write_reviews(tmp_path / f"bc/{name}.csv", "bc")
    out = outcome(["--run", str(three), "--data", str(tmp_path / "bc")], capsys)
    assert "test: accuracy 1.0000 on 24 reviews" in out
    assert "  a: F1 –, recall –" in out
    write_reviews(tmp_path / "other/train.csv", "bc", names={"b": "amazing", "c": "rubbish"})
    with pytest.raises(ValueError, match="'amazing'"):
        evaluate(["--run", str(three), "--data", str(tmp_path / "other")])


def test_the_flags_of_reading_count_for_a_folder_and_are_refused_for_the_runs_own_reviews(three, tmp_path, capsys):
    for name in ("train", "test"):
        path = write_reviews(tmp_path / f"named/{name}.csv", "abc")
        frame = pd.read_csv(path)
        frame.assign(human=frame["label"], label=frame["label"].map({"a": "b", "b": "c", "c": "a"})).to_csv(path)
    folder = ["--run", str(three), "--data", str(tmp_path / "named")]
    assert "test: accuracy 0.0000" in outcome(folder, capsys)
    assert "test: accuracy 1.0000" in outcome([*folder, "--label-column", "human"], capsys)
    for flags in (["--label-column", "human"], ["--skip-bad-rows"], ["--encoding", "latin-1"]):
        with pytest.raises(ValueError, match=f"{flags[0]} is for the files of --data and --predict"):
            evaluate(["--run", str(three), *flags])
    with pytest.raises(ValueError, match="--text-column is for files; standard input has one review a line"):
        evaluate(["--run", str(three), "--predict", "-", "--text-column", "x"])


def test_a_checkpoint_scores_a_folder(three, tmp_path, capsys):
    write_reviews(tmp_path / "d/train.csv", "abc")
    write_reviews(tmp_path / "d/test.csv", "abc", 2)
    out = outcome(["--weights", str(three / "best"), "--data", str(tmp_path / "d"), "--errors", "3"], capsys)
    assert "test: accuracy 1.0000 on 6 reviews" in out
    assert "0 % unknown tokens" in out  # of the groups of --errors


def test_a_pipe_and_a_path_with_a_tilde_are_files(three, tmp_path, capsys, monkeypatch):
    """All of their rows are scored; they are not split."""
    path = write_reviews(tmp_path / "f.csv", "abc", 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "f.csv: accuracy 1.0000 on 12 reviews" in outcome(["--run", str(three), "--data=~/f.csv"], capsys)
    if not Path("/dev/fd").is_dir():
        return
    source, sink = os.pipe()
    os.write(sink, path.read_bytes())
    os.close(sink)
    assert "accuracy 1.0000 on 12 reviews" in outcome(["--run", str(three), "--data", f"/dev/fd/{source}"], capsys)
    os.close(source)


def test_rows_without_a_review_or_a_label_are_named(three, tmp_path, capsys):
    path = tmp_path / "f.csv"
    path.write_text("text,label\nsuperb moving brilliant,c\nawful boring dull,\n")
    out = outcome(["--run", str(three), "--data", str(path)], capsys)
    assert "f.csv: 1 of 2 reviews have no label and are not scored" in out
    assert "accuracy 1.0000 on 1 reviews" in out
    path.write_text('text,label\nsuperb moving brilliant,c\n"",a\n')
    with pytest.raises(ValueError, match="1 broken row"):
        evaluate(["--run", str(three), "--data", str(path)])
    assert "on 1 reviews" in outcome(["--run", str(three), "--data", str(path), "--skip-bad-rows"], capsys)


def test_no_output_replaces_the_reviews(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = "review,label\na wonderful film,1\nbad film,0\n"
    for name in ("mine.csv", "submission.csv"):
        (tmp_path / name).write_text(content)
    (tmp_path / "link.csv").symlink_to("mine.csv")
    linear = ["--weights", str(LINEAR)]
    for flags in (["--predict", "mine.csv", "--out", "link.csv"], ["--data", "mine.csv", "--errors", "2", "--out"]):
        with pytest.raises(ValueError, match=r"--out (link|mine)\.csv would replace what is read from mine\.csv"):
            evaluate([*linear, *flags, *(["mine.csv"] if flags[-1] == "--out" else [])])
    with pytest.raises(ValueError, match=r"submission\.csv exists; --out submission\.csv replaces it"):
        evaluate([*linear, "--predict", "mine.csv"])
    assert (tmp_path / "mine.csv").read_text() == (tmp_path / "submission.csv").read_text() == content
    evaluate([*linear, "--predict", "mine.csv", "--out", "submission.csv"])
    assert (tmp_path / "submission.csv").read_text() != content


def test_standard_output_has_the_table_alone(tmp_path, capsys):
    path = tmp_path / "n.csv"
    path.write_text("id;review;label\n1;good film;1\n1;bad film;1\n")
    for flags in (["--predict", str(path)], ["--data", str(path), "--errors", "5"]):
        out = outcome(["--weights", str(LINEAR), *flags, "--out", "-"], capsys)
        rows = list(csv.reader(io.StringIO(out)))
        assert rows[0][0] == "id"
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (("negative", "positive"), ["0", "1"]),
        (("POSITIVE", "NEGATIVE"), ["1", "0"]),
        (("neg", "pos"), ["0", "1"]),
        (("bad", "good"), ["bad", "good"]),
    ],
)
def test_a_submission_has_kaggles_numbers_for_the_names_of_a_checkpoint(labels: tuple[str, ...], found: list[str]):
    text = predictions_csv(["x", "y"], np.array([[2.0, 0.0], [0.0, 2.0]]), labels, submission=True)
    assert [line.split(",")[1] for line in text.splitlines()[1:]] == found


def test_predictions_have_a_column_for_the_probability_of_each_class(capsys):
    labels, logits = ("schlecht", "großartig"), np.array([[0.0, 1.0]])
    rows = list(csv.reader(io.StringIO(predictions_csv(["x"], logits, labels))))
    assert rows == [["id", "label", "p_schlecht", "p_großartig"], ["x", "großartig", "0.268941", "0.731059"]]
    print_answer(labels, logits)
    assert capsys.readouterr().out == 'großartig ({"schlecht": 0.2689, "großartig": 0.7311})\n'


def test_f1_is_that_of_the_positive_class_in_any_order(capsys):
    logits, labels = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]]), np.array([0, 0, 1, 0, 0])
    lines = []
    for order, names in ((slice(None), ("negative", "positive")), (slice(None, None, -1), ("POSITIVE", "NEGATIVE"))):
        print_metrics("x", metrics(logits[:, order], labels if names[0] == "negative" else 1 - labels), names)
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    assert "F1 0.6667, confusion [[3, 1], [0, 1]]" in lines[0]


def test_metrics_without_a_class_are_json(capsys):
    found = metrics(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 0]))
    assert json.loads(json.dumps(found, allow_nan=False))["auc"] is None
    print_metrics("x", found)
    assert "AUC –, F1 0.0000" in capsys.readouterr().out  # one of them is predicted to be positive
    found = metrics(np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 0]))
    assert (found["f1"], found["f1_by_class"]) == (None, [1.0, None])
    print_metrics("x", found)
    assert "AUC –, F1 –" in capsys.readouterr().out


def test_reordered_or_changed_files_have_other_digests():
    check_digests({"/elsewhere/test.csv": "1"}, {"/here/test.csv": "1"})
    check_digests({}, {"/here/test.csv": "1"})
    with pytest.raises(ValueError, match=r"/here/test\.csv changed since the run was started"):
        check_digests({"/here/test.csv": "1"}, {"/here/test.csv": "2"})


@pytest.mark.parametrize(
    ("content", "flags"), [(b"\xef\xbb\xbfBoring\n", []), ("B\xf6ring\n".encode("latin-1"), ["--encoding", "latin-1"])]
)
def test_standard_input_is_read_as_a_file(content: bytes, flags: list[str], three, tmp_path, monkeypatch, capsys):
    (tmp_path / "b.txt").write_bytes(content)
    found, scored = [], ["--weights", str(three / "best"), "--predict"]
    for source in ("-", str(tmp_path / "b.txt")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        found.append(outcome([*scored, source, "--out", "-", *flags], capsys))
    assert found[0] == found[1]
    assert found[0].count("\n") == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ValueError, match="standard input: --encoding 'nosuch' is not an encoding"):
        evaluate([*scored, "-", "--encoding", "nosuch"])


def test_a_text_file_is_cleaned_and_numbered_like_standard_input(three, tmp_path, monkeypatch, capsys):
    content = b"A &quot;great&quot; film<br /><br />Not bad\n\nboring &amp; dull\n"
    (tmp_path / "b.txt").write_bytes(content)
    found = []
    for source in ("-", str(tmp_path / "b.txt")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        found.append(outcome(["--weights", str(three / "best"), "--predict", source, "--out", "-"], capsys))
    assert found[0] == found[1]
    assert [line.split(",")[0] for line in found[0].splitlines()] == ["id", "1", "2", "3"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_on_standard_input_is_refused(delimiter, three, monkeypatch):
    table = "id,text,label\nr1,good,1\n".replace(",", delimiter).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(table)))
    with pytest.raises(ValueError, match=r"standard input is a table \(id, text, label\), not one review a line"):
        evaluate(["--weights", str(three / "best"), "--predict", "-"])


def test_a_table_of_two_columns_on_standard_input_is_refused():
    with pytest.raises(ValueError, match=r"standard input is a table \(text, label\), not one review a line"):
        read_lines(io.BytesIO(b"text,label\ngood,1\n"))


def test_training_reviews_in_a_file_are_counted(three, tmp_path, capsys):
    out = outcome(["--run", str(three), "--data", str(three.parent / "train.csv")], capsys)
    assert f"warning: 90 of 120 reviews were training reviews of {three}; their score is no measurement" in out
    predicted = ["--predict", str(three.parent / "train.csv"), "--out", str(tmp_path / "p.csv")]
    for flags in (["--run", str(three)], ["--weights", str(three / "best")]):
        out = outcome([*flags, *predicted], capsys)
        assert f"warning: 90 of 120 reviews were training reviews of {three}; their score is no measurement" in out
    new = tmp_path / "new.csv"
    new.write_text("text,label\nawful,a\n")
    assert "warning" not in outcome(["--run", str(three), "--data", str(new)], capsys)
    moved = tmp_path / "moved"
    shutil.copytree(three, moved)
    options = read_json(moved / CONFIG)["options"]
    change_json(moved / CONFIG, options=options | {"train": str(tmp_path / "gone.csv")})
    out = outcome(["--run", str(moved), "--data", str(new)], capsys)
    assert f"warning: it is not known on which of these reviews {moved} was trained" in out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p, y: (np.full_like(p, np.nan), y), "scores are not finite"),
        (lambda p, y: (p[:, :1], y), r"labels 0 … 2 are outside 0 … 0"),
        (lambda p, y: (p[:, :1], np.zeros_like(y)), "its rows are not probabilities"),
        (lambda p, y: (p / p.sum(1, keepdims=True) * 5, y), "its rows are not probabilities"),
        (lambda p, y: (-p, y), "its rows are not probabilities"),
        (lambda p, y: (p + np.array([2, -2, 0], p.dtype), y), "its rows are not probabilities"),
        (lambda p, y: (p * 1.01, y), "its rows are not probabilities"),
        (lambda p, y: (np.ones_like(p[:, :1]), np.zeros_like(y)), "its rows are not probabilities"),
        (lambda p, y: (p[:, :2] / p[:, :2].sum(1, keepdims=True), np.minimum(y, 1)), "of 2 classes, but the run has 3"),
        (lambda p, y: (p, y + 7), r"labels 7 … 9 are outside 0 … 2"),
        (lambda p, y: (p[:0], y[:0]), r"are not \[N, C\] and \[N\]"),
        (lambda p, y: (np.rint(p * 255).astype(np.uint8), y), "is rounded as published rows are"),
        (lambda p, y: (np.rint(p).astype(np.int64) * 7, y), "its rows are not probabilities"),
        (lambda p, y: (p, y + 0.5), "labels are not whole numbers"),
        (lambda p, y: (p, np.full(len(y), np.nan)), "labels are not whole numbers"),
        (lambda p, y: (p[:-5], y[:-5]), "has the labels of other reviews"),
    ],
)  # fmt: skip
def test_kept_probabilities_are_checked(change, problem: str, three, tmp_path):
    run = Run(tmp_path / "r")
    shutil.copytree(three, run.folder, ignore=shutil.ignore_patterns("calibration.json"))
    kept = Run(three).predictions("validation")
    run.save_probabilities("validation", *map(np.ascontiguousarray, change(*kept)))
    with pytest.raises(ValueError, match=rf"{problem}.*; delete it: the run can be scored without it"):
        evaluate(["--run", str(run.folder)])
    assert not (run.folder / "calibration.json").exists()


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("test.probabilities", "--run with several runs and without --data needs it"),
        ("latest.validation", "but cannot be a member of an ensemble"),
    ],
)
def test_the_way_out_of_damaged_probabilities_is_that_of_their_split(name: str, way_out: str, tmp_path: Path):
    (tmp_path / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"; delete it: the run can be scored without it, .*{way_out}"):
        read_predictions(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("flags", [[], ["--explain"], ["--weights", str(LINEAR)]])
def test_a_text_that_is_not_utf8_is_refused(flags: list[str]):
    text = os.fsdecode(b"bien jou\xe9 great film")
    with pytest.raises(ValueError, match="--text is not UTF-8; --predict - --encoding NAME reads"):
        evaluate(["--text", text, *flags])


@pytest.mark.parametrize(
    "text",
    ["&nbsp;", "\u200b", " <br/> \u3000 ", "&#8203;&shy;", "\ufeff", "\u202a\u202c", "\u2061&#x2069;", "\u061c\u180e"],
)
def test_a_text_without_a_visible_character_is_empty(text: str, three, tmp_path):
    assert clean(text) == ""
    scored = ["--weights", str(three / "best")]
    with pytest.raises(ValueError, match="--text is empty"):  # before anything is loaded
        evaluate(["--weights", "missing", "--text", text])
    (tmp_path / "x.csv").write_text(f"id,review,label\n1,{text},pos\n2,fine,pos\n", encoding="utf-8")
    with pytest.raises(ValueError, match="row 2: empty review"):
        evaluate([*scored, "--data", str(tmp_path / "x.csv")])


def test_other_classes_than_kaggles_are_named(three, capsys):
    evaluate(["--run", str(three), "--predict", str(three.parent / "train.csv"), "--submission", "--out", "-"])
    note = "note: --submission writes the names a, b, c; Kaggle's file has 0 and 1 for negative and positive\n"
    out, err = capsys.readouterr()
    assert note in err
    assert out.startswith("id,sentiment\n")


@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        ([[np.nan, 1], [1, 2]], [0, 1], "scores are not finite"),
        ([[0, 1], [1, np.inf]], [0, 1], "scores are not finite"),
        ([[0, 1]], [2], r"labels 2 … 2 are outside 0 … 1"),
        ([[0, 1]], [-1], r"labels -1 … -1 are outside 0 … 1"),
        (np.zeros((0, 2)), [], r"scores \[0, 2\] and labels \[0\] are not"),
        ([[0, 1]], [1, 1], r"scores \[1, 2\] and labels \[2\] are not"),
    ],
)  # fmt: skip
def test_what_has_no_metrics(logits, labels, problem: str):
    with pytest.raises(ValueError, match=problem):
        metrics(np.array(logits, np.float32), np.array(labels, np.int64))


@pytest.mark.parametrize("labels", [[0.5, 1.0], [np.nan, 1.0]])
def test_labels_are_whole_numbers(labels: list[float]):
    with pytest.raises(ValueError, match="labels are not whole numbers"):
        metrics(np.eye(2), np.array(labels))
    assert metrics(np.eye(2), np.array([False, True])) == metrics(np.eye(2), np.array([0.0, 1.0]))


def test_a_score_that_is_not_finite_has_no_rank():
    with pytest.raises(ValueError, match="scores are not finite"):
        auc(np.array([np.nan, 1, 0]), np.array([1, 0, 1]))


def test_every_published_row_has_probabilities(tmp_path):
    files = sorted(RESULTS.rglob("*.safetensors"))
    assert len(files) > 100
    for file in files:
        read_predictions(file)
    probabilities, labels = (torch.tensor(value, dtype=torch.uint8) for value in ([[200, 55], [1, 1]], [0, 1]))
    write_tensors(tmp_path / "x.test.safetensors", {"probabilities": probabilities, "labels": labels})
    with pytest.raises(ValueError, match="its rows are not probabilities"):
        read_predictions(tmp_path / "x.test.safetensors")


def test_a_dash_is_no_review():
    with pytest.raises(ValueError, match="--text takes the review itself; --predict - reads standard input"):
        evaluate(["--text", "-"])


def linear_run(folder: Path, train_file: Path, name: str, *flags: str) -> str:
    """Trains a small linear model on a file. Returns its run folder."""
    text = f"--model nb_linear --train {train_file} --min-count 1 --epochs 1 --name {name} --runs {folder / 'runs'}"
    train.main([*text.split(), "--shape", "min_reviews=1", *flags])
    return str(folder / "runs" / name)


def test_runs_on_other_contents_of_a_file_are_no_seeds_of_one_experiment(tmp_path, capsys):
    path, test = write_reviews(tmp_path / "train.csv", "ac"), write_reviews(tmp_path / "test.csv", "ac")
    first = linear_run(tmp_path, path, "first", "--test", str(test))
    write_reviews(path, "ac", 13)
    second = linear_run(tmp_path, path, "second", "--test", str(test), "--seed", "43")
    lines = outcome(["--compare", first, second], capsys)
    assert "warning: first and second have different data" in lines
    assert "2 seeds" not in lines
    assert "ensemble" not in lines
    with pytest.raises(ValueError, match=r"train\.csv changed since .*first was (started|trained)"):
        evaluate(["--run", first, second])


def test_the_validation_part_of_a_folder_is_not_the_training_reviews_of_the_run(tmp_path, capsys):
    path = write_reviews(tmp_path / "data/train.csv", "ac", 20)
    held_out = write_reviews(tmp_path / "held_out.csv", "ac")
    run = linear_run(tmp_path, path, "own", "--validation", str(held_out))
    with pytest.raises(ValueError, match=r"all training reviews of .*train\.csv were training reviews of .*own, which"):
        evaluate(["--run", run, "--data", str(path.parent)])
    exchanged = linear_run(tmp_path, held_out, "exchanged", "--validation", str(path), "--test", str(path))
    out = outcome(["--run", exchanged, "--data", str(path.parent)], capsys)
    assert "4 of 8 validation reviews were training reviews of" in out  # by their texts, which are in both files
    assert "accuracy 1.0000 on 4 reviews" in out
    split = linear_run(tmp_path, path, "split")
    assert "validation: accuracy" in outcome(["--run", split, "--data", str(path.parent)], capsys)


def test_flags_replace_what_the_run_recorded(tmp_path, capsys):
    path = write_reviews(tmp_path / "train.csv", "ac", 20)
    with path.open("a") as file:
        file.write("one,two,three\n")
    table = pd.read_csv(path, on_bad_lines="skip").rename(columns={"text": "Review Text"}).assign(uid=range(40))
    named = tmp_path / "named.csv"
    table.to_csv(named, index=False)
    run = linear_run(tmp_path, path, "skips", "--skip-bad-rows")
    assert "40 predictions" in outcome(["--run", run, "--predict", str(path), "--out", str(tmp_path / "x.csv")], capsys)
    with pytest.raises(ValueError, match="broken row"):
        evaluate(["--run", run, "--predict", str(path), "--no-skip-bad-rows", "--out", str(tmp_path / "y.csv")])
    run = linear_run(tmp_path, named, "names", "--text-column", "Review Text", "--id-column", "uid")
    with pytest.raises(ValueError, match=r"no column 'Review Text', which the run names \(--text-column replaces it\)"):
        evaluate(["--run", run, "--predict", str(write_reviews(tmp_path / "other.csv", "ac")), "--out", "-"])


def test_an_encoding_of_the_run_is_not_that_of_a_file_in_utf8(tmp_path, capsys):
    run = linear_run(tmp_path, write_reviews(tmp_path / "train.csv", "ac"), "old", "--encoding", "cp1252")
    path = tmp_path / "new.csv"
    path.write_text("text\ngreat café déjà\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"new\.csv is UTF-8 text, not cp1252; --encoding utf-8 reads it"):
        evaluate(["--run", run, "--predict", str(path), "--out", "-"])
    table = outcome(["--run", run, "--predict", str(path), "--encoding", "utf-8", "--out", "-"], capsys).splitlines()
    assert [line.split(",")[0] for line in table] == ["id", "2"]


@pytest.mark.parametrize(
    ("line", "ending"),
    [
        ('{"text": "great", "label": 1}', "jsonl"), ('\n  {"review": "great"}', "jsonl"),
        ('[{"text": "great"}]', "json"), ('{\n"text": "great"}', "json"),
    ],
)  # fmt: skip
def test_json_is_no_text(line: str, ending: str, three, tmp_path, monkeypatch):
    path, scored = tmp_path / "x.txt", ["--weights", str(three / "best"), "--predict"]
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=rf"x\.txt holds JSON objects, not one text a line; name it x\.{ending}$"):
        evaluate([*scored, str(path), "--out", "-"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    with pytest.raises(ValueError, match="standard input holds JSON objects"):
        evaluate([*scored, "-"])


def test_a_named_column_makes_a_text_file_a_table(three, tmp_path, capsys):
    path = tmp_path / "x.txt"
    path.write_text("id,Review Text,label\n7,superb moving,c\n8,awful,a\n")
    scored = ["--weights", str(three / "best"), "--predict", str(path), "--out", "-", "--text-column"]
    rows = [line.split(",")[:2] for line in outcome([*scored, "Review Text"], capsys).splitlines()]
    assert rows == [["id", "label"], ["7", "c"], ["8", "a"]]
    with pytest.raises(ValueError, match=r"x\.txt holds one text a line, so --text-column has no effect"):
        evaluate([*scored, "Nope"])


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_scored(tmp_path):
    reviews = str(write_reviews(tmp_path / "x.csv", "ac"))
    (tmp_path / "page.html").mkdir()
    for flags, message in (
        (["--predict", reviews, "--out", str(tmp_path)], r"--out .* is a folder; name a file in it"),
        (["--predict", reviews, "--out", f"{tmp_path}/new/"], r"--out .*new/ is a folder"),
        (["--predict", reviews, "--out", f"{reviews}/y.csv"], r"x\.csv is a file, not a folder"),
        (["--data", reviews, "--explain", f"{tmp_path}/page.html"], r"--explain .*page\.html is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate([*flags, "--weights", "nowhere/at-all"])


def test_a_text_table_without_the_column_of_the_run_is_no_list_of_texts(tmp_path):
    path = write_reviews(tmp_path / "train.csv", "ac")
    pd.read_csv(path).rename(columns={"text": "Review Text"}).to_csv(path, index=False)
    run = linear_run(tmp_path, path, "phrase", "--text-column", "Review Text")
    table = tmp_path / "x.txt"
    table.write_text("text\tlabel\ngreat\ta\n")
    with pytest.raises(ValueError, match=r"no column 'Review Text', which the run names"):
        evaluate(["--run", run, "--predict", str(table), "--out", "-"])
    assert not header_titles("I liked it, Review Text, and so on", "Review Text", of_run=True)
    assert header_titles("id,text,star rating", "text") == ["id", "text", "star rating"]


def test_the_built_in_reviews_are_not_held_out_from_a_run_on_them(tmp_path):
    run = tmp_path / "runs/demo"
    held_out = tmp_path / "v.csv"
    held_out.write_text("text,label\ngreat film,positive\nawful film,negative\n")
    text = f"--model nb_linear --data demo --validation {held_out} --epochs 1 --runs {run.parent} --name demo"
    train.main([*text.split(), "--train-reviews", "64"])
    with pytest.raises(ValueError, match="all training reviews of demo were training reviews of"):
        evaluate(["--run", str(run), "--data", "demo"])
