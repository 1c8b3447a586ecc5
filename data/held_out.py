"""Finds validation reviews of a data folder on which a run was trained: their score would be no measurement."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from data import Splits, is_named_after
from data.options import Options
from data.runs import Run

DUPLICATES = 0.01  # share of the validation reviews of another folder that may be training reviews of a run


def held_out(run: Run, trained: Options, folder: str, splits: Splits, read_own: Callable[[], Splits]) -> Splits:
    """Returns the splits of a folder, without validation reviews that are training reviews of a run.

    trained: the run's options.  folder: of the reviews, or `demo`.  read_own: reads the run's own reviews. Raises
    ValueError if validation reviews are split from reviews that the run trained on as a whole.
    """
    recorded = run.config.get("files", {})

    def is_part(path: str, part: str) -> bool:
        """Returns whether a file is a part of a data folder by its name, or of the run by its options."""
        return is_named_after(Path(path).name, part) or str(Path(path).resolve()) == getattr(trained, part)

    if not (trained.validation or any(is_part(path, "validation") for path in recorded)):
        divided = {d for path, d in splits.files.items() if not is_named_after(Path(path).name, "test")}
        same = divided <= {*recorded.values()}  # then the run split its training reviews in the same way
        return splits if same else without_trained(run, folder, splits, read_own)
    if any(is_named_after(Path(path).name, "validation") for path in splits.files):
        return splits
    whole = [d for path, d in recorded.items() if not (is_part(path, "validation") or is_part(path, "test"))]
    found = [path for path, d in splits.files.items() if d in whole and not is_named_after(Path(path).name, "test")]
    if folder == trained.data and not trained.train:  # the built-in reviews have no file; a folder has one digest
        found = [folder]
    if found:
        raise ValueError(
            f"all training reviews of {found[0]} were training reviews of {run.folder}, which had a validation file of "
            "its own; score that file or the test file: --data FILE"
        )
    return without_trained(run, folder, splits, read_own)


def without_trained(run: Run, folder: str, splits: Splits, read_own: Callable[[], Splits]) -> Splits:
    """Returns the splits of another folder, without its validation reviews if a run was trained on some of them.

    Letters and digits of the texts are compared. At most DUPLICATES of the reviews may be training reviews. A line says
    so, also if the run's reviews cannot be read.
    """
    try:
        trained = set(letters_of(read_own().train))
    except (OSError, ValueError) as error:
        print(f"warning: {run.folder} may have been trained on validation reviews of {folder}: {error}")
        return splits
    count, total = int(letters_of(splits.validation).isin(trained).sum()), len(splits.validation)
    if count:
        print(f"warning: {count:,} of {total:,} validation reviews of {folder} were training reviews of {run.folder}")
    return splits._replace(validation=splits.validation[:0]) if count > DUPLICATES * total else splits


def letters_of(frame: pd.DataFrame) -> pd.Series:
    """Returns the letters and digits of each review, in lower case: files differ in their quotes and spaces."""
    return frame["review"].str.lower().str.replace(r"\W+", "", regex=True)
