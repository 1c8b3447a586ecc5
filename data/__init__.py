"""Finds a data source and splits its reviews.

The source is the first of: `--train`, `--data`, $IMDB_DIR, data/imdb/, the built-in reviews. It is one of

    demo                the built-in reviews
    a folder            aclImdb/, Kaggle's files, or files named train, validation (valid, val, dev) and test, which
                        may be numbered: train-00000-of-00002.parquet, train-00001-of-00002.parquet
    a file              a table, see data/readers.py; with --validation and --test further ones
    imdb                Stanford's archive, which data/download.py fetches once into data/imdb/
"""

import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data import demo
from data.cleaning import clean_line
from data.columns import ABSENT
from data.download import fetch_imdb
from data.files import check_inside, in_shell
from data.imdb import Reviews, as_frame, join_reviews, joined_name, label_reviews, missing_labels, read_reviews
from data.labels import MEANING, SENTIMENT, UNKNOWN, canonical, quoted
from data.readers import KAGGLE, LABELED, NUMBERED, SPLIT_NAMES, SUBMISSION, TABLES, TEST, UNLABELED, Source
from data.shards import Shards
from data.splitting import split_train
from data.text_lines import check_column_flags, is_text_lines, note_labels, read_lines
from data.unpacking import COMPRESSED, REFUSED, base_name

__all__ = [
    "LABELED",
    "TEST",
    "UNLABELED",
    "Source",
    "Splits",
    "find_file",
    "find_source",
    "load_splits",
    "load_table",
    "overlap",
]
HERE = Path(__file__).parent


class Splits(NamedTuple):
    """The reviews of a source: four DataFrames id, review, sentiment. `test` and `unlabelled` may be empty.

    labels: the class names; sentiment is their index.  files: absolute path -> SHA-256 of each file that was read; of a
    folder of aclImdb, one digest of all its files; of the built-in reviews, the digest under the name `demo`.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    unlabelled: pd.DataFrame
    labels: tuple[str, ...] = SENTIMENT
    files: dict[str, str] = {}  # noqa: RUF012  (a default that is never changed)
    shards: Shards | None = None  # texts that are larger than memory, instead of the frames


class Parts(NamedTuple):
    """The files of each part of a source, several if they are numbered. For aclImdb, `train` and `test` are folders."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    unlabelled: tuple[Path, ...] = ()


# ------------------------------------------------------------------------------------------------------ the source


def find_source(given: str) -> tuple[str, str]:
    """Returns (source, reason): source is `demo` or an absolute path, reason is printed.

    given: the value of `--data`, or "". `imdb` is downloaded, unless a file or folder has this name. Raises
    FileNotFoundError if `given` or $IMDB_DIR does not exist.
    """
    if given == "demo":
        return "demo", "the built-in reviews"
    if given == "imdb" and not Path(given).exists():
        return str(fetch_imdb(HERE / "imdb")), "--data imdb"
    for path, origin in ((given, "--data"), (os.environ.get("IMDB_DIR", ""), "$IMDB_DIR")):
        if path and not Path(path).expanduser().exists():
            raise FileNotFoundError(
                f"{origin} names {path}, which does not exist; --data demo uses the built-in reviews, --data imdb "
                "downloads Stanford's"
            )
        if path:
            return str(Path(path).expanduser().absolute()), origin
    if (HERE / "imdb").is_dir():
        return str(HERE / "imdb"), "data/imdb/ exists"
    return "demo", "the built-in reviews; --data imdb downloads IMDB; --data DIR or $IMDB_DIR reads it"


def find_file(folder: Path, name: str) -> tuple[Path, ...]:
    """Returns the path of `name`, `name`.gz or `name`.zip in a folder, () if none of them exists."""
    paths = (folder / f"{name}{ending}" for ending in ("", *COMPRESSED))
    found = tuple(path for path in paths if path.is_file())[:1]
    return tuple(check_inside(path, folder, "name it with --train") for path in found)


def find_acl(root: Path) -> Path | None:
    """Returns the folder of Stanford's data set, `root` or `root`/aclImdb, None if neither contains train/pos/."""
    return next((folder for folder in (root, root / "aclImdb") if (folder / "train" / "pos").is_dir()), None)


def existing(path: str | Path, flag: str = "") -> Path:
    """Returns the absolute path of a file. Raises FileNotFoundError that names the flag, if there is one."""
    found = Path(path).expanduser().absolute()
    if not found.exists() or found.is_dir():
        problem = "is a folder; name a file in it" if found.is_dir() else "does not exist"
        if found.name.startswith("pipe:["):
            problem = "is a pipe, which cannot be read twice; write it to a file first"
        raise FileNotFoundError(f"{flag and flag + ' '}{path} {problem}")
    return found


def find_parts(source: Source) -> Parts:
    """Returns the files of a source that is not `demo`. --validation and --test replace those of a folder.

    Raises FileNotFoundError for a file that does not exist or a folder without files to train on, and ValueError for
    --train together with --data.
    """
    if source.train and source.data:
        raise ValueError(f"--train {source.train} replaces --data {source.data}; give one of them")
    root = Path(source.data).expanduser().absolute()
    if source.train:
        parts = Parts((existing(source.train, "--train"),))
    elif root.is_dir():
        parts = find_in_folder(root)
    elif root.exists():
        parts = Parts((root,))
    else:
        raise FileNotFoundError(f"{source.data} does not exist")
    parts = with_named_files(parts, source)
    if not source.train and root.is_dir():
        print_unread(root, parts, [part for part in ("validation", "test") if getattr(source, part)])
    return parts


def with_named_files(parts: Parts, source: Source) -> Parts:
    """Replaces the files that --validation and --test name. Raises FileNotFoundError for one that does not exist."""
    given = {name: (existing(path, f"--{name}"),) for name in ("validation", "test") if (path := getattr(source, name))}
    return parts._replace(**given)


def find_in_folder(root: Path) -> Parts:
    """Returns the files of a folder: aclImdb/, Kaggle's files, or files named after the splits."""
    if (folder := find_acl(root)) is not None:
        return Parts((folder / "train",), test=(folder / "test",) if (folder / "test").is_dir() else ())
    if train := find_file(root, LABELED):
        return Parts(train, test=find_file(root, TEST), unlabelled=find_file(root, UNLABELED))
    found = {part: find_part(root, part) for part in SPLIT_NAMES}
    if not found["train"]:
        raise without_training_file(root)
    return Parts(**found)


def without_training_file(root: Path) -> FileNotFoundError:
    """Returns the error for a folder without files to train on. The way out depends on what the folder holds."""
    tables = tables_in(root)
    inner = sorted(path for path in root.iterdir() if path.is_dir() and tables_of(path, "train"))
    way_out = "it holds no table"
    if tables:
        way_out = f"it holds {quoted(tables)}: name one with --data or --train"
    elif inner:  # a dataset of the hub has a folder for each configuration
        way_out = f"it holds the folder {inner[0].name}: name it with --data {in_shell(inner[0])}"
    elif texts := sorted(path.name for ending in ("", *COMPRESSED) for path in root.glob(f"*.txt{ending}")):
        way_out = f"it holds {quoted(texts)}: name one with --train, others with --validation and --test"
    elif kinds := sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if is_class_folder(path)):
        shown = quoted([str(path.relative_to(root)) for path in kinds])
        way_out = f"it holds {shown}: move their .txt files into train/pos and train/neg"
    return FileNotFoundError(
        f"{root} holds neither {LABELED}[.gz] nor aclImdb/ nor a file train.csv, .tsv, .jsonl, .json or .parquet; "
        + way_out
    )


def is_class_folder(path: Path) -> bool:
    """Returns whether a path is a folder with a usual name of a class: pos, neg, positive, negative, 0, 1, …"""
    return path.name.lower() in MEANING and path.is_dir()


def print_unread(root: Path, parts: Parts, given: Sequence[str] = ()) -> None:
    """Prints the tables of a data folder that are not read, since a part may have an unusual name, and what is named
    after a part but is not read. given: the parts that a flag replaces"""
    read = {os.path.realpath(path) for paths in parts for path in paths}
    read |= {str(Path(path).parent) for path in read}  # of aclImdb, parts are folders
    hidden = (
        SUBMISSION.lower(),
        ".",
        *(name for part in given for name in SPLIT_NAMES[part]),
    )  # given: replaced by a flag
    names = {*tables_in(root), *named_after_parts(root)}
    unread = sorted(
        name for name in names if os.path.realpath(root / name) not in read and not name.lower().startswith(hidden)
    )
    if unread:
        print(f"note: {root}: not read: {quoted(unread)}; a file of a part is named train, validation or test")


def named_after_parts(root: Path) -> list[str]:
    """Returns the names of folders, text files and files of unsupported formats that are named after a part."""
    names = [*itertools.chain(*SPLIT_NAMES.values()), *(Path(name).stem for name in KAGGLE.values()), "aclImdb"]
    begins, endings = re.compile(rf"({'|'.join(names)})\b", re.IGNORECASE), (".txt", *REFUSED, *COMPRESSED)
    return [p.name for p in root.iterdir() if begins.match(p.name) and (p.is_dir() or p.suffix.lower() in endings)]


def tables_in(root: Path) -> list[str]:
    """Returns the names of the tables in a folder."""
    return sorted(path.name for path in root.iterdir() if path.is_file() and part_of(path.name, ".+"))


def part_of(name: str, pattern: str) -> bool:
    """Returns whether a file name is `pattern`, with or without numbers, and the ending of a table."""
    endings = "|".join(map(re.escape, TABLES))
    return bool(re.fullmatch(rf"({pattern})({NUMBERED.pattern})?({endings})(\.gz|\.zip)?", name, re.IGNORECASE))


def is_named_after(name: str, part: str) -> bool:
    """Returns whether a file name is one of those that a data folder has for a part: testData.tsv.gz, valid.csv, …"""
    return part_of(name, "|".join(SPLIT_NAMES[part])) or base_name(name) == KAGGLE.get(part)


def tables_of(root: Path, part: str) -> list[Path]:
    """Returns the tables in a folder that are named after a part, sorted by name."""
    return sorted(path for path in root.iterdir() if path.is_file() and part_of(path.name, "|".join(SPLIT_NAMES[part])))


def is_numbered(files: Sequence[Path]) -> bool:
    """Returns whether one of the files is one of several: train-00000-of-00002.parquet."""
    return any(int(numbers[2]) > 1 for path in files if (numbers := NUMBERED.search(path.name)))


def find_part(root: Path, part: str) -> tuple[Path, ...]:
    """Returns the only table of a part in a folder, or all of a numbered one in their order; () if there is none.

    Raises ValueError for two tables, and FileNotFoundError if a numbered one is missing.
    """
    found = tables_of(root, part)
    wanted = [found[0].name] if found else []
    if found and (numbers := NUMBERED.search(found[0].name)):
        wanted = [NUMBERED.sub(f"-{n:05}-of-{numbers[2]}", found[0].name) for n in range(int(numbers[2]))]
    if {path.name for path in found} - set(wanted):
        listed = ", ".join(path.name for path in found[:5])
        way_out = "keep one of them, or name the files: train.py --train FILE --validation FILE"
        raise ValueError(f"{root} holds {listed} for one split; {way_out}")
    if missing := [name for name in wanted if not (root / name).is_file()]:
        raise FileNotFoundError(
            f"{root} lacks {quoted(missing)}; fetch what is missing, or name one file: train.py --train FILE"
        )
    return tuple(check_inside(path, root, "name it with --train, --validation or --test") for path in found)


# ------------------------------------------------------------------------------------------------ labelled reviews


class Loader:
    """Reads the files of a source and collects their digests."""

    def __init__(self, source: Source, cache: Path | None) -> None:
        self.source, self.cache = source, cache
        self.files: dict[str, str] = {}

    def read(self, paths: Sequence[Path], optional_label: bool = False, texts_only: bool = False) -> Reviews:
        """Reads the files of a part, or one folder of aclImdb. texts_only: their label columns are not read."""
        source = replace(self.source, label_column=ABSENT) if texts_only else self.source
        files = [read_reviews(path, source, self.cache, optional_label=optional_label) for path in paths]
        for reviews in files:
            self.record(reviews)
        return join_reviews(files)

    def record(self, reviews: Reviews) -> None:
        """Records the digest of a file; the folders of aclImdb have one digest together."""
        path, digest = reviews.path, reviews.digest
        if path.is_dir():
            path = path.parent
            digest = hashlib.sha256((self.files.get(str(path), "") + digest).encode()).hexdigest()
        self.files[str(path)] = digest


def load_splits(
    source: Source,
    cache: Path | None = None,
    with_unlabelled: bool = False,
    labels: tuple[str, ...] | None = None,
    split: bool = True,
) -> Splits:
    """Loads a source and splits its labelled reviews 80/20 by the hash of seed 42 and id, the same for every model.

    A source with validation reviews of its own is not split, and none if `split` is not set. labels: the classes, to
    which labels are mapped by name; None: those of the training reviews. Reviews without a label are unlabelled ones.
    Kaggle's file of unlabelled reviews and files named after them are read only if with_unlabelled is set, since
    cleaning 50,000 reviews is slow; train/unsup of aclImdb is always read. Raises FileNotFoundError or ValueError; the
    message names the file and the defect.
    """
    loader = Loader(source, cache)
    if source.data == "demo" and not source.train:
        labelled, test = as_frame(demo.reviews("train")), as_frame(demo.reviews("test"))
        if labels is not None and tuple(map(canonical, labels)) != SENTIMENT:
            raise ValueError(f"the built-in reviews have the classes negative and positive, not {quoted(labels)}")
        classes: tuple[str, ...] = SENTIMENT
        loader.files["demo"] = demo.digest()
        parts, unlabelled = with_named_files(Parts((Path("demo"),)), source), as_frame([])
    else:
        parts, test = find_parts(source), as_frame([])
        labelled, unlabelled, classes = read_labelled(loader, parts.train, labels)
    if labels is None:
        check_classes(labelled, classes, joined_name(parts.train))
    if parts.test:
        test = label_test(loader, parts.test, classes)
    if parts.validation:
        train, validation = labelled, read_labelled(loader, parts.validation, classes, validation=True)[0]
    else:
        train, validation = split_train(labelled, labels=classes) if split else (labelled, as_frame([]))
    if with_unlabelled and parts.unlabelled:
        further = label_reviews(loader.read(parts.unlabelled, texts_only=True), classes)[0]
        unlabelled = pd.concat([unlabelled, further], ignore_index=True) if len(unlabelled) else further
    return Splits(train, validation, test, unlabelled, classes, loader.files)


def read_labelled(
    loader: Loader,
    paths: Sequence[Path],
    labels: tuple[str, ...] | None = None,
    validation: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Reads the files of a part whose reviews need labels: (labelled reviews, reviews without a label, classes).

    labels: the classes; None: those of the files.  validation: whether it is the part that validates, for messages.
    Raises ValueError if there is no label.
    """
    reviews = loader.read(paths)
    frame, names = label_reviews(reviews, labels)
    has_label = frame["sentiment"] != UNKNOWN
    if not has_label.any():
        way = "; without validation reviews of its own, a run holds out a fifth of the training reviews"
        raise ValueError(missing_labels(reviews) + way * validation)
    if not reviews.path.is_dir() and not has_label.all():
        rest = "not scored" if validation else "unlabelled reviews"
        print(f"{reviews.path}: {(~has_label).sum():,} of {len(frame):,} reviews have no label and are {rest}")
    return frame[has_label].reset_index(drop=True), frame[~has_label].reset_index(drop=True), names


def label_test(loader: Loader, paths: Sequence[Path], labels: tuple[str, ...]) -> pd.DataFrame:
    """Reads test reviews, which need no labels."""
    reviews = loader.read(paths, optional_label=True)
    if not loader.source.label_column:
        note_similar(reviews)
    elif not reviews.label_column and loader.source.label_column != ABSENT:
        way_out = "give the columns of all files one title, or leave out --label-column if all have a usual one"
        print(f"note: {reviews.path}: its reviews are not scored; {way_out}")
    frame = label_reviews(reviews, labels)[0]
    unknown = int((frame["sentiment"] == UNKNOWN).sum())
    if 0 < unknown < len(frame):
        print(f"{reviews.path}: {unknown:,} of {len(frame):,} reviews have no label and are not scored")
    return frame


def note_similar(reviews: Reviews) -> None:
    """Prints that a file has no labels although a column looks like labels."""
    if reviews.likely or reviews.possible:
        print(f"note: {missing_labels(reviews)}")


def check_classes(train: pd.DataFrame, labels: tuple[str, ...], path: Path) -> None:
    """Raises ValueError if there is one class only; prints the classes with very few reviews."""
    counts = train["sentiment"].value_counts()
    if len(counts) < 2:
        raise ValueError(f"{path}: all reviews have the class {labels[counts.index[0]]!r}; two are needed to train")
    if rare := [f"{labels[number]!r} ({count})" for number, count in counts.items() if count < 4]:
        print(f"warning: {path}: classes with very few reviews: {', '.join(rare)}")


def load_table(
    path: str | Path,
    source: Source,
    labels: tuple[str, ...] | None = None,
    keep_empty: bool = False,
    needs_labels: bool = True,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Reads all rows of one file, in their order: (DataFrame id, review, sentiment, classes).

    labels: the classes, to which labels are mapped by name; None: those of the file, () if it has no labels.
    keep_empty: empty reviews are rows.  needs_labels: False: labels of a column that the command line does not name are
    left out with a note if they are none of `labels`. A missing label column is noted, not an error. A .txt file holds
    one text a line, and the ids are line numbers, unless its first line is the header of a table. Raises
    FileNotFoundError, or ValueError for a label that is none of `labels` and for a file that cannot be read.
    """
    path = existing(path)
    if is_text_lines(path, source):
        check_column_flags(path, source)
        reviews = read_lines(path, source, keep_empty=True)
        note_labels(reviews)
        lines = ((number, text) for number, (_, text, _) in enumerate(reviews.records, 1))
        records = [(str(number), clean_line(text, number, path), "") for number, text in lines]
        reviews = reviews._replace(records=[record for record in records if keep_empty or record[1]])
    else:
        reviews = read_reviews(path, source, keep_empty=keep_empty, optional_label=True)
    note_similar(reviews)
    try:
        return label_reviews(reviews, labels, needs_labels)
    except ValueError as error:
        is_named = bool(source.label_column) and "label_column" not in source.of_run
        if needs_labels or is_named:
            raise
        print(f"the labels are not read: {error}")
        unknown = [(key, review, "") for key, review, _ in reviews.records]
        return label_reviews(reviews._replace(records=unknown), labels)


def overlap(splits: Splits) -> dict[str, int]:
    """Counts reviews that have the text of another one. They are reported, not removed."""
    train, validation = (set(frame["review"]) for frame in (splits.train, splits.validation))
    labelled = len(splits.train) + len(splits.validation)
    return {
        "duplicates among the labelled reviews": labelled - len(train | validation),
        "validation reviews that are also in training": int(splits.validation["review"].isin(train).sum()),
        "test reviews that are also labelled": int(splits.test["review"].isin(train | validation).sum()),
    }
