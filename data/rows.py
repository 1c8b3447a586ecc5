"""Reads and writes data/results: per published run a JSON file, a log, and the probabilities of its test reviews.

A published row is one experiment. Its first seed is ROW.json, the others are ROW@43.json, ROW@44.json, …
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.checked import read_json
from data.files import write_json, write_tensors, write_text
from data.runs import ROOT, Run

RESULTS = ROOT / "data" / "results"
OTHER_RESULTS = ("mutation", "reliability", "ranks")  # measurements that are no runs


def publish(folder: str, row: str) -> Path:
    """Copies result.json and log.jsonl of a run to data/results/ROW.json and ROW.log.jsonl.

    ROW.test.safetensors has the probabilities of the test reviews, rounded to 1/255: uint8 [N, C]. Raises ValueError if
    the run is not finished, or if it is a pretraining run and has no accuracy.
    """
    run = Run.open(folder)
    if run.result is None:
        raise ValueError(f"{folder} is not finished: it has no result.json")
    if "accuracy" not in run.result.get("validation", ()):
        raise ValueError(f"{folder} is a pretraining run; publish its numbers in the card of the weights")
    write_json(RESULTS / f"{row}.json", {"row": row, **run.result})
    write_text(RESULTS / f"{row}.log.jsonl", run.log_file.read_text(encoding="utf-8"))
    if (probabilities := run.probabilities("test")) is not None:
        rounded = torch.from_numpy((probabilities * 255).round().astype(np.uint8))
        write_tensors(RESULTS / f"{row}.test.safetensors", {"probabilities": rounded})
    return RESULTS / f"{row}.json"


class Row(NamedTuple):
    """A published row: the result of each seed. Options, parameters and command are those of the first seed."""

    name: str
    results: list[dict[str, Any]]

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
    def command(self) -> str:
        return self.results[0]["command"]

    @property
    def minutes(self) -> float:
        """Returns the mean time of all seeds."""
        return statistics.mean(result["seconds"] for result in self.results) / 60

    def accuracies(self, split: str) -> list[float]:
        """Returns the accuracy of each seed on `validation` or `test`."""
        return [result[split]["accuracy"] for result in self.results if result.get(split)]

    def mean(self, split: str) -> float:
        """Returns the mean accuracy of all seeds."""
        return statistics.mean(self.accuracies(split))

    @property
    def full_test(self) -> bool:
        """Returns whether all 25,000 test reviews were scored."""
        return not self.options.get("test_reviews") and bool(self.accuracies("test"))


def published_rows(folder: Path = RESULTS) -> list[Row]:
    """Reads all rows of a folder, sorted by file name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        if path.stem not in OTHER_RESULTS:
            rows.setdefault(path.stem.partition("@")[0], []).append(read_json(path))
    return [Row(name, results) for name, results in rows.items()]
