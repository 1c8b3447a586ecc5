"""Reads reviews from Kaggle's TSVs, from Stanford's aclImdb/, and from any TSV or CSV with a text and a label column.

The Large Movie Review Dataset: Maas et al. 2011, ACL (P11-1015): 25,000 labelled, 25,000 test, 50,000 unlabelled
reviews. Kaggle's "Bag of Words Meets Bags of Popcorn" contains the same reviews. Its ids end in the star rating (1–10),
so its test labels are known: a rating of 5 or more is positive (there are no 5s and 6s).

A review becomes one row of a DataFrame: id (str), review (str, cleaned), sentiment (1, 0, or -1 if unknown).
"""

import csv
import gzip
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import pandas as pd
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

from data.files import replacing

TEXT_NAMES = ("review", "text", "sentence", "content", "comment")
LABEL_NAMES = ("sentiment", "label", "polarity", "target")
LABELS = {"0": 0, "1": 1, "negative": 0, "positive": 1, "neg": 0, "pos": 1}
UNKNOWN = -1
BREAKS = re.compile(r"</?(?:br|p|div|li|tr|td|hr|h[1-6]|ul|ol|blockquote)\b[^<>]*>", re.IGNORECASE)
NO_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")  # a "<" that does not open a tag: `a < b`, `<3`, `<!--`
NO_ENTITY = re.compile(r"&(?!#?\w+;)")  # an "&" that does not open an entity: `AT&T`
CLEANING_VERSION = 1  # part of the cache key: increase it when `clean` changes


class Row(NamedTuple):
    """One review of a file."""

    number: int  # line of the file, 1 = the header
    id: str
    review: str  # before cleaning
    label: str | None  # None: the file has no labels


class Columns(NamedTuple):
    """Column numbers of a table."""

    text: int
    label: int | None
    id: int | None
    width: int  # number of columns


def clean(text: str) -> str:
    """Converts HTML to plain text.

    Line breaks and block tags become a space, other tags are removed, entities are decoded, and a run of whitespace
    becomes one space.
    """
    text = NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", BREAKS.sub(" ", text)))
    if "<" in text or "&" in text:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a review may look like a file name
            text = BeautifulSoup(text, "html.parser").get_text()
    return re.sub(r"[ \t\r\n]+", " ", text).strip(" ")


# ------------------------------------------------------------------------------------------------------- readers


def open_text(path: Path) -> TextIO:
    """Opens a UTF-8 file, decompressed if its name ends in .gz, with its own line ends."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="")


def read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of each record.

    A `.csv` file follows RFC 4180. In any other file a record is one line, tabs separate the fields, and quotes are
    literal except one pair around a field (Kaggle's quoting=3 files).
    """
    with open_text(path) as file:
        if ".csv" in path.suffixes:
            limit = csv.field_size_limit(sys.maxsize)
            try:
                reader = csv.reader(file)
                yield from ((reader.line_num, fields) for fields in reader)
            finally:
                csv.field_size_limit(limit)
        else:
            for number, line in enumerate(file, 1):
                yield number, [unquote(field) for field in line.rstrip("\r\n").split("\t")]


def unquote(field: str) -> str:
    """Removes one pair of quotes around a field and the backslash before each quote inside."""
    if len(field) > 1 and field[0] == field[-1] == '"':
        field = field[1:-1]
    return field.replace('\\"', '"')


def find_column(name: str, usual_names: tuple[str, ...], header: list[str], path: Path, flag: str) -> int | None:
    """Returns the number of the column `name`; without a name, of the only column with a usual name, or None.

    flag: the option that names the column, for error messages. Raises ValueError if `name` is not in the header or if
    several columns have a usual name.
    """
    if name:
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}; it has: {', '.join(header)}")
        return header.index(name)
    found = [number for number, title in enumerate(header) if title.strip().lower() in usual_names]
    if len(found) > 1:
        raise ValueError(f"{path}: several columns ({', '.join(header)}) have a usual name; choose one with {flag}")
    return found[0] if found else None


def find_columns(header: list[str], path: Path, text_column: str, label_column: str) -> Columns:
    """Finds the columns of text, label and id in a header. Raises ValueError if no column is recognised as text."""
    text = find_column(text_column, usual_names=TEXT_NAMES, header=header, path=path, flag="--text-column")
    label = find_column(label_column, usual_names=LABEL_NAMES, header=header, path=path, flag="--label-column")
    if text is None:
        raise ValueError(
            f"{path}: no column ({', '.join(header)}) has a usual name for text; name the text with --text-column"
        )
    return Columns(text=text, label=label, id=header.index("id") if "id" in header else None, width=len(header))


def read_rows(path: Path, text_column: str, label_column: str) -> Iterator[Row | str]:
    """Yields each record as a Row, or as a description of its defect."""
    records = read_records(path)
    _, header = next(records, (0, []))
    if not header:
        raise ValueError(f"{path} is empty")
    columns = find_columns(header, path=path, text_column=text_column, label_column=label_column)
    for number, fields in records:
        yield parse_row(number, fields=fields, columns=columns)


def parse_row(number: int, fields: list[str], columns: Columns) -> Row | str:
    """Converts the fields of line `number` to a Row, or returns a description of its defect."""
    if len(fields) != columns.width:
        return f"row {number}: {len(fields)} fields instead of {columns.width}"
    if not fields[columns.text].strip():
        return f"row {number}: empty review"
    label = None
    if columns.label is not None:
        label = fields[columns.label].strip().lower()
        if label not in LABELS:
            return f"row {number}: label {fields[columns.label][:20]!r} is not 0 or 1"
    key = str(number) if columns.id is None else fields[columns.id]
    return Row(number=number, id=key, review=fields[columns.text], label=label)


def read_acl(folder: Path) -> Iterator[Row]:
    """Yields the reviews of aclImdb/train or aclImdb/test: pos/, neg/ and unsup/ contain one file for each review."""
    for kind, label in (("neg", "0"), ("pos", "1"), ("unsup", None)):
        for number, path in enumerate(sorted((folder / kind).glob("*.txt")), 1):
            yield Row(number=number, id=f"{kind}/{path.stem}", review=path.read_text(encoding="utf-8"), label=label)


def rating_label(key: str) -> int:
    """Returns the label of a Kaggle id from its rating: `12311_10` -> 1.

    Returns UNKNOWN for a rating of 0 and for ids of another form.
    """
    match = re.fullmatch(r"\d+_(\d+)", key)
    rating = int(match[1]) if match else 0
    return UNKNOWN if rating == 0 else int(rating >= 5)


# -------------------------------------------------------------------------------------------------------- frames


def load_reviews(
    path: str | Path,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
) -> pd.DataFrame:
    """Loads a file, or a folder of aclImdb, as a DataFrame id, review, sentiment, in the order of the file.

    With `cache`, the result is stored in that folder under the hash of the file, and read from there the next time.
    Raises FileNotFoundError if the path does not exist, and ValueError for a file that cannot be read. Unless
    skip_bad_rows is set, ValueError also lists the broken rows by number.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    read = partial(read_reviews, path, text_column=text_column, label_column=label_column, skip_bad_rows=skip_bad_rows)
    if cache is None or path.is_dir():
        return as_frame(read())
    key = f"{CLEANING_VERSION} {text_column} {label_column} {skip_bad_rows}".encode()
    stored = cache / f"{hashlib.sha256(path.read_bytes() + key).hexdigest()[:24]}.jsonl"
    return as_frame(cached_records(stored, read))


def cached_records(stored: Path, read: Callable[[], list[tuple[str, str, int]]]) -> list:
    """Returns the records of a cache file. If it does not exist, it is written from `read()`."""
    if stored.exists():
        return [json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()]
    records = read()
    with replacing(stored) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return records


def read_reviews(path: Path, text_column: str, label_column: str, skip_bad_rows: bool) -> list[tuple[str, str, int]]:
    """Reads, cleans and labels the rows of a file or of a folder of aclImdb: (id, review, sentiment)."""
    try:
        rows = list(
            read_acl(path) if path.is_dir() else read_rows(path, text_column=text_column, label_column=label_column)
        )
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path} is damaged or not UTF-8 text: {error}") from error
    return clean_rows(rows, path=path, skip_bad_rows=skip_bad_rows)


def load_lines(path: Path) -> pd.DataFrame:
    """Loads a text file, one text a line, in the form of load_reviews: ids count from 0, no labels.

    Raises ValueError if the file is empty or not UTF-8.
    """
    try:
        texts = [text for line in path.read_text(encoding="utf-8").splitlines() if (text := line.strip())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not texts:
        raise ValueError(f"{path} holds no text")
    return as_frame([(str(number), text, UNKNOWN) for number, text in enumerate(texts)])


def clean_rows(rows: list[Row | str], path: Path, skip_bad_rows: bool) -> list[tuple[str, str, int]]:
    """Cleans the rows and labels them: (id, review, sentiment). Rows without a label get that of their rating.

    Raises ValueError for broken rows, unless skip_bad_rows is set, and for a file without any review.
    """
    broken = [row for row in rows if isinstance(row, str)]
    records = []
    for row in rows:
        if isinstance(row, str):
            continue
        review = clean(row.review)
        if review:
            label = LABELS[row.label] if row.label is not None else rating_label(row.id)
            records.append((row.id, review, label))
        else:
            broken.append(f"row {row.number}: empty review")
    report_broken(broken, path=path, skip_bad_rows=skip_bad_rows)
    if not records:
        raise ValueError(f"{path} contains no review")
    return records


def report_broken(broken: list[str], path: Path, skip_bad_rows: bool) -> None:
    """Raises ValueError that lists the first ten broken rows; prints their number if skip_bad_rows is set."""
    if broken and not skip_bad_rows:
        shown = "; ".join(broken[:10]) + ("; …" if len(broken) > 10 else "")
        raise ValueError(f"{path}: {len(broken)} broken rows ({shown}); --skip-bad-rows skips them")
    if broken:
        print(f"{path}: {len(broken)} broken rows skipped ({broken[0]}{'; …' if len(broken) > 1 else ''})")


def as_frame(records: list) -> pd.DataFrame:
    """Converts records (id, review, sentiment) to a DataFrame."""
    frame = pd.DataFrame(records, columns=["id", "review", "sentiment"])
    return frame.astype({"id": str, "review": str, "sentiment": "int64"})


# --------------------------------------------------------------------------------------------------------- split


def hash_rank(ids: pd.Series, salt: str) -> pd.Series:
    """Hashes each id to a pseudo-random integer of 60 bits, the same on every machine."""
    return ids.map(lambda key: int(hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()[:15], 16))


def split_train(frame: pd.DataFrame, fraction: float = 0.2, seed: int = 42) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits reviews into (training, validation), stratified by sentiment.

    The hash of seed and id decides: the split is the same on every machine and for any order of the file.
    Raises ValueError if a split would be empty or a class is missing.
    """
    rank = hash_rank(frame["id"], str(seed))
    validation = pd.Series(False, index=frame.index)
    for _, group in rank.groupby(frame["sentiment"]):
        validation[group.sort_values().index[: round(len(group) * fraction)]] = True
    train, held_out = frame[~validation], frame[validation]
    if not len(train) or not len(held_out) or train["sentiment"].nunique() < 2:
        counts = frame["sentiment"].value_counts().to_dict()
        raise ValueError(
            f"cannot split {len(frame)} reviews with labels {counts}: at least five of each label are needed"
        )
    return train.reset_index(drop=True), held_out.reset_index(drop=True)


def subset(frame: pd.DataFrame, count: int, seed: int, flag: str = "--train-reviews") -> pd.DataFrame:
    """Selects `count` reviews, balanced between labels as far as possible, by the hash of seed and id.

    A larger subset contains every smaller one. flag: the name of the count in error messages.
    Raises ValueError if `count` is below the number of labels or above the number of reviews.
    """
    labels = sorted(frame["sentiment"].unique())
    if not len(labels) <= count <= len(frame):
        raise ValueError(f"{flag} {count} is outside {len(labels)} … {len(frame)}")
    rank = hash_rank(frame["id"], f"subset {seed}").groupby(frame["sentiment"]).rank(method="first")  # 1, 2, … a label
    order = pd.DataFrame({"rank": rank, "label": frame["sentiment"]}).sort_values(["rank", "label"])
    return frame.loc[sorted(order.index[:count])].reset_index(drop=True)
