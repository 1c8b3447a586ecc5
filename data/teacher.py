"""Keeps the logits of a teacher (losses/distill.py) in a run folder, with its classes in the order of the run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data import ranks
from data.checksums import is_intact, seal_file
from data.files import replacing
from data.labels import comparable


def class_order(teacher: tuple[str, ...], labels: tuple[str, ...], source: str) -> list[int]:
    """Returns the index of each of `labels` among the teacher's classes: logits[:, order] are in the order of `labels`.

    source: the name of the teacher. Raises ValueError if the names of the classes differ.
    """
    names, known = comparable(teacher), comparable(labels)
    if sorted(names) != sorted(known):
        raise ValueError(
            f"the teacher {source} has the classes {', '.join(teacher)}, the data {', '.join(labels)}; "
            "--teacher names one with the classes of the data"
        )
    return [names.index(name) for name in known]


def kept_logits(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the logits of the file `path`, fp32 [R, C] for R reviews. Computes them if there is none.

    A damaged file is written anew. With several ranks all call `compute` together, and rank 0 writes the file.
    """
    if ranks.by_first(lambda: is_intact(path)):
        return np.load(path, allow_pickle=False)
    logits = compute()
    if ranks.is_first():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, logits)
        seal_file(path)
    return logits
