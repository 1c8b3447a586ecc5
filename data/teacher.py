"""Adds the logits of a teacher (losses/distill.py) to a training corpus, and keeps them in the run folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from data import ranks
from data.checksums import is_intact, seal_file
from data.corpus import Corpus
from data.files import replacing, user_path
from data.held_out import trained_parts
from data.labels import SENTIMENT, comparable
from data.runs import Run


class Teacher(Protocol):
    """A trained classifier: one model or an ensemble (peft/classifier.py)."""

    labels: tuple[str, ...]

    def score_frame(self, frame: pd.DataFrame, check: Callable[[], None]) -> np.ndarray:
        """Computes the logits of the reviews of a frame: [N, C]. check: called between batches"""


def with_teacher(
    corpus: Corpus,
    frame: pd.DataFrame,
    sources: Sequence[str],
    load: Callable[[Sequence[str]], Teacher],
    run: Run,
    check: Callable[[], None],
) -> Corpus:
    """Returns the corpus with the teacher's logits, and prints its accuracy on the labelled reviews.

    The logits are computed once, without dropout, and kept in the run folder. frame: the reviews of the corpus, in its
    order.  sources: what `load` loads as the teacher; none: the built-in linear model.  check: called between batches
    """
    name = ", ".join(sources) or "the built-in linear model"

    def score_reviews() -> np.ndarray:
        teacher = ranks.in_turn(lambda: load(sources))
        order = ranks.by_first(lambda: class_order(teacher.labels, run.labels or SENTIMENT, name))
        return teacher.score_frame(frame, check)[:, order].astype(np.float32)

    logits = kept_logits(run.folder / "teacher.npy", score_reviews)
    known = corpus.labels >= 0
    accuracy = np.mean((logits.argmax(1) == corpus.labels)[known])
    more = "" if known.all() else f"; {np.sum(~known):,} reviews have its logits alone"
    print(f"teacher: {name}, accuracy {accuracy:.4f} on the training reviews{more}")
    for path in (path for path in map(user_path, sources) if (path / "log.jsonl").is_file()):
        for part in sorted(trained_parts(run, Run.open(path))):
            print(f"warning: {path} was trained on the {part} reviews: their accuracy will be too high")
    return replace(corpus, teacher=logits)


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
