"""Finds reviews on which a run was trained: their score would be no measurement."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from data import Source, Splits, is_named_after
from data.checked import show
from data.options import COLUMNS, Options
from data.readers import SPLIT_NAMES
from data.runs import Run

UNTRAINED = ("test", "unlabelled")  # parts whose labels no run is trained on
DUPLICATES = 0.01  # share of the reviews of another folder that may be training reviews by chance


def files_of(run: Run) -> dict[str, str]:
    """Returns the digests of the files of a run by their part: train, validation, test or unlabelled.

    The part of a file follows from the options or its name; any other file is listed under its name.
    """
    options, files = run.config["options"], run.config.get("files", {})
    flags = {"train": options.get("train") or options.get("data")}  # --data may name one file
    flags |= {part: options.get(part) for part in ("validation", "test")}
    by_path = {os.path.realpath(path): digest for path, digest in files.items()}
    given = {part: real for part, path in flags.items() if path and (real := os.path.realpath(path)) in by_path}
    parts = {part: by_path[real] for part, real in given.items()}
    for path, digest in sorted(files.items()):
        if os.path.realpath(path) in given.values():
            continue
        name = Path(path).name
        named = (part for part in SPLIT_NAMES if is_named_after(name, part) and not options.get(part))
        part = next(named, name)
        parts[part] = parts.get(part, "") + digest  # numbered files are one part
    return parts


def ancestors(weights: str) -> Iterator[Run]:
    """Yields the run whose best model `weights` is, the run from whose best model that one started, and so on.

    Ends at a folder whose config.json is missing or has no options.
    """
    seen: set[Path] = set()
    while (run := Run.of_weights(weights)) is not None and run.folder not in seen and run.config_file.is_file():
        seen.add(run.folder)
        if not isinstance(options := run.config.get("options"), dict):
            return
        yield run
        weights = str(options.get("weights", "none"))


def trained_parts(run: Run, other: Run) -> set[str]:
    """Returns the parts of `run`, of `validation` and `test`, that contain reviews on which `other` was trained.

    Compares the digests of their files. Two runs that split the same file hold out the same reviews.
    """
    mine, theirs = files_of(run), files_of(other)
    run_trains_all, other_trains_all = (one.config["options"].get("train_on_validation", False) for one in (run, other))
    held = UNTRAINED if other_trains_all else (*UNTRAINED, "validation")
    trained = {digest for part, digest in theirs.items() if part not in held}
    found = {part for part in ("validation", "test") if mine.get(part) in trained}
    own = {digest for part, digest in mine.items() if part not in UNTRAINED}  # of a run that splits its file
    if "validation" not in mine and (other_trains_all or "validation" in theirs) and own & trained:
        found.add("validation")
    return found - {"validation"} if run_trains_all else found


def check_start(run: Run, without_labels: Callable[[Run], bool]) -> None:
    """Raises ValueError if the weights of a run were trained on its validation reviews; prints a warning for its test.

    without_labels: whether a run was pretraining
    """
    for before in ancestors(run.config["options"]["weights"]):
        parts = set() if without_labels(before) else trained_parts(run, before)
        if "validation" in parts:
            way_out = "add --train-on-validation, or name other reviews: --validation FILE"
            raise ValueError(f"{before.folder} was trained on the validation reviews of this run; {way_out}")
        if "test" in parts:
            print(f"warning: {before.folder} was trained on the test reviews: their score will be no measurement")


def held_out(run: Run, trained: Options, source: Source, splits: Splits, read_own: Callable[[], Splits]) -> Splits:
    """Returns the splits of a folder, without validation reviews on which a run was trained.

    trained: the run's options.  source: how the folder was read.  read_own: reads the run's own reviews. Raises
    ValueError if validation reviews are split from reviews that the run trained on as a whole.
    """
    if trained.train_on_validation:
        return without_trained(run, splits, has_own=False, read_own=read_own)
    recorded = run.config.get("files", {})

    def is_part(path: str, part: str) -> bool:
        """Returns whether a file is a part of a data folder by its name, or of the run by its options."""
        named = getattr(trained, part)
        return is_named_after(Path(path).name, part) or bool(
            named and os.path.realpath(path) == os.path.realpath(named)
        )

    has_own = any(is_named_after(Path(path).name, "validation") for path in splits.files)
    of_run = {part: {d for path, d in recorded.items() if is_part(path, part)} for part in ("validation", "test")}
    whole = {*recorded.values()} - of_run["validation"] - of_run["test"]
    divided = {path: d for path, d in splits.files.items() if not is_named_after(Path(path).name, "test")}
    if trained.validation or of_run["validation"]:  # the run did not split its training reviews
        found = [path for path, d in divided.items() if d in whole]
        if not whole and source.data == trained.data and not trained.train:  # an older run recorded no digest of them
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

    has_own: whether the folder has a validation file that was one when the run was trained: its reviews stay, as those
    of a test file do. Texts are compared, without quotes and white space; a share of DUPLICATES stays. Prints a warning
    if there are any, and if the run's reviews cannot be read.
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
        reason = show(str(error).partition("; ")[0], 300)
        print(f"warning: it is not known on which of these reviews {run.folder} was trained: {reason}")
        return None


def bare(frame: pd.DataFrame) -> pd.Series:
    """Returns the reviews in lower case, without quotes, backslashes and white space, in which files differ."""
    return frame["review"].str.lower().str.replace(r"[\s\"'\\]+", "", regex=True)
