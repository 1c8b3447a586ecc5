"""Tests of the published rows, their tables and pictures."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import change_json
from safetensors.torch import save_file

from data.checked import read_json
from data.files import write_json
from data.pictures import Line, Point, label_points, new_figure
from data.row_pictures import SERIES, draw_labels, panels, processor, series_of, training_data, write_pictures
from data.rows import OTHER_RESULTS, RESULTS, TEST_REVIEWS, open_runs, publish, published_rows
from data.runs import ROOT, Run
from data.tables import (
    best_by_model,
    calibration_table,
    comparison_row,
    draw_curves,
    main,
    mean_and_deviation,
    models_table,
    results_table,
)


def write_result(
    folder: Path,
    name: str,
    seed: int = 42,
    validation: float = 0.5,
    test: float = 0.5,
    run: str = "",
    test_count: int = TEST_REVIEWS,
    **options: object,
) -> None:
    """Writes ROW.json of a run with these accuracies. run: its --name, if it is not that of the row"""
    result = {
        "row": name,
        "command": "python train.py",
        "commit": "0123456789",
        "started": "2026-11-22T09:00:00+00:00",
        "options": {"model": "gru", "peft": "none", "loss": "ce", "weights": "none", "word_vectors": "train"}
        | {"seed": seed, "name": run or name}
        | options,
        "parameters": {"trained": 3_140_000, "total": 14_000_000},
        "seconds": 60.0,
        "validation": {"accuracy": validation},
        "test": {"accuracy": test, "count": options.get("test_reviews") or test_count},
    }
    write_json(folder / f"{name}.json", result)


def test_every_published_row_has_command_seed_versions_and_log():
    readme = (RESULTS / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"(?s)<!-- calibration.*<!-- /calibration", "", readme)  # lists rows once more
    for path in (path for path in RESULTS.glob("*.json") if path.stem not in OTHER_RESULTS):
        row = read_json(path)
        assert row["command"].startswith("python train.py ")
        assert {"seed"} <= row["options"].keys()
        assert row["versions"]["torch"]
        assert path.with_suffix(".log.jsonl").exists()
        assert row["row"] == path.stem
        assert readme.count(f"| {row['row'].partition('@')[0]} |") == 1


def test_seeds_of_a_row_share_one_line(tmp_path: Path):
    write_result(tmp_path, "a", seed=42, validation=0.5, test=0.5)
    write_result(tmp_path, "a@43", seed=43, validation=0.6, test=0.6)
    write_result(tmp_path, "b", validation=0.9, test=0.9)
    write_result(tmp_path, "c-other")
    first, second = results_table(["a", "b"], tmp_path).splitlines()[2:]
    mean = "0.5500 ± 0.0707"
    assert first == f"| a | 3.14 M of 14 M | {mean} | **{mean}** | 42 43 | 1 | 0123456 | `python train.py` |"
    assert "| **0.9000** | 42 |" in second


def test_a_partly_scored_row_shows_the_number_of_test_reviews(tmp_path: Path):
    write_result(tmp_path, "b", test=0.9, test_reviews=2500)
    assert "| **0.9000 of 2,500** | 42 |" in results_table(["b"], tmp_path)


def test_no_value_is_a_dash():
    assert mean_and_deviation([]) == "–"


def test_best_row_of_a_model_is_chosen_by_validation_accuracy(tmp_path: Path):
    write_result(tmp_path, "gru-a", validation=0.90, test=0.80)
    write_result(tmp_path, "gru-b", validation=0.88, test=0.95)
    write_result(tmp_path, "gru-few", validation=0.99, test_reviews=100)
    write_result(tmp_path, "gru-of-a-stranger", validation=0.99, weights="runs/unknown/best")
    write_result(tmp_path, "cnn", validation=0.85, test=0.85, model="cnn")
    assert {model: row.name for model, row in best_by_model(tmp_path).items()} == {"cnn": "cnn", "gru": "gru-a"}
    assert list(best_by_model(tmp_path)) == ["cnn", "gru"]  # the best test accuracy first
    write_result(tmp_path, "gru-0", validation=0.90, test=0.99)
    change_json(tmp_path / "gru-0.json", started="2026-11-22T09:00:01+00:00")
    assert best_by_model(tmp_path)["gru"].name == "gru-a"  # of equal ones the oldest
    (tmp_path / "gru-0.json").unlink()
    assert "| `gru` | GloVe | none | ce | 3.14 M | 0.9000 | **0.8000** | 1 |" in models_table(tmp_path)


def test_a_row_that_continues_others_has_the_minutes_of_all(tmp_path: Path):
    write_result(tmp_path, "gru-a", validation=0.90, test=0.80)
    write_result(tmp_path, "gru-b", validation=0.91, test=0.81, weights="runs/gru-a/best")
    write_result(tmp_path, "gru-c", validation=0.92, test=0.82, weights="runs/gru-b/best")
    assert "| `gru` | gru-b | none | ce | 3.14 M | 0.9200 | **0.8200** | 3 | gru-c |" in models_table(tmp_path)


def test_a_row_with_the_word_vectors_of_another_has_the_minutes_of_both(tmp_path: Path):
    write_result(tmp_path, "gru-a")
    write_result(tmp_path, "transformer-b", model="transformer", word_vectors="runs/gru-a/best")
    row = next(row for row in published_rows(tmp_path) if row.name == "transformer-b")
    assert ([one.name for one in row.before], row.all_minutes) == (["gru-a"], 2.0)


def test_a_row_that_continues_a_run_of_another_name(tmp_path: Path):
    """The run r-42 is row gru-a; two rows have a run r-43, which is therefore unknown."""
    write_result(tmp_path, "gru-a", validation=0.90, test=0.80, run="r-42")
    write_result(tmp_path, "gru-b", validation=0.91, test=0.81, run="r-43", weights="runs/r-42/best")
    assert "| 2 | gru-b |" in models_table(tmp_path)
    write_result(tmp_path, "gru-c", validation=0.92, test=0.82, run="r-44", weights="runs/r-43/best")
    assert "| 3 | gru-c |" in models_table(tmp_path)
    write_result(tmp_path, "gru-d", validation=0.80, test=0.80, run="r-43")
    assert "| 2 | gru-b |" in models_table(tmp_path)


@pytest.mark.parametrize(("machine", "threads"), [("AMD EPYC, 2 threads", 2), ("AMD EPYC, 1 thread", 1)])
def test_the_processor_of_a_run(machine: str, threads: int):
    assert processor({"machine": machine}) == ("AMD EPYC", threads)


def test_publish_copies_result_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.rows.RESULTS", tmp_path / "results")
    run = Run.create(tmp_path / "run", {"options": {}})
    with pytest.raises(ValueError, match="is not finished"):
        publish(str(run.folder), "row")
    run.log("epoch", epoch=1)
    write_json(run.folder / "result.json", {"validation": {"loss": 1.0}})
    with pytest.raises(ValueError, match="is a pretraining run"):
        publish(str(run.folder), "row")
    write_json(run.folder / "result.json", {"validation": {"accuracy": 0.5}})
    assert read_json(publish(str(run.folder), "row")) == {"row": "row", "validation": {"accuracy": 0.5}}
    assert json.loads((tmp_path / "results/row.log.jsonl").read_text())["epoch"] == 1


def test_publish_shortens_the_paths_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A row is found by the name of its run, and a reader has no use for the folders of another machine."""
    monkeypatch.setattr("data.rows.RESULTS", tmp_path / "results")
    (tmp_path / "runs").mkdir()
    before, after = (Run.create(tmp_path / "runs" / name, {"options": {}}) for name in ("a", "b"))
    options = {"weights": str(before.best), "data": f"{tmp_path}/imdb", "teacher": [str(before.folder), f"{ROOT}/data"]}
    after.log("data", files={f"{tmp_path}/imdb/train.tsv": "0"})
    write_json(after.folder / "result.json", {"validation": {"accuracy": 0.5}, "options": options})
    found = read_json(publish(str(after.folder), "row"))["options"]
    assert found == {"weights": "runs/a/best", "data": "imdb", "teacher": ["runs/a", "data"]}
    assert "imdb/train.tsv" in (log := (tmp_path / "results/row.log.jsonl").read_text())
    assert str(tmp_path) not in log


def test_the_kept_epoch_is_compared(tmp_path: Path):
    run = Run.create(tmp_path / "a", {"options": {}})
    for epoch, accuracy in ((1, 0.5), (2, 0.9)):
        run.log("epoch", epoch=epoch, train_acc=0.5, val_acc=accuracy, seconds=60.0)
    for best, shown in ((1, "0.5000"), (None, "0.9000")):
        write_json(run.folder / "result.json", {"parameters": {"trained": 1}} | ({"best_epoch": best} if best else {}))
        assert comparison_row(Run.open(run.folder))[5] == shown


def test_a_name_with_dollars_is_no_formula(tmp_path: Path):
    run = Run.create(tmp_path / "_a$b_{c$", {"options": {}})
    run.log("epoch", epoch=1, train_acc=0.5, val_acc=0.5, seconds=60.0)
    draw_curves([run], tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 0


def test_the_seeds_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.rows.RESULTS", tmp_path)
    for name in ("few", "few@43", "few@44", "fewer"):
        write_result(tmp_path, name)
    assert [run.file.stem for run in open_runs("few")] == ["few", "few@43", "few@44"]
    assert {row.name: len(row.results) for row in published_rows(tmp_path)} == {"few": 3, "fewer": 1}


def test_a_row_after_pretraining_names_both_commands_and_adds_their_minutes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("data.rows.RESULTS", tmp_path / "results")
    (tmp_path / "runs").mkdir()
    facts = {"commit": "0123456", "dirty": False, "machine": "m", "parameters": {"trained": 1, "total": 1}}
    facts["started"] = "2026-11-22T09:00:00+00:00"
    before = Run.create(tmp_path / "runs/pre", {"options": {"loss": "tv", "weights": "none"}})
    result = {"command": "pretrain", "seconds": 120.0, "validation": {"loss": 1.0}, "options": {"loss": "tv"}}
    write_json(before.folder / "result.json", facts | result)
    options = {"model": "cnn", "peft": "none", "loss": "ce", "weights": str(before.best), "word_vectors": "none"}
    after = Run.create(tmp_path / "runs/after", {"options": options})
    scores = {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.8, "count": TEST_REVIEWS}}
    result = {"command": "train", "seconds": 60.0, "options": options | {"seed": 42}} | scores
    write_json(after.folder / "result.json", facts | result)
    publish(str(after.folder), "cnn-tv")
    (row,) = published_rows(tmp_path / "results")
    assert row.pretraining["validation"] == {"loss": 1.0}
    assert row.minutes == 3
    assert "| 3 | 0123456 | `pretrain`, then `train` |" in results_table(["cnn"], tmp_path / "results")
    assert "| `cnn` | `--loss tv` | none | ce |" in models_table(tmp_path / "results")


@pytest.mark.parametrize("count", [2, 60])
def test_published_predictions_have_the_classes_of_the_run(count: int, tmp_path: Path, monkeypatch):
    """Rounded to 1/255, most of 60 nearly equal probabilities would be the largest."""
    monkeypatch.setattr("data.rows.RESULTS", tmp_path / "results")
    run = Run.create(tmp_path / "run", {"options": {"weights": "none"}})
    write_json(run.folder / "result.json", {"options": {"loss": "ce"}, "validation": {"accuracy": 0.5}})
    p = torch.softmax(torch.randn(300, count, generator=torch.Generator().manual_seed(0)) / 100, 1)
    run.save_probabilities("test", p.numpy(), p.argmax(1).numpy())
    publish(str(run.folder), "row")
    (published,) = open_runs("row")
    assert (published.predictions("test").probabilities.argmax(1) == p.argmax(1).numpy()).all()


def test_only_rows_with_the_test_reviews_of_imdb_compete(tmp_path: Path):
    write_result(tmp_path, "lstm", test=0.8)
    write_result(tmp_path, "gru", test=1.0, test_count=75)
    assert [row.full_test for row in published_rows(tmp_path)] == [False, True]


def test_a_temperature_that_is_fitted_on_validation_reviews_scales_the_test_reviews(tmp_path: Path):
    """Of four reviews with probability 0.8, three are labelled correctly: log(4)/T = log(3), so T = 1.262."""
    write_result(tmp_path, "gru", validation=0.75, test=0.75)
    write_result(tmp_path, "lstm", validation=0.75, test=0.75)  # keeps no predictions
    p = torch.tensor([[204, 51]] * 4, dtype=torch.uint8)
    for split in ("validation", "test"):
        save_file({"probabilities": p, "labels": torch.tensor([0, 0, 0, 1])}, tmp_path / f"gru.{split}.safetensors")
    # ECE |0.75 - 0.8| and 0;  Brier score 2 (3 · 0.2² + 0.8²) / 4 and 2 (3 · 0.25² + 0.75²) / 4
    assert calibration_table(tmp_path).splitlines()[2:] == ["| gru | 1.262 | 0.0500 | 0.0000 | 0.3800 | 0.3750 |"]


def test_pictures_are_complete_and_show_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved: set[str] = set()
    for module in ("row_pictures", "sentence_picture"):
        monkeypatch.setattr(f"data.{module}.save_picture", lambda figure, path: saved.add(path.name))
    # another test places labels; here it would take two thirds of the time
    monkeypatch.setattr("data.row_pictures.label_points", lambda *_, **__: None)
    write_pictures(tmp_path)
    committed = {path.name for path in (RESULTS / "pictures").iterdir()}
    assert committed == {f"{name}.{kind}" for name in saved for kind in ("svg", "png")}
    drawn = set(re.findall(r'id="([\w.@-]+)"', (RESULTS / "pictures/rows.svg").read_text(encoding="utf-8")))
    assert drawn >= {row.name for row in published_rows() if row.full_test and training_data(row)}


def test_the_networks_above_the_linear_model_are_named():
    accuracy = {row.name: row.mean("test") for row in published_rows() if row.full_test and row.holds_out}
    above = sorted((name for name in accuracy if accuracy[name] > accuracy["nb_linear"]), key=lambda x: -accuracy[x])
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    assert f"Networks above `nb_linear` on the test reviews: {', '.join(above)}." in text


def test_the_commands_of_rows_name_runs_that_are_explained():
    """A run is made by another row's command, or the introduction says what it is."""
    results = [result for row in published_rows() for result in row.results]
    commands = [result["command"] for result in results]
    commands += [result["pretraining"]["command"] for result in results if result.get("pretraining")]
    made = {name for command in commands for name in re.findall(r"--name (\S+)", command)}
    used = {name for command in commands for name in re.findall(r"runs/([\w.@-]+)", command)}
    text = (RESULTS / "README.md").read_text(encoding="utf-8").partition("![")[0]
    assert used - made == {"nb"}
    assert all(f"`runs/{name}` is row" in text for name in used - made)


def test_pictures_are_deterministic(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_labels(tmp_path / name / "labels", published_rows())
    for file in ("labels.svg", "labels.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_rows_share_a_panel_only_with_the_same_training_data(tmp_path: Path):
    usual = {"train_reviews": 0, "max_length": 400}
    write_result(tmp_path, "a", test=0.8, **usual)
    write_result(tmp_path, "b", test=0.9, **usual)
    write_result(tmp_path, "few", test=0.7, train_reviews=5000, max_length=400)
    write_result(tmp_path, "short", test=0.7, train_reviews=5000, max_length=128)
    write_result(tmp_path, "partly", test_reviews=2500, **usual)
    write_result(tmp_path, "own", train="mine.tsv", **usual)
    write_result(tmp_path, "all", train_on_validation=True, **usual)
    write_result(tmp_path, "continued", weights="runs/all/best", **usual)
    assert {title: [row.name for row in rows] for title, rows in panels(published_rows(tmp_path)).items()} == {
        "20,000 training reviews": ["b", "a"],
        "5,000 training reviews": ["few"],
        "5,000 training reviews of at most 128 tokens": ["short"],
    }


@pytest.mark.parametrize(
    ("model", "weights", "series"),
    [
        ("nb_linear", "none", "linear"),
        ("gru", "none", "words"),
        ("gru", "runs/before/best", "continued"),
        ("deberta", "none", "random"),
        ("deberta", "builtin", "builtin"),
        ("bert", "minilm", "minilm"),
        ("deberta", "runs/before/best", "own"),
        ("bert", "google-bert/bert-base-uncased", "published"),
    ],
)
def test_a_row_is_drawn_by_its_model_and_its_start(tmp_path: Path, model: str, weights: str, series: str):
    write_result(tmp_path, "row", model=model, weights=weights)
    assert series_of(published_rows(tmp_path)[0]) == SERIES[series]


def test_texts_beside_points_hide_neither_texts_nor_points():
    figure = new_figure(width=3, height=3)
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    points = [Point(5 + 0.3 * i, 5.0, f"point {i}") for i in range(8)] + [Point(9.9, 0.1, "corner"), Point(1, 9, "")]
    label_points(figure, axes, points, Line(5.0, "line"))
    assert {text.get_text() for text in axes.texts} >= {"point 0", "corner", "line"}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) < 10  # without room a text is left out
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    for x, y in axes.transData.transform([point[:2] for point in points]):
        assert not any(box.contains(x, y) for box in boxes)


def test_unknown_arguments_show_the_usage():
    with pytest.raises(ValueError, match="usage: python -m"):
        main(["tables"])
