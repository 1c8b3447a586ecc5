"""Combines several classifiers, the members: runs by their mean probability, a checkpoint by its sum of logits.

    p(c | x) = 1/M Σₘ softmax(zₘ(x) / Tₘ)_c          Lakshminarayanan et al. 2017 (arXiv 1612.01474), §2.4
    z(x) = Σₘ fₘ n^γₘ zₘ(x)                          stacked logits, Wolpert 1992 (doi 10.1016/S0893-6080(05)80023-1)

Tₘ is the temperature of member m, fitted on its validation reviews (data/calibration.py). Differs from the paper: the
members may be different models, and they are calibrated, so that one overconfident member does not dominate.

A checkpoint with several members is a folder with members.json: [{"weights": FOLDER, "factor": f, "power": γ}, …]. n is
the number of words of the text, at least 1; the default of γ is 0. A linear model sums its logits over n-grams, so they
grow with the text, and an encoder's do not. A negative γ of the linear model calibrates the sum for texts of any
length. The log-odds of two classes are linear in those of the members, so the effects of words (nn/attribution.py) are
sums too. Leaving out a word does not change n.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data import Splits
from data.batches import no_check
from data.calibration import calibration, log_probabilities, scaled
from data.checked import about, check_types, listed, read_json, show
from data.explanation import Explanation, weighted_sum
from data.hub import MEMBERS
from data.kept_predictions import Predictions
from data.labels import SENTIMENT, UNKNOWN, comparable
from data.metrics import metrics, print_metrics, softmax
from data.runs import Run


def mean_log_probabilities(logits: Sequence[np.ndarray], temperatures: Sequence[float]) -> np.ndarray:
    """Computes the logarithm of the mean calibrated probability: M × [N, C] -> float64 [N, C]"""
    each = [scaled(z, temperature) for z, temperature in zip(logits, temperatures, strict=True)]
    return np.logaddexp.reduce(each, axis=0) - np.log(len(each))


class Member(NamedTuple):
    """One member: its name, its temperature, and the `Scorer` that scores it."""

    name: str
    temperature: float
    scorer: Any


class Part(NamedTuple):
    """One member of a checkpoint: its name, its factor f, the `Scorer` that scores and explains, and its power γ."""

    name: str
    factor: float
    scorer: Any
    power: float = 0.0


class Blend:
    """Scores and explains with the sum of the members' logits, each times its factor for a text of this length.

    Raises ValueError unless all have the same two classes. `tokenizer` and `corpus` are the first member's;
    --errors groups the reviews by their length in its tokens.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.labels = parts, parts[0].scorer.labels
        for part in parts:
            if part.scorer.labels != self.labels or len(self.labels) != 2:
                found = f"{parts[0].name} has {', '.join(self.labels)}, {part.name} {', '.join(part.scorer.labels)}"
                raise ValueError(f"the members of a checkpoint have the same two classes; {found}")
        self.kind = " + ".join(part.scorer.kind for part in parts)
        self.tokenizer, self.corpus = parts[0].scorer.tokenizer, parts[0].scorer.corpus

    def score_frame(self, frame: pd.DataFrame, check: Callable[[], None] = no_check) -> np.ndarray:
        """Computes the logits of the reviews of a frame: float32 [N, C]. check: called between batches"""
        return self.total([part.scorer.score_frame(frame, check) for part in self.parts], count_words(frame["review"]))

    def score_texts(self, texts: list[str], bar: bool = True) -> np.ndarray:
        """Computes the logits of cleaned texts: float32 [N, C]"""
        return self.total([part.scorer.score_texts(texts, bar) for part in self.parts], count_words(texts))

    def factors(self, words: np.ndarray) -> np.ndarray:
        """Computes fₘ n^γₘ: [N] -> float32 [M, N]"""
        return np.stack([part.factor * words**part.power for part in self.parts]).astype(np.float32)

    def total(self, logits: Sequence[np.ndarray], words: np.ndarray) -> np.ndarray:
        """Computes z: M × [N, C] -> float32 [N, C]. words: n, [N]"""
        return np.sum([f[:, None] * z for f, z in zip(self.factors(words), logits, strict=True)], axis=0)

    def explain(self, text: str, key: str = "", truth: str = "") -> Explanation:
        """Explains the label of a cleaned text. key, truth: its id and label in a file"""
        logits = self.score_texts([text], bar=False)
        number = int(logits[0].argmax())
        explained = [part.scorer.explain(text, key, truth, number) for part in self.parts]
        probabilities = dict(zip(self.labels, softmax(logits)[0].tolist(), strict=True))
        return weighted_sum(explained, self.factors(count_words([text]))[:, 0].tolist(), probabilities)


def count_words(texts: Iterable[str]) -> np.ndarray:
    """Counts the words of cleaned texts: float64 [N], at least 1"""
    return np.array([max(1, len(text.split())) for text in texts], dtype=np.float64)


class Weighting(NamedTuple):
    """A member of members.json: its folder, its factor f, and its power γ."""

    folder: Path
    factor: float
    power: float

    def __str__(self) -> str:
        return f"{self.factor}" + (f" n^{self.power}" if self.power else "") + f" × {self.folder.name}"


def read_members(folder: Path) -> list[Weighting]:
    """Reads members.json. The folder of each member is next to `folder`.

    Raises ValueError for an invalid file, and FileNotFoundError if a member is not a folder.
    """
    path = folder / MEMBERS
    members = read_json(path)
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        raise ValueError(f"{path} must be a list of members, each with weights and factor")
    for member in members:
        with about(path):
            check_types(member, {"weights": str, "factor": float, "power": float})
        if difference := listed({"weights", "factor"} ^ (member.keys() - {"power"})):
            raise ValueError(
                f"{path}: a member has weights, factor and perhaps power, nothing else; here it differs in {difference}"
            )
        if member["weights"] in ("", "..") or Path(member["weights"]).name != member["weights"]:
            raise ValueError(f"{path}: weights {show(member['weights'])} must be the name of a folder next to {folder}")
        if member["factor"] <= 0:
            raise ValueError(f"{path}: factor {member['factor']} must be above 0")
        if not -1 <= member.get("power", 0) <= 1:
            raise ValueError(f"{path}: power {member['power']} must be from -1 to 1")
    beside = folder.resolve().parent
    for name in (member["weights"] for member in members):
        if not (beside / name).is_dir():
            raise FileNotFoundError(f"{path}: the member {show(name)} is not a folder in {beside}")
        if (beside / name / MEMBERS).is_file():
            raise ValueError(
                f"{path}: the member {show(name)} is a sum of classifiers itself; name its members instead"
            )
    return [Weighting(beside / m["weights"], float(m["factor"]), float(m.get("power", 0))) for m in members]


class Ensemble:
    """Scores reviews with the mean of the members' calibrated probabilities.

    Raises ValueError unless all have the same classes in the same order.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.labels: tuple[str, ...] = members[0].scorer.labels
        check_same({member.name: member.scorer.labels for member in members})

    def score_frame(self, frame: pd.DataFrame, check: Callable[[], None] = no_check, part: str = "") -> np.ndarray:
        """Computes log-probabilities, which are logits: float64 [N, C]. check: called between batches

        part: the name of a split whose reviews all have labels; each member's metrics are printed then
        """
        logits = [member.scorer.score_frame(frame, check) for member in self.members]
        truth = frame["sentiment"].to_numpy()
        for member, z in zip(self.members, logits, strict=True) if part else ():
            name = f"{part}, {member.name} (temperature {member.temperature:.3f})"
            print_metrics(name, metrics(scaled(z, member.temperature), truth), self.labels)
        return mean_log_probabilities(logits, [member.temperature for member in self.members])


def check_same(labels: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError if the class names of the members differ. labels: {name of the member: its class names}"""
    (first, names), *others = labels.items()
    for name, other in others:
        if comparable(other) != comparable(names):
            raise ValueError(
                f"{first} has the labels {', '.join(names)}, {name} {', '.join(other)}; they must agree, also in order"
            )


def shared_labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns the class names of all runs. Raises ValueError if they differ."""
    check_same({str(run.folder): run.labels or SENTIMENT for run in runs})
    return runs[0].labels or SENTIMENT


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
            print("test: no run kept probabilities of labelled test reviews")
            return
        for run, temperature in zip(runs, temperatures, strict=True):
            alone = ensemble_metrics([run], split, [temperature])
            print_metrics(f"{split}, {run.folder} (temperature {temperature:.3f})", alone, labels)
        found = ensemble_metrics(runs, split, temperatures)
        print_metrics(f"{split}, ensemble of {len(runs)}", found, labels)


def check_splits(splits: dict[str, Splits]) -> None:
    """Raises ValueError if the labelled validation or test reviews of two runs differ, also in their order, and if such
    a review of one run was a training review of another run only.

    splits: {name of the run: its reviews}. Reviews are compared by their text. A text that a run itself has in two
    splits is a duplicate in its data.
    """
    labelled = {name: [frame[frame["sentiment"] != UNKNOWN] for frame in parts[:3]] for name, parts in splits.items()}
    texts = {name: [set(frame["review"]) for frame in frames] for name, frames in labelled.items()}
    for name, (train, validation, test) in texts.items():
        for other, (seen, _, _) in texts.items():
            for split, scored in (("validation", validation), ("test", test)):
                if count := len((scored & seen) - train):
                    raise ValueError(
                        f"{count:,} {split} reviews of {name} were training reviews of {other}, so its score is no "
                        "measurement; use runs with one split, or score a new file with --data"
                    )
    (first, expected), *others = splits.items()
    for name, parts in others:
        for split in ("validation", "test"):
            frames = [getattr(one, split) for one in (expected, parts)]
            scored_by = [frame[frame["sentiment"] != UNKNOWN]["review"].tolist() for frame in frames]
            if scored_by[0] != scored_by[1]:
                raise ValueError(f"{first} and {name} have different {split} reviews; score a file: --data FILE")
