"""Finds reviews of a data folder on which a run was trained: their score would be no measurement."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from data import Source, Splits, is_named_after
from data.options import COLUMNS, Options
from data.runs import Run

DUPLICATES = 0.01  # share of the reviews of another folder that may be training reviews by chance


def held_out(run: Run, trained: Options, source: Source, splits: Splits, read_own: Callable[[], Splits]) -> Splits:
    """Returns the splits of a folder, without validation reviews on which a run was trained.

    trained: the run's options.  source: how the folder was read.  read_own: reads the run's own reviews. Raises
    ValueError if validation reviews are split from reviews that the run trained on as a whole.
    """
    has_own = any(is_named_after(Path(path).name, "validation") for path in splits.files)
    if trained.train_on_validation:
        return without_trained(run, splits, has_own, read_own)
    recorded = run.config.get("files", {})

    def is_part(path: str, part: str) -> bool:
        """Returns whether a file is a part of a data folder by its name, or of the run by its options."""
        named = getattr(trained, part)
        return is_named_after(Path(path).name, part) or bool(
            named and os.path.realpath(path) == os.path.realpath(named)
        )

    of_run = {part: {d for path, d in recorded.items() if is_part(path, part)} for part in ("validation", "test")}
    whole = {*recorded.values()} - of_run["validation"] - of_run["test"]
    divided = {path: d for path, d in splits.files.items() if not is_named_after(Path(path).name, "test")}
    if trained.validation or of_run["validation"]:  # the run did not split its training reviews
        found = [path for path, d in divided.items() if d in whole]
        if source.data == trained.data and not trained.train:  # the built-in reviews have no file; a folder has one
            found = [source.data]
        if found and not has_own:
            raise ValueError(
                f"all training reviews of {found[0]} were training reviews of {run.folder}, which had a validation "
                "file of its own; score that file or the test file: --data FILE"
            )
        same = has_own and {*divided.values()} <= whole | of_run["validation"]
    else:
        same = {*divided.values()} <= whole
    as_trained = {*COLUMNS} <= {*source.of_run} and source.skip_bad_rows == trained.skip_bad_rows
    return splits if same and as_trained else without_trained(run, splits, has_own, read_own)


def without_trained(run: Run, splits: Splits, has_own: bool, read_own: Callable[[], Splits]) -> Splits:
    """Returns the splits of another folder, without validation reviews on which a run was trained.

    has_own: whether the folder has a validation file, whose reviews stay, as those of a test file do. Texts are
    compared, without quotes and white space; a share of DUPLICATES stays. Prints a warning if there are any, and if the
    run's reviews cannot be read.
    """
    if (trained := trained_texts(run, read_own)) is None:
        return splits
    for part in ("validation", "test"):
        frame = getattr(splits, part)
        seen = bare(frame).isin(trained)
        if count := int(seen.sum()):
            leave_out = part == "validation" and not has_own and count > DUPLICATES * len(frame)
            left = " and are not scored" if leave_out else ""
            print(f"warning: {count:,} of {len(frame):,} {part} reviews were training reviews of {run.folder}{left}")
            splits = splits._replace(validation=frame[~seen].reset_index(drop=True)) if leave_out else splits
    return splits


def warn_trained(run: Run, frame: pd.DataFrame, read_own: Callable[[], Splits]) -> None:
    """Prints a warning if a run was trained on reviews of a file, which are scored nevertheless."""
    if trained := trained_texts(run, read_own):
        count = int(bare(frame).isin(trained).sum())
        if count > DUPLICATES * len(frame):
            found = f"{count:,} of {len(frame):,} reviews were training reviews of {run.folder}"
            print(f"warning: {found}; their score is no measurement")


def trained_texts(run: Run, read_own: Callable[[], Splits]) -> set[str] | None:
    """Returns the training reviews of a run, `bare`. None, after a warning, if they cannot be read."""
    try:
        return set(bare(read_own().train))
    except (OSError, ValueError) as error:
        reason = str(error).partition("; ")[0]
        print(f"warning: it is not known on which of these reviews {run.folder} was trained: {reason}")
        return None


def bare(frame: pd.DataFrame) -> pd.Series:
    """Returns the reviews in lower case, without quotes, backslashes and white space, in which files differ."""
    return frame["review"].str.lower().str.replace(r"[\s\"'\\]+", "", regex=True)
