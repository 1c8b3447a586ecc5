"""Reads and writes data/results: per published run a JSON file, a log, and its predictions on validation and test.

A published row is one experiment. One seed is ROW.json; several are ROW@42.json, ROW@43.json, …
"""

import glob
import json
import os
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.checked import read_json, read_object
from data.files import write_json, write_tensors, write_text
from data.kept_predictions import LEVELS, Predictions, read_predictions
from data.runs import ROOT, Run, is_supervised

RESULTS = ROOT / "data" / "results"
TEST_REVIEWS = 25_000  # of IMDB
OTHER_RESULTS = ("box", "mutation", "reliability", "ranks", "sentence")  # measurements that are no runs


def publish(folder: str, row: str) -> Path:
    """Copies result.json and log.jsonl of a run to data/results/ROW.json and ROW.log.jsonl.

    ROW.validation.safetensors and ROW.test.safetensors have the labels, uint8 [N], and the probabilities. Those of two
    classes are rounded to 1/255, uint8 [N, 2]; those of more would often be equal then, and are fp32 [N, C]. Raises
    ValueError if the run is not finished, or if it is a pretraining run and has no accuracy.
    """
    run = Run.open(folder)
    if run.result is None:
        raise ValueError(f"{folder} is not finished: it has no result.json")
    if not is_supervised(run.result):
        raise ValueError(f"{folder} is a pretraining run; publish its numbers in the card of the weights")
    result = json.dumps({"row": row, **pretraining_of(run), **run.result})
    write_json(RESULTS / f"{row}.json", json.loads(without_folders(result, run)))
    write_text(RESULTS / f"{row}.log.jsonl", without_folders(run.log_file.read_text(encoding="utf-8"), run))
    for split in ("validation", "test"):
        if (kept := run.predictions(split)) is not None:
            p, labels = kept.probabilities, kept.labels.astype(np.uint8)
            p = (p * LEVELS).round().astype(np.uint8) if p.shape[1] == 2 else p.astype(np.float32)
            tensors = {"probabilities": torch.from_numpy(p), "labels": torch.from_numpy(labels)}
            write_tensors(RESULTS / f"{row}.{split}.safetensors", tensors)
        else:
            (RESULTS / f"{row}.{split}.safetensors").unlink(missing_ok=True)
    return RESULTS / f"{row}.json"


def without_folders(text: str, run: Run) -> str:
    """Makes paths relative in JSON: those within the working folder of the run, and those within this project."""
    folders = {run.folder.resolve().parent.parent, ROOT} - {Path(ROOT.anchor)}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        begin = json.dumps(folder + os.sep)[1:-1]
        text = re.sub(rf"(?<![\w./\\-]){re.escape(begin)}", "", text)
    return text


def pretraining_of(run: Run) -> dict[str, Any]:
    """Returns {"pretraining": {"loss", "command", …}} if a run starts from a pretraining run, else {}."""
    origin = Run.of_weights(run.config["options"].get("weights", "none"))
    before = None if origin is None else origin.result
    if before is None or is_supervised(before):
        return {}
    facts = {name: before[name] for name in ("command", "commit", "dirty", "machine", "seconds")}
    return {"pretraining": {"loss": before["options"]["loss"], "validation": before["validation"], **facts}}


class PublishedRun(Run):
    """Reads one seed of a published row like a run folder: config, result, log and predictions, but no model."""

    def __init__(self, file: Path) -> None:
        super().__init__(file.with_name(file.name.removesuffix(".json")))
        self.file = self.config_file = file
        self.row = self.name.partition("@")[0]
        self.log_file = file.with_name(f"{self.folder.name}.log.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        """Reads the row's JSON file, which has the run's config."""
        return read_object(self.file)

    @property
    def result(self) -> dict[str, Any]:
        """Reads the row's JSON file."""
        return read_object(self.file)

    def predictions(self, split: str) -> Predictions | None:
        """Returns the published predictions of a split; None if there are none.

        A rounded probability below half of the rounding step counts as a quarter of the step.
        """
        path = self.folder.with_name(f"{self.folder.name}.{split}.safetensors")
        if not path.exists():
            return None
        found = read_predictions(path)
        if found.probabilities.dtype != np.uint8:
            return found
        p, labels = np.maximum(found.probabilities.astype(np.float64), 0.25), found.labels
        return Predictions(p / p.sum(1, keepdims=True), labels)

    def save_calibration(self, facts: dict[str, Any]) -> None:
        """Writes nothing: a published row stays as it is."""


def open_runs(name: str) -> list[Run]:
    """Returns the run of a run folder, or all seeds of a published row. Raises FileNotFoundError for other names."""
    if Path(name).is_dir():
        return [Run.open(name, "--compare")]
    one = RESULTS / f"{name}.json"
    files = [one] if one.is_file() else []
    files += sorted(one.parent.glob(f"{glob.escape(one.stem)}@*.json"))
    if not files:
        raise FileNotFoundError(f"{name} is neither a run folder nor a published row of {RESULTS}")
    return [PublishedRun(file) for file in files]


class Row(NamedTuple):
    """A published row: the result of each seed. Options, parameters and command are those of the first seed."""

    name: str
    results: list[dict[str, Any]]
    before: tuple["Row", ...] = ()  # the published rows that it continues, the nearest first

    @property
    def group(self) -> str:
        """Returns the part of the name before the first dash."""
        return self.name.partition("-")[0]

    @property
    def options(self) -> dict[str, Any]:
        return self.results[0]["options"]

    @property
    def trained(self) -> int:
        """Returns the number of trained parameters."""
        return self.results[0]["parameters"]["trained"]

    @property
    def commands(self) -> list[str]:
        """Returns the command that pretrains, if there is one, and the one that trains."""
        before = [self.pretraining["command"]] if self.pretraining else []
        return [*before, self.results[0]["command"]]

    @property
    def pretraining(self) -> dict[str, Any]:
        """Returns loss, command and time of the run without labels from which this one starts; {} if there is none."""
        return self.results[0].get("pretraining", {})

    @property
    def continues(self) -> bool:
        """Returns whether it starts from another run that was trained with labels: from its weights or word vectors."""
        return bool(self.start) and not self.pretraining

    @property
    def start(self) -> str:
        """Returns the folder of weights, or else of word vectors, if it is of a run: runs/NAME/best; otherwise ""."""
        paths = (self.options.get(name, "none") for name in ("weights", "word_vectors"))
        return next((path for path in paths if path.startswith("runs/")), "")

    @property
    def started(self) -> str:
        """Returns when the first seed was started, in ISO 8601, UTC."""
        return self.results[0]["started"]

    @property
    def minutes(self) -> float:
        """Returns the mean time of all seeds, with that of pretraining, without that of the rows before."""
        return (
            statistics.mean(result["seconds"] for result in self.results) / 60 + self.pretraining.get("seconds", 0) / 60
        )

    @property
    def all_minutes(self) -> float:
        """Returns the minutes of the row and of those that it continues."""
        return self.minutes + sum(row.minutes for row in self.before)

    def accuracies(self, split: str) -> list[float]:
        """Returns the accuracy of each seed on `validation` or `test`."""
        return [result[split]["accuracy"] for result in self.results if result.get(split)]

    @property
    def holds_out(self) -> bool:
        """Returns whether neither the row nor a row that it continues was trained on the validation reviews.

        Only such rows are compared by validation accuracy and share a panel.
        """
        return not any(row.options.get("train_on_validation", False) for row in (self, *self.before))

    def mean(self, split: str) -> float:
        """Returns the mean accuracy of all seeds."""
        return statistics.mean(self.accuracies(split))

    @property
    def full_test(self) -> bool:
        """Returns whether all 25,000 test reviews of IMDB were scored."""
        scored = [result["test"]["count"] for result in self.results if result.get("test")]
        return set(scored) == {TEST_REVIEWS}


def published_rows(folder: Path = RESULTS) -> list[Row]:
    """Reads all rows of a folder, sorted by file name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        if path.stem not in OTHER_RESULTS:
            rows.setdefault(path.stem.partition("@")[0], []).append(read_json(path))
    return [Row(name, results, tuple(rows_before(name, rows))) for name, results in rows.items()]


def rows_before(name: str, rows: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """Yields the rows that a row continues, as far as they are published: under the name of their run, or as the only
    row with a run of that name."""
    row = Row(name, rows[name])
    while row.continues:
        run = Path(row.start).parent.name
        found = [name for name, results in rows.items() if any(result["options"]["name"] == run for result in results)]
        if run not in rows and len(found) != 1:
            return
        name = run if run in rows else found[0]
        row = Row(name, rows[name])
        yield row


def best_by_model(folder: Path = RESULTS) -> dict[str, Row]:
    """Returns the row with the highest validation accuracy of each model, of equal ones the oldest; the best test
    accuracy first.

    Only rows with validation reviews that scored all test reviews take part, and of those that continue a run with
    labels only the ones whose training is published from its start.
    """
    best: dict[str, Row] = {}
    for row in published_rows(folder):
        if row.full_test and row.holds_out and not (row, *row.before)[-1].continues:
            model = row.options["model"]
            best[model] = min(best.get(model, row), row, key=lambda row: (-row.mean("validation"), row.started))
    return dict(sorted(best.items(), key=lambda item: -item[1].mean("test")))
