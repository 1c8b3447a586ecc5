"""Calibrates probabilities by a temperature, and measures calibration (Guo et al. 2017, arXiv 1706.04599).

A classifier is calibrated if, of the reviews that it labels with probability p, the fraction p is labelled correctly.

    q = softmax(z / T), T > 0 by maximum likelihood on validation reviews        §4.2, "temperature scaling"
    ECE = Σₘ |Bₘ|/N · |acc(Bₘ) - conf(Bₘ)|                                       Eq. (3)

z are logits; log-probabilities are logits too, so kept probabilities suffice. A temperature changes no label. Bₘ are
the reviews whose confidence, the largest probability, is in ((m - 1)/M, m/M]; acc is their accuracy, conf their mean
confidence. The Brier score is the mean over reviews of Σ_c (p_c - [c = label])² (Brier 1950), from 0 to 2.
Differs from the paper: T is limited to 1/100 … 100, since the optimum is not finite if, for example, all validation
reviews are labelled correctly.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.kept_predictions import Predictions
from data.metrics import checked_labels
from data.pictures import new_figure, write_figure
from data.runs import Run

BINS = 15  # of equal width, as in the paper
LIMIT = 100.0  # largest temperature; the smallest is 1/LIMIT
EQUAL = 1e-6  # classes whose logits differ less have one probability
SMALLEST = 1e-30  # probability in place of 0, whose logarithm is not finite


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Computes logarithms in float64; a probability of 0 becomes SMALLEST. [N, C] -> [N, C]"""
    return np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))


def scaled(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Computes log softmax(z / T) in float64: [N, C] -> [N, C]"""
    z = logits.astype(np.float64) / temperature
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the T with the largest likelihood of the labels. logits: [N, C];  labels: [N]

    The mean loss is convex in β = 1/T with the derivative mean(Σ_c q_c z_c - z_label), whose root bisection finds. If
    no review has a more probable class, each T has the same likelihood, and T is 1.
    """
    labels = checked_labels(logits, labels)
    z = logits.astype(np.float64)
    if np.ptp(z, axis=1).max() < EQUAL:
        return 1.0
    of_label = z[np.arange(len(labels)), labels].mean()
    low, high = -np.log(LIMIT), np.log(LIMIT)  # of log β
    for _ in range(50):
        middle = (low + high) / 2
        expected = (np.exp(scaled(z, np.exp(-middle))) * z).sum(1).mean()
        low, high = (middle, high) if expected <= of_label else (low, middle)
    return float(np.exp(-(low + high) / 2))


class Bin(NamedTuple):
    """The reviews with a confidence in one interval: their number, accuracy and mean confidence."""

    reviews: int
    accuracy: float
    confidence: float


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Returns the reviews by confidence in intervals of equal width, without empty ones. probabilities: [N, C]"""
    labels = checked_labels(probabilities, labels)
    confidence, correct = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    number = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    groups = (number == m for m in range(bins))
    return [Bin(int(g.sum()), float(correct[g].mean()), float(confidence[g].mean())) for g in groups if g.any()]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Computes the ECE, Eq. (3). probabilities: [N, C];  labels: [N]"""
    found = reliability_bins(probabilities, labels, bins)
    return sum(b.reviews * abs(b.accuracy - b.confidence) for b in found) / len(labels)


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean squared distance of the probabilities from the one-hot labels. [N, C], [N]"""
    labels = checked_labels(probabilities, labels)
    return float(np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(1).mean())


def check_two_classes(count: int) -> None:
    """Raises ValueError for another number of classes, which have no threshold."""
    if count != 2:
        raise ValueError(f"--threshold validation needs two classes; this run has {count}")


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the t with the highest accuracy of the rule "class 1 if p₁ > t". probabilities: [N, 2];  labels: [N]

    t is halfway between two neighbouring p₁, or below or above all. Of equally accurate ones it is the closest to 0.5.
    Raises ValueError for more than two classes.
    """
    check_two_classes(probabilities.shape[1])
    labels = checked_labels(probabilities, labels)
    p, order = probabilities[:, 1].astype(np.float64), np.argsort(probabilities[:, 1], kind="stable")
    p, positive = p[order], labels[order] == 1
    negatives_below = np.concatenate([[0], np.cumsum(~positive)])
    hits = negatives_below + positive.sum() - np.concatenate([[0], np.cumsum(positive)])  # of t after the first k
    lowest = 0.0 if p[0] > 0 else -1.0  # below all p₁
    edges = np.concatenate([[lowest], p, [1.0]])
    t = (edges[:-1] + edges[1:]) / 2
    t = np.where(t < edges[1:], t, edges[:-1])  # rounded to the upper one, which `p > t` would leave out
    allowed = np.concatenate([[True], p[1:] > p[:-1], [True]])  # no t divides equal p₁
    best = allowed & (hits == hits[allowed].max())
    return float(t[best][np.abs(t[best] - 0.5).argmin()])


def summary(name: str, probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> str:
    """Describes the calibration of one split before and after scaling."""
    after = np.exp(scaled(log_probabilities(probabilities), temperature))
    ece, brier = (
        " → ".join(f"{measure(p, labels):.4f}" for p in (probabilities, after))
        for measure in (expected_calibration_error, brier_score)
    )
    return f"{name}: temperature {temperature:.3f}; ECE ({BINS} bins of equal width) {ece}, Brier score {brier}"


def draw_reliability(probabilities: np.ndarray, labels: np.ndarray, temperature: float, path: Path) -> None:
    """Draws accuracy over confidence (Guo et al. 2017, Fig. 4) before and after scaling into a picture file.

    Raises ValueError if matplotlib is not installed or does not support the file type.
    """
    figure = new_figure(width=5, height=4.5)
    axes = figure.subplots()
    plot_reliability(axes, probabilities, labels, temperature)
    axes.set(xlabel="confidence", title=f"{len(labels):,} reviews")
    write_figure(figure, path)


def plot_reliability(axes: Any, probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> None:
    """Plots accuracy over confidence before and after scaling into the axes of a figure."""
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8, label="calibrated")
    after = np.exp(scaled(log_probabilities(probabilities), temperature))
    for p, marker, color, name in ((probabilities, "o", "#D55E00", "before"), (after, "s", "#0072B2", "after")):
        found = reliability_bins(p, labels)
        label = f"{name} scaling, ECE {expected_calibration_error(p, labels):.4f}"
        axes.plot([b.confidence for b in found], [b.accuracy for b in found], f"{marker}-", color=color, label=label)
    axes.set(ylabel="accuracy", xlim=(1 / probabilities.shape[1], 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)


# ---------------------------------------------------------------------------------------------------- of a run


def calibration(run: Run) -> float:
    """Returns the temperature of a run, from its kept validation probabilities.

    It is kept in calibration.json, with what it was fitted on, if the run folder can be written. Raises ValueError if
    the run kept no probabilities.
    """
    kept = validation_of(run)
    temperature = fit_temperature(log_probabilities(kept.probabilities), kept.labels)
    after = np.exp(scaled(log_probabilities(kept.probabilities), temperature))
    facts: dict[str, Any] = {"temperature": temperature, "validation_reviews": len(kept.labels), "bins": BINS}
    for state, p in (("before", kept.probabilities), ("after", after)):
        facts[f"ece_{state}"] = expected_calibration_error(p, kept.labels)
        facts[f"brier_{state}"] = brier_score(p, kept.labels)
    run.save_calibration(facts)
    return temperature


def describe_threshold(name: str, probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> str:
    """Describes the accuracy of the rule "class 1 if p₁ > threshold" on one split. [N, 2], [N]"""
    above = probabilities[:, 1].astype(np.float64) > threshold  # float32 would round the threshold
    accuracy = (above == labels).mean()
    return f"{name}: accuracy {accuracy:.4f} with the threshold {threshold:.4f}, chosen on validation"


def validation_of(run: Run) -> Predictions:
    """Returns the kept predictions of the validation reviews. Raises ValueError if there are none."""
    if (kept := run.predictions("validation")) is None:
        trained = run.config.get("options", {}).get("train_on_validation", False)
        found = (
            "was trained on its validation reviews" if trained else "kept no probabilities of its validation reviews"
        )
        raise ValueError(f"{run.folder} {found}, from which a temperature or a threshold is computed")
    return kept
