"""Reads the probabilities that a run keeps of its validation and test reviews, and those of published rows."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.checked import reading
from data.files import open_tensors
from data.metrics import checked_labels

LEVELS = 255  # published probabilities of two classes are rounded to 1/LEVELS
WITHOUT = {  # ways out of a damaged file
    "validation": "delete it: the run can be scored without it, but cannot be a member of an ensemble",
    "test": "delete it: the run can be scored without it, but --run with several runs and without --data needs it",
}
SUM_ERROR = 1e-3  # largest error of the sum of a row's probabilities


class Predictions(NamedTuple):
    """The predictions of one split, in its order: probabilities, float [N, C], and labels, int64 [N].

    Those of published rows with two classes are whole numbers of 1/LEVELS, uint8 [N, 2].
    """

    probabilities: np.ndarray
    labels: np.ndarray


def read_predictions(path: Path) -> Predictions:
    """Reads the predictions of a run or of a published row.

    Raises ValueError for a damaged file, and for rows that are not probabilities.
    """
    way_out = WITHOUT["test" if "test" in path.name.split(".") else "validation"]
    with reading(path, "kept probabilities", way_out), open_tensors(path, way_out) as file:
        probabilities, labels = (file.get_tensor(name).numpy() for name in ("probabilities", "labels"))
        if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
            raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} do not fit each other")
        labels = checked_labels(probabilities, labels)
        rows, classes = probabilities.astype(np.float64), probabilities.shape[1]
        is_rounded = probabilities.dtype == np.uint8
        # rounding changes each class by up to half a level
        whole, error = (LEVELS, classes / 2 + LEVELS * SUM_ERROR) if is_rounded else (1, SUM_ERROR)
        if classes < 2 or (rows < 0).any() or np.abs(rows.sum(1) - whole).max() > error:
            raise ValueError("its rows are not probabilities")
    return Predictions(probabilities, labels)
