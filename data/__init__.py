"""Finds a data source and splits its reviews.

The source is the first of: `--data`, $IMDB_DIR, data/imdb/, the built-in reviews.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data import demo
from data.imdb import UNKNOWN, as_frame, hash_rank, load_lines, load_reviews, split_train

HERE = Path(__file__).parent
LABELED, UNLABELED, TEST = "labeledTrainData.tsv", "unlabeledTrainData.tsv", "testData.tsv"
HELD_OUT_TEXTS = 0.05  # fraction of a file of texts that pretraining validates on


class Splits(NamedTuple):
    """The reviews of a source: four DataFrames id, review, sentiment. `test` and `unlabelled` may be empty."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    unlabelled: pd.DataFrame


def find_source(given: str) -> tuple[str, str]:
    """Returns (source, reason): source is `demo` or a path, reason is printed.

    given: the value of `--data`, or "". Raises FileNotFoundError if `given` or $IMDB_DIR does not exist.
    """
    if given == "demo":
        return "demo", "the built-in reviews"
    for path, origin in ((given, "--data"), (os.environ.get("IMDB_DIR", ""), "$IMDB_DIR")):
        if path and not Path(path).expanduser().exists():
            raise FileNotFoundError(
                f"{origin} names {path}, which does not exist; --data demo uses the built-in reviews"
            )
        if path:
            return str(Path(path).expanduser()), origin
    if (HERE / "imdb").is_dir():
        return str(HERE / "imdb"), "data/imdb/ exists"
    return "demo", "the built-in reviews; --data DIR or $IMDB_DIR reads IMDB"


def find_file(folder: Path, name: str) -> Path | None:
    """Returns the path of `name` or `name`.gz in a folder, None if neither exists."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


# ------------------------------------------------------------------------------------------------ labelled reviews


def load_splits(
    source: str,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
    with_unlabelled: bool = False,
) -> Splits:
    """Loads a source and splits its labelled reviews 80/20 by the hash of seed 42 and id, the same for every model.

    Kaggle's unlabelled reviews are read only if with_unlabelled is set: cleaning 50,000 reviews is slow.
    Raises FileNotFoundError or ValueError; the message names the file and the defect.
    """
    read = partial(
        load_reviews, text_column=text_column, label_column=label_column, skip_bad_rows=skip_bad_rows, cache=cache
    )
    return split_source(source, read=read, with_unlabelled=with_unlabelled)


def split_source(source: str, read: Callable[[Path], pd.DataFrame], with_unlabelled: bool) -> Splits:
    """Splits the reviews of `demo` or of a path. read: reads one file or one folder of aclImdb."""
    if source == "demo":
        labelled, test, unlabelled = as_frame(demo.reviews("train")), as_frame(demo.reviews("test")), as_frame([])
    else:
        labelled, test, unlabelled = read_source(Path(source), read=read, with_unlabelled=with_unlabelled)
    if (labelled["sentiment"] == UNKNOWN).any():
        raise ValueError(f"{source} has no label column to train on; name it with --label-column")
    train, validation = split_train(labelled)
    return Splits(train=train, validation=validation, test=test, unlabelled=unlabelled)


def read_source(
    root: Path, read: Callable[[Path], pd.DataFrame], with_unlabelled: bool
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Reads (labelled, test, unlabelled) reviews of a file, of aclImdb/, or of a folder with Kaggle's files.

    Raises FileNotFoundError for any other folder.
    """
    if root.is_file():
        return read(root), as_frame([]), as_frame([])
    if (folder := find_acl(root)) is not None:
        return read_acl_splits(folder, read)
    if find_file(root, LABELED) is None:
        raise FileNotFoundError(
            f"{root} holds neither {LABELED}[.gz] nor aclImdb/; --data also takes one TSV or CSV file"
        )
    names = (LABELED, TEST, UNLABELED) if with_unlabelled else (LABELED, TEST)
    frames = {name: read(path) for name in names if (path := find_file(root, name)) is not None}
    return frames[LABELED], frames.get(TEST, as_frame([])), frames.get(UNLABELED, as_frame([]))


def find_acl(root: Path) -> Path | None:
    """Returns the folder of Stanford's data set, `root` or `root`/aclImdb, None if neither contains train/pos/."""
    return next((folder for folder in (root, root / "aclImdb") if (folder / "train" / "pos").is_dir()), None)


def read_acl_splits(
    folder: Path, read: Callable[[Path], pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Reads (labelled, test, unlabelled) reviews of aclImdb/. train/unsup/ contains the unlabelled reviews."""
    everything = read(folder / "train")
    test = read(folder / "test") if (folder / "test").is_dir() else as_frame([])
    has_label = everything["sentiment"] != UNKNOWN
    return everything[has_label].reset_index(drop=True), test, everything[~has_label].reset_index(drop=True)


def overlap(splits: Splits) -> dict[str, int]:
    """Counts reviews that occur twice with the same text. They are reported, not removed."""
    train, validation, test = (set(frame["review"]) for frame in (splits.train, splits.validation, splits.test))
    labelled = len(splits.train) + len(splits.validation)
    return {
        "duplicates among the labelled reviews": labelled - len(train | validation),
        "in training and validation": len(train & validation),
        "in labelled and test reviews": len((train | validation) & test),
    }


# --------------------------------------------------------------------------------------------- texts for pretraining


def load_texts(
    source: str,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
) -> Splits:
    """Loads texts for pretraining, with all sentiments UNKNOWN and without test reviews.

    `demo` or a folder: trains on the training and the unlabelled reviews, validates on the validation reviews.
    A TSV, a CSV or a .txt file (one text a line): validates on 5 % of its texts.
    """
    read = partial(
        load_reviews, text_column=text_column, label_column=label_column, skip_bad_rows=skip_bad_rows, cache=cache
    )
    path = Path(source)
    if source == "demo" or path.is_dir():
        splits = split_source(source, read=read, with_unlabelled=True)
        train = pd.concat([splits.train, splits.unlabelled], ignore_index=True)
        held_out = splits.validation
    else:
        train, held_out = hold_out_texts(load_lines(path) if path.suffix == ".txt" else read(path), source)
    train, held_out = train.assign(sentiment=UNKNOWN), held_out.assign(sentiment=UNKNOWN)
    return Splits(train=train, validation=held_out, test=as_frame([]), unlabelled=as_frame([]))


def hold_out_texts(texts: pd.DataFrame, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits texts into (training, held out) by the hash of the id. Raises ValueError if one of them is empty."""
    is_held_out = hash_rank(texts["id"], "held out").rank(pct=True) > 1 - HELD_OUT_TEXTS
    train, held_out = texts[~is_held_out].reset_index(drop=True), texts[is_held_out].reset_index(drop=True)
    if not len(train) or not len(held_out):
        raise ValueError(f"{source}: {len(texts)} texts are too few to hold one out")
    return train, held_out
