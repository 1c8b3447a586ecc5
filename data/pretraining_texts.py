"""Loads texts for pretraining, whose labels are not read, from the sources of data/__init__.py and from .txt files."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from data import (
    Loader,
    Source,
    Splits,
    existing,
    find_acl,
    find_file,
    find_part,
    find_parts,
    is_numbered,
    load_splits,
    tables_of,
)
from data.imdb import as_frame, joined_name, label_reviews
from data.labels import SENTIMENT, UNKNOWN
from data.readers import LABELED
from data.shards import Shards
from data.splitting import hash_order
from data.text_lines import check_column_flags, is_text_lines, read_lines

HELD_OUT_TEXTS = 0.05  # fraction of a file of texts that pretraining validates on


def load_texts(source: Source, cache: Path | None = None) -> Splits:
    """Loads texts for pretraining, with all sentiments UNKNOWN and without test reviews.

    `demo`, aclImdb or Kaggle's files: validates on the file --validation and trains on all reviews; without
    --validation, validates on the validation reviews and trains on the others. Other files, and a .txt file with one
    text a line: validates on the validation file, or on 5 % of the texts.
    """
    loader = Loader(source, cache)
    if source.data == "demo" or find_published(source):
        own = replace(source, validation="")
        splits = load_splits(own, cache, with_unlabelled=True, split=not source.validation)
        train, held_out = pd.concat([splits.train, splits.unlabelled], ignore_index=True), splits.validation
        loader.files = splits.files
        if source.validation:
            path = existing(source.validation, "--validation")
            lines = is_text_lines(path, source)
            if lines and source.data == "demo":
                check_column_flags(path, source)
            held_out = read_texts(loader, path, lines)
    elif (shards := Shards.find(source, train_table(source), cache)) is not None:
        empty = as_frame([])
        return Splits(empty, empty, empty, empty, files=shards.files, shards=shards)
    else:
        parts = find_parts(source)
        kinds = {path: is_text_lines(path, source) for path in (*parts.train, *parts.unlabelled, *parts.validation)}
        if all(kinds.values()) and len(kinds) == 1:
            check_column_flags(parts.train[0], source)  # no other file is read, which could have the column
        frames = [read_texts(loader, path, kinds[path]) for path in (*parts.train, *parts.unlabelled)]
        train = pd.concat(frames, ignore_index=True)
        if parts.validation:
            frames = [read_texts(loader, path, kinds[path]) for path in parts.validation]
            held_out = pd.concat(frames, ignore_index=True)
        else:
            train, held_out = hold_out_texts(train, str(joined_name(parts.train)))
    train, held_out = train.assign(sentiment=UNKNOWN), held_out.assign(sentiment=UNKNOWN)
    return Splits(train, held_out, as_frame([]), as_frame([]), files=loader.files)


def find_published(source: Source) -> bool:
    """Returns whether the source is a folder of aclImdb or of Kaggle's files."""
    root = Path(source.data).expanduser()
    found = not source.train and root.is_dir()
    return found and (find_acl(root) is not None or bool(find_file(root, LABELED)))


def train_table(source: Source) -> Path | None:
    """Returns the table named train of the folder of a source, None if there is none or if there are several."""
    root = Path(source.data).expanduser().absolute()
    if source.train or not root.is_dir() or is_numbered(tables_of(root, "train")):
        return None
    return next(iter(find_part(root, "train")), None)


def read_texts(loader: Loader, path: Path, lines: bool) -> pd.DataFrame:
    """Reads the texts of a file. lines: whether it holds one text a line"""
    if lines:
        reviews = read_lines(path, loader.source)
        loader.record(reviews)
    else:
        reviews = loader.read([path], texts_only=True)
    return label_reviews(reviews._replace(label_column=""), SENTIMENT)[0]


def hold_out_texts(texts: pd.DataFrame, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits texts into (training, held out) by the hash of the id. Raises ValueError if one of them is empty."""
    is_held_out = (hash_order(texts, "held out") + 1) / len(texts) > 1 - HELD_OUT_TEXTS
    train, held_out = texts[~is_held_out].reset_index(drop=True), texts[is_held_out].reset_index(drop=True)
    if not len(train) or not len(held_out):
        few = f"{source}: {len(texts)} texts are too few to hold one out"
        raise ValueError(f"{few}; add texts, or name a file of texts to validate on with --validation FILE")
    return train, held_out
