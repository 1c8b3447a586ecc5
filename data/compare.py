"""Compares finished runs and published rows on the same test reviews (`eval.py --compare`).

The runs of one experiment, which differ in the seed only, are one entry with a mean and a standard deviation.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.calibration import calibration
from data.checked import listed, show
from data.ensemble import ensemble_metrics, shared_labels
from data.files import csv_text
from data.held_out import files_of
from data.labels import SENTIMENT
from data.metrics import mean_and_deviation, shown
from data.options import Options
from data.runs import Run, is_supervised
from data.significance import bootstrap_interval, mcnemar

IGNORED = ("seed", "name", "runs", "resume", "device", "save_minutes")  # options that do not make another experiment
SPLIT = ("train_reviews", "validation_reviews", "test_reviews", "train_on_validation", "validation", "test")
TRUNCATION = ("max_length", "truncate", "window_stride", "window_pooling")


class Entry(NamedTuple):
    """One experiment: its name, and its runs, one a seed."""

    name: str
    runs: list[Run]

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options of the first seed."""
        return self.runs[0].config["options"]

    def classes(self) -> tuple[str, ...]:
        """Returns the names of the classes."""
        return self.runs[0].labels or SENTIMENT

    def labels(self) -> np.ndarray | None:
        """Returns the labels of the kept test reviews, int64 [N]; None if a seed kept none, or if labels differ."""
        kept = [run.predictions("test") for run in self.runs]
        if any(one is None or not np.array_equal(one.labels, kept[0].labels) for one in kept):  # type: ignore[union-attr]
            return None
        return kept[0].labels  # type: ignore[union-attr]

    def predicted(self) -> np.ndarray:
        """Returns the predicted class of each test review by each seed: int64 [seeds, N]"""
        return np.stack([run.predictions("test").probabilities.argmax(1) for run in self.runs])  # type: ignore[union-attr]


def seed_of(run: Run) -> int | None:
    """Returns the seed of a run."""
    return run.config["options"].get("seed")


def same_data(first: Run, second: Run) -> bool:
    """Returns whether two runs read files with the same contents, as far as they recorded digests."""
    files = [files_of(run) for run in (first, second)]
    if shared := files[0].keys() & files[1].keys():  # a test file may have been added between the runs
        return all(files[0][name] == files[1][name] for name in shared)
    return not all(files) or sorted(files[0].values()) == sorted(files[1].values())


def entries(runs: Iterable[Run]) -> tuple[list[Entry], list[str]]:
    """Groups runs on the same data that differ in IGNORED options only, and the seeds of a published row, in the order
    of their first run.

    Returns (entries, warnings). A run that recorded no digests has the data of the others. A run with the seed of an
    earlier one of its entry is left out with a warning: equal commands give equal runs, whose deviation would be 0.
    """
    found: list[tuple[dict[str, Any], list[Run]]] = []
    warnings = []
    for run in runs:
        recorded = {field.name: field.default for field in fields(Options)} | run.config["options"]  # by any version
        options = {name: value for name, value in recorded.items() if name not in IGNORED}
        seeds = next((others for own, others in found if belongs(run, others, options == own)), None)
        if seeds is None:
            found.append((options, [run]))
        elif (same := next((one for one in seeds if seed_of(one) == seed_of(run)), None)) is not None:
            warnings.append(f"warning: {run.name} repeats {same.name}, seed included; it is left out")
        else:
            seeds.append(run)
    return list(named(seeds for _, seeds in found)), warnings


def belongs(run: Run, seeds: list[Run], same_options: bool) -> bool:
    """Returns whether a run is a further seed of an experiment."""
    return (run.row != "" and run.row == seeds[0].row) or (same_options and all(same_data(one, run) for one in seeds))


def named(experiments: Iterable[list[Run]]) -> Iterator[Entry]:
    """Yields experiments with their names: that of the run, or of several seeds what is before the "@", once."""
    taken = set()
    for seeds in experiments:
        name = seeds[0].name.partition("@")[0]
        name = seeds[0].name if len(seeds) == 1 or name in taken else name
        taken.add(name)
        yield Entry(name, seeds)


def differences(first: Entry, second: Entry) -> Iterator[str]:
    """Yields a warning if data, split or truncation of two experiments differ."""
    files = [files_of(entry.runs[0]) for entry in (first, second)]
    shared = files[0].keys() & files[1].keys()
    built_in = [e.options.get("data") == "demo" and not e.options.get("train") for e in (first, second)]
    if any(files[0][name] != files[1][name] for name in shared) or (not shared and all(files)) or len({*built_in}) > 1:
        yield f"warning: {first.name} and {second.name} have different data"
    elif any(files) and not all(files):
        unknown = first.name if files[1] else second.name
        yield f"warning: {first.name} and {second.name} may have different data: {unknown} recorded no files"
    # one file may be named in two ways
    equal = {part for part in ("validation", "test") if ScoredPart.of(first, part).equals(ScoredPart.of(second, part))}
    for kind, names in (("split", SPLIT), ("truncation", TRUNCATION)):
        values = [{name: str(e.options.get(name, getattr(Options, name))) for name in names} for e in (first, second)]
        other = [name for name in names if Path(values[0][name]).name != Path(values[1][name]).name]
        if changed := [name for name in other if name not in equal]:
            shown = ", ".join(f"{name} {values[0][name]} and {values[1][name]}" for name in changed)
            yield f"warning: {first.name} and {second.name} differ in their {kind}: {shown}"


class ScoredPart(NamedTuple):
    """What determines the validation or test reviews of an experiment, besides its data folder."""

    digest: str  # of their file, "" if it was not recorded
    name: str  # of their file on the command line, "" for one of a folder
    reviews: int  # --validation-reviews or --test-reviews

    @classmethod
    def of(cls, entry: Entry, part: str) -> "ScoredPart":
        """Returns the part `validation` or `test` of an experiment."""
        options, files = entry.options, files_of(entry.runs[0])
        name = Path(options.get(part) or (options.get("train", "") if part == "validation" else "")).name
        split = part == "validation" and not options.get(part)  # from the training reviews
        digest = files.get(part) or (files.get("train", "") if split else "")
        if not (digest or name) and len(files) == 1:  # the folder of aclImdb, whose digest is that of all its reviews
            digest = next(iter(files.values()))
        return cls(digest, name, options.get(f"{part}_reviews", 0))

    def equals(self, other: "ScoredPart") -> bool:
        """Compares two parts by their digests, or by their names if a digest was not recorded."""
        by_digest = bool(self.digest and other.digest)
        same = self.digest == other.digest if by_digest else self.name == other.name
        return same and self.reviews == other.reviews


def same_test(first: Entry, second: Entry) -> bool:
    """Returns whether two experiments with kept predictions were scored on the same test reviews."""
    same = ScoredPart.of(first, "test").equals(ScoredPart.of(second, "test"))
    return same and np.array_equal(first.labels(), second.labels())  # type: ignore[arg-type]


def compare_pair(first: Entry, second: Entry) -> str:
    """Describes the difference of the test accuracies of two experiments, or why it cannot be computed."""
    pair, labels = f"{first.name} - {second.name}", (first.labels(), second.labels())
    for entry, found in zip((first, second), labels, strict=True):
        if found is None:
            return f"{pair}: {entry.name} kept no predictions of its test reviews"
    if first.classes() != second.classes():
        return f"{pair}: their classes are {', '.join(first.classes())} and {', '.join(second.classes())}"
    if not same_test(first, second):
        return f"{pair}: they were not scored on the same test reviews"
    right = [entry.predicted() == labels[0] for entry in (first, second)]  # bool [seeds, N] each
    difference = right[0].mean(0) - right[1].mean(0)
    low, high = bootstrap_interval(difference)
    b, c, p = mcnemar(right[0][0], right[1][0])
    of_seeds = " of the first seeds" if len(first.runs) + len(second.runs) > 2 else ""
    return (
        f"{pair}: test accuracy {difference.mean():+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (paired bootstrap "
        f"over the {len(difference):,} reviews, not over seeds); McNemar{of_seeds} p = {p:.2g} (only {first.name} "
        f"right {b:,}, only {second.name} right {c:,})"
    )


def describe_seeds(entry: Entry) -> str:
    """Describes the accuracies of an experiment with several seeds."""
    text = f"{entry.name}, {len(entry.runs)} seeds, mean ± standard deviation:"
    for split in ("validation", "test"):
        scores = [run.result[split]["accuracy"] for run in entry.runs if run.result and run.result.get(split)]
        text += f" {split} {mean_and_deviation(scores)}"
    return text


def describe_ensemble(runs: Sequence[Run]) -> str:
    """Describes the mean of the calibrated probabilities of all runs, or why there is none."""
    try:
        shared_labels(runs)
        temperatures = [calibration(run) for run in runs]
        found = {split: ensemble_metrics(runs, split, temperatures) for split in ("validation", "test")}
    except ValueError as error:
        return f"no ensemble of all {len(runs)}: {error}"
    parts = []
    for split, values in found.items():
        area = f" (AUC {shown(values['auc'])})" if "auc" in values else ""
        parts.append(f"{split} {values['accuracy']:.4f}{area}")
    return f"ensemble of all {len(runs)}, mean of calibrated probabilities: {', '.join(parts)}"


@contextlib.contextmanager
def sound(runs: Sequence[Run]) -> Iterator[None]:
    """Turns an error that a damaged run causes into a ValueError that names all runs. A ValueError that names a run's
    folder is raised as it is."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and any(str(run.folder) in str(error) for run in runs):
            raise
        names = listed(str(run.folder) for run in runs)
        raise ValueError(f"one of {names} is damaged ({show(str(error), 200)}); restore it, or leave it out") from error


def significance(runs: Sequence[Run]) -> list[str]:
    """Returns the lines after the table of `eval.py --compare`: warnings, seeds, differences, ensemble."""
    with sound(runs):
        finished = [run for run in runs if run.result is not None and is_supervised(run.result)]
        found, warnings = entries(finished)
        finished = [run for entry in found for run in entry.runs]
        pairs = list(itertools.combinations(found, 2))
        warnings += [warning for pair in pairs for warning in differences(*pair)]
        lines = [describe_seeds(entry) for entry in found if len(entry.runs) > 1]
        lines += [compare_pair(*pair) for pair in pairs]
        parts = [(ScoredPart.of(entry, "validation"), ScoredPart.of(entry, "test")) for entry in found]
        same = all(own.equals(first) for part in parts for own, first in zip(part, parts[0], strict=True))
        if len(finished) > 1 and same and not any("have different data" in warning for warning in warnings):
            lines.append(describe_ensemble(finished))
    return [*warnings, *lines]


def flips(runs: Sequence[Run], ids: Sequence[str], labels: tuple[str, ...]) -> tuple[str, int]:
    """Returns a CSV of the test reviews on which the runs do not agree, and their number.

    Columns: position in the test split from 1, id, label, and each run's predicted label. ids: of the test reviews with
    a label, in their order; empty: not known. Raises ValueError if a run kept no predictions, or of other reviews or
    classes.
    """
    shared_labels(runs)
    for entry in (found := [Entry(run.name, [run]) for run in runs]):
        if entry.labels() is None:
            raise ValueError(f"--out: {entry.name} kept no predictions of its test reviews")
        if not same_test(entry, found[0]):
            raise ValueError(f"--out: {found[0].name} and {entry.name} were not scored on the same test reviews")
    truth = found[0].labels()
    predicted = np.concatenate([entry.predicted() for entry in found])  # [runs, N]
    if len(ids) not in (0, predicted.shape[1]):
        raise ValueError(f"--out: {len(ids):,} test reviews were read, {predicted.shape[1]:,} were scored")
    rows = np.flatnonzero((predicted != predicted[0]).any(0)).tolist()
    header = ("position", "id", "label", *(entry.name for entry in found))
    names = {i: [labels[c] for c in (truth[i], *predicted[:, i])] for i in rows}  # type: ignore[index]
    return csv_text([header, *((i + 1, ids[i] if len(ids) else "", *names[i]) for i in rows)]), len(rows)
