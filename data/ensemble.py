"""Averages the calibrated probabilities of several classifiers, the members of an ensemble.

    p(c | x) = 1/M Σₘ softmax(zₘ(x) / Tₘ)_c          Lakshminarayanan et al. 2017 (arXiv 1612.01474), §2.4

Tₘ is the temperature of member m, fitted on its validation reviews (data/calibration.py). Differs from the paper: the
members may be different models, and they are calibrated, so that an overconfident one does not decide alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data import Splits
from data.calibration import calibration, log_probabilities, scaled
from data.labels import SENTIMENT
from data.metrics import metrics, print_metrics
from data.runs import Predictions, Run


def mean_log_probabilities(logits: Sequence[np.ndarray], temperatures: Sequence[float]) -> np.ndarray:
    """Computes the logarithm of the mean calibrated probability: M × [N, C] -> float64 [N, C]"""
    each = [scaled(z, temperature) for z, temperature in zip(logits, temperatures, strict=True)]
    return np.logaddexp.reduce(each, axis=0) - np.log(len(each))


class Member(NamedTuple):
    """One member: its name, its temperature, and a function from a frame of reviews to their logits [N, C]."""

    name: str
    temperature: float
    score: Callable[[pd.DataFrame], np.ndarray]


class Ensemble:
    """Scores reviews with the mean of the members' calibrated probabilities. labels: the class names, of all members"""

    def __init__(self, members: Sequence[Member], labels: tuple[str, ...]) -> None:
        self.members, self.labels = members, labels

    def score_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """Computes log-probabilities, which are logits: [N, C]. Prints each member's metrics if there are labels."""
        logits = [member.score(frame) for member in self.members]
        truth = frame["sentiment"].to_numpy()
        if len(truth) and (truth >= 0).all():
            for member, z in zip(self.members, logits, strict=True):
                print_metrics(member.name, metrics(scaled(z, member.temperature), truth), self.labels)
        return mean_log_probabilities(logits, [member.temperature for member in self.members])


def shared_labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns the class names of all runs. Raises ValueError if they differ."""
    first, *others = runs
    labels = first.labels or SENTIMENT
    for run in others:
        if (other := run.labels or SENTIMENT) != labels:
            raise ValueError(
                f"{first.folder} has the labels {', '.join(labels)}, {run.folder} {', '.join(other)}; they must agree"
            )
    return labels


def kept_predictions(runs: Sequence[Run], split: str) -> list[Predictions]:
    """Returns the kept predictions of one split. Raises ValueError if a run has none, or other reviews."""
    found: list[Predictions] = []
    for run in runs:
        if (kept := run.predictions(split)) is None:
            raise ValueError(f"{run.folder} kept no probabilities of its {split} reviews")
        if found and not np.array_equal(kept.labels, found[0].labels):
            raise ValueError(f"{runs[0].folder} and {run.folder} have different {split} reviews")
        found.append(kept)
    return found


def ensemble_metrics(runs: Sequence[Run], split: str, temperatures: Sequence[float]) -> dict[str, Any]:
    """Returns the metrics of the mean of the kept, calibrated probabilities. Raises ValueError as kept_predictions."""
    kept = kept_predictions(runs, split)
    logits = mean_log_probabilities([log_probabilities(one.probabilities) for one in kept], temperatures)
    return metrics(logits, kept[0].labels)


def print_ensemble(runs: Sequence[Run], labels: tuple[str, ...]) -> None:
    """Prints the metrics of an ensemble and of each member, from the kept predictions of validation and test."""
    temperatures = [calibration(run) for run in runs]
    for split in ("validation", "test"):
        if split == "test" and all(run.predictions("test") is None for run in runs):
            print("test: no labelled reviews")
            return
        for run, temperature in zip(runs, temperatures, strict=True):
            alone = ensemble_metrics([run], split, [temperature])
            print_metrics(f"{split}, {run.folder} (temperature {temperature:.3f})", alone, labels)
        found = ensemble_metrics(runs, split, temperatures)
        print_metrics(f"{split}, ensemble of {len(runs)}", found, labels)


def check_splits(splits: dict[str, Splits]) -> None:
    """Raises ValueError if a review that scores one run was a training review of another, but not of the first.

    splits: {name of the run: its reviews}. Reviews are compared by their text. A text that a run itself has in two
    splits is a duplicate in its data.
    """
    texts = {name: [set(frame["review"]) for frame in parts[:3]] for name, parts in splits.items()}
    for name, (train, validation, test) in texts.items():
        for other, (seen, _, _) in texts.items():
            for split, scored in (("validation", validation), ("test", test)):
                if count := len((scored & seen) - train):
                    raise ValueError(
                        f"{count:,} {split} reviews of {name} were training reviews of {other}, so its score is no "
                        "measurement; use runs with one split, or score a new file with --data"
                    )
