"""Computes accuracy, F1, recall, AUC and the confusion matrix from logits."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.labels import SENTIMENT, canonical


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Computes the area under the ROC curve (Mann & Whitney 1947).

    The probability that a positive example scores above a negative one; ties count half. scores: [N];  labels: 0 or 1,
    [N]. Returns nan if a class is missing. Raises ValueError for other labels, and for scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("AUC needs labels 0 and 1")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[inverse]  # mean rank of ties, from 1
    positive = int(labels.sum())
    pairs = positive * (len(labels) - positive)
    return float((rank[labels == 1].sum() - positive * (positive + 1) / 2) / pairs) if pairs else float("nan")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Computes probabilities in float64 and rounds them to float32. logits: [N, C] -> float32 [N, C]"""
    wide = logits.astype(np.float64)
    return np.exp(wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)).astype(np.float32)


def checked_labels(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the labels as int64 [N]. Raises ValueError unless scores are [N, C] with N > 0 and finite, and labels [N]
    whole numbers in 0 … C - 1."""
    if scores.ndim != 2 or not scores.size or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {list(scores.shape)} and labels {list(labels.shape)} are not [N, C] and [N]")
    if not (labels == np.floor(labels)).all():  # NaN differs from itself
        raise ValueError("labels are not whole numbers")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()} … {labels.max()} are outside 0 … {scores.shape[1] - 1}")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    return labels.astype(np.int64)


def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Computes accuracy, cross-entropy, macro-F1, F1 and recall of each class, and the confusion matrix.

    logits: [N, C];  labels: [N]. confusion[true][predicted] counts examples. Recall is None for a class without
    examples, F1 for one that is not predicted either; macro-F1 is the mean over the others. Two classes also have AUC,
    None if one has no examples, and F1 of the second class as "f1". Raises ValueError as `checked_labels` does.
    """
    labels = checked_labels(logits, labels)
    wide, classes = logits.astype(np.float64), logits.shape[1]
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    predicted = logits.argmax(1)
    matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    hits, true, chosen = matrix.diagonal(), matrix.sum(1), matrix.sum(0)  # [C] each
    f1 = 2 * hits / np.maximum(true + chosen, 1)
    occurs = true + chosen > 0
    f1_by_class = [float(value) if there else None for value, there in zip(f1, occurs, strict=True)]
    recall = [float(h / n) if n else None for h, n in zip(hits, true, strict=True)]
    values: dict[str, Any] = {
        "accuracy": float((predicted == labels).mean()),
        "loss": 0.0 - float(log_p[np.arange(len(labels)), labels].mean()),  # a loss of 0 has no sign
        "count": len(labels),
    }
    if classes == 2:
        area = auc(wide[:, 1] - wide[:, 0], labels) if true.all() else None
        values |= {"auc": area, "f1": f1_by_class[1]}
    shared = {"macro_f1": float(f1[occurs].mean()), "f1_by_class": f1_by_class, "recall_by_class": recall}
    return values | shared | {"confusion": matrix.tolist()}


def shown(value: float | None) -> str:
    """Formats a metric with four digits; `–` for one that is not defined."""
    return "–" if value is None else f"{value:.4f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Formats accuracies: `0.8850` for one seed, `0.8850 ± 0.0012` (standard deviation) for several, `–` for none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def print_metrics(name: str, values: dict[str, Any], labels: tuple[str, ...] = SENTIMENT) -> None:
    """Prints metrics: one line, and for more than two classes one line a class.

    Of negative and positive, in any order, F1 is that of the positive class, and the confusion begins with negative.
    """
    line = f"{name}: accuracy {values['accuracy']:.4f} on {values['count']:,} reviews, loss {values['loss']:.4f}"
    if "auc" in values:
        (tn, fp), (fn, tp) = values["confusion"]
        f1 = values["f1"]
        if tuple(map(canonical, labels)) == SENTIMENT[::-1]:  # a checkpoint whose first class is the positive one
            (tp, fn), (fp, tn) = values["confusion"]
            f1 = values["f1_by_class"][0]
        print(f"{line}, AUC {shown(values['auc'])}, F1 {shown(f1)}, confusion [[{tn}, {fp}], [{fn}, {tp}]]")
        return
    print(f"{line}, macro-F1 {values['macro_f1']:.4f}")
    for label, f1, recall, row in zip(
        labels, values["f1_by_class"], values["recall_by_class"], values["confusion"], strict=True
    ):
        predicted = {name: count for name, count in zip(labels, row, strict=True) if count}
        print(f"  {label}: F1 {shown(f1)}, recall {shown(recall)}, predicted as {predicted}")
