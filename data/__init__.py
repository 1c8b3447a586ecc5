"""Where reviews come from: `--data DIR`, else $IMDB_DIR, else data/imdb/, else the built-in reviews."""

import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data import demo
from data.imdb import UNKNOWN, as_frame, hash_rank, load_lines, load_reviews, split_train

HERE = Path(__file__).parent
LABELED, UNLABELED, TEST = "labeledTrainData.tsv", "unlabeledTrainData.tsv", "testData.tsv"


class Splits(NamedTuple):
    """Each a DataFrame id, review, sentiment; test and unlabelled may be empty."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    unlabelled: pd.DataFrame


def find_source(given: str) -> tuple[str, str]:
    """(source, why): `demo` or a path. Raises FileNotFoundError where a path that was asked for is not there."""
    if given == "demo":
        return "demo", "the built-in reviews"
    for path, why in ((given, "--data"), (os.environ.get("IMDB_DIR", ""), "$IMDB_DIR")):
        if path and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"{why} names {path}, which does not exist; --data demo uses the built-in reviews")
        if path:
            return str(Path(path).expanduser()), why
    if (HERE / "imdb").is_dir():
        return str(HERE / "imdb"), "data/imdb/ is there"
    return "demo", "the built-in reviews; --data DIR or $IMDB_DIR reads IMDB"


def find_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def load_splits(
    source: str,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
    with_unlabelled: bool = False,
) -> Splits:
    """The reviews of a source. Labelled ones are split 80/20, seed 42, by id: the same for every model. Unlabelled ones
    are read on request only: cleaning 50,000 takes a while.

    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
    """

    def read(path: Path | None) -> pd.DataFrame:
        return as_frame([]) if path is None else load_reviews(path, text_column, label_column, skip_bad_rows, cache)

    if source == "demo":
        labelled, test = as_frame(demo.reviews("train")), as_frame(demo.reviews("test"))
        return Splits(*split_train(labelled), test, as_frame([]))
    root = Path(source)
    if root.is_file():
        labelled, test, unlabelled = read(root), read(None), read(None)
    elif (acl := next((p for p in (root, root / "aclImdb") if (p / "train" / "pos").is_dir()), None)) is not None:
        everything, test = read(acl / "train"), read(acl / "test" if (acl / "test").is_dir() else None)
        known = everything["sentiment"] != UNKNOWN
        labelled, unlabelled = (
            everything[known].reset_index(drop=True),
            everything[~known].reset_index(drop=True),
        )
    elif (path := find_file(root, LABELED)) is not None:
        labelled, test = read(path), read(find_file(root, TEST))
        unlabelled = read(find_file(root, UNLABELED) if with_unlabelled else None)
    else:
        raise FileNotFoundError(
            f"{root} holds neither {LABELED}[.gz] nor aclImdb/; --data also takes one TSV or CSV file"
        )
    if (labelled["sentiment"] == UNKNOWN).any():
        raise ValueError(f"{root} has no label column to train on; name it with --label-column")
    return Splits(*split_train(labelled), test, unlabelled)


def load_texts(
    source: str, text_column: str = "", label_column: str = "", skip_bad_rows: bool = False, cache: Path | None = None
) -> Splits:
    """Texts to pretrain on: the training reviews and the unlabelled ones, with validation held out, or a file's (a TSV
    or CSV, or .txt with one text a line), 1 in 20 of them held out. Labels are forgotten, test reviews left out."""
    columns = (text_column, label_column, skip_bad_rows, cache)
    root = Path(source)
    if source == "demo" or root.is_dir():
        splits = load_splits(source, *columns, with_unlabelled=True)
        train, held_out = pd.concat([splits.train, splits.unlabelled], ignore_index=True), splits.validation
    else:
        texts = load_lines(root) if root.suffix == ".txt" else load_reviews(root, *columns)
        last = hash_rank(texts["id"], "held out").rank(pct=True) > 0.95
        train, held_out = texts[~last].reset_index(drop=True), texts[last].reset_index(drop=True)
        if not len(train) or not len(held_out):
            raise ValueError(f"{source}: {len(texts)} texts are too few to hold one out")
    return Splits(train.assign(sentiment=UNKNOWN), held_out.assign(sentiment=UNKNOWN), as_frame([]), as_frame([]))


def overlap(splits: Splits) -> dict[str, int]:
    """Reviews that stand in two places with the same text: reported, not hidden."""
    train, validation, test = (set(part["review"]) for part in splits[:3])
    labelled = len(splits.train) + len(splits.validation)
    return {
        "duplicates among the labelled": labelled - len(train | validation),
        "in training and validation": len(train & validation),
        "in labelled and test": len((train | validation) & test),
    }
