"""Reviews from files: Kaggle's TSVs, Stanford's aclImdb/, and any TSV or CSV with a text and a label column.

The Large Movie Review Dataset: Maas et al. 2011, ACL (P11-1015): 25,000 labelled, 25,000 test, 50,000 unlabelled
reviews. Kaggle's "Bag of Words Meets Bags of Popcorn" is the same set; its ids end in the star rating (1–10), so its
test labels are known: positive from 5 up (there are no 5s and 6s).

A review becomes one row of a DataFrame: id (str), review (str, cleaned), sentiment (1, 0, or -1 where unknown).
"""

import csv
import gzip
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

from nn.files import replacing

TEXT_NAMES = ("review", "text", "sentence", "content", "comment")
LABEL_NAMES = ("sentiment", "label", "polarity", "target")
LABELS = {"0": 0, "1": 1, "negative": 0, "positive": 1, "neg": 0, "pos": 1}
UNKNOWN = -1
BREAKS = re.compile(r"</?(?:br|p|div|li|tr|td|hr|h[1-6]|ul|ol|blockquote)\b[^<>]*>", re.IGNORECASE)
NO_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")  # a "<" that opens no tag: `a < b`, `<3`, `<!--`
CLEANING = 1  # raise when `clean` changes: cached text is keyed by it
NO_ENTITY = re.compile(r"&(?!#?\w+;)")  # an "&" that opens no entity: `AT&T`


class Row(NamedTuple):
    number: int  # line of the file, 1 = the header
    id: str
    review: str  # as the file has it
    label: str | None  # None: the file has no labels


def clean(text: str) -> str:
    """HTML to plain text: breaks and block tags become a space, other tags vanish, entities are decoded, and runs of
    blanks are one space."""
    text = NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", BREAKS.sub(" ", text)))
    if "<" in text or "&" in text:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a review may look like a file name
            text = BeautifulSoup(text, "html.parser").get_text()
    return re.sub(r"[ \t\r\n]+", " ", text).strip(" ")


# ------------------------------------------------------------------------------------------------------- readers


def open_text(path: Path):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", newline="")


def read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields). `.csv` is RFC 4180; in anything else a line is a record, tabs part its fields, and quotes
    are literal but for one pair around a field (Kaggle's quoting=3 files)."""
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
    if len(field) > 1 and field[0] == field[-1] == '"':
        field = field[1:-1]
    return field.replace('\\"', '"')


def find_column(wanted: str, known: tuple[str, ...], header: list[str], path: Path, flag: str) -> int | None:
    """Place of a column: the one asked for, else the only one with a usual name, else None."""
    if wanted:
        if wanted not in header:
            raise ValueError(f"{path} has no column {wanted!r}; it has: {', '.join(header)}")
        return header.index(wanted)
    found = [place for place, name in enumerate(header) if name.strip().lower() in known]
    if len(found) > 1:
        raise ValueError(f"{path}: more than one column could be meant ({', '.join(header)}); say which with {flag}")
    return found[0] if found else None


def read_rows(path: Path, text_column: str, label_column: str) -> Iterator[Row | str]:
    """Every record as a Row, or as what is wrong with it."""
    records = read_records(path)
    _, header = next(records, (0, []))
    if not header:
        raise ValueError(f"{path} is empty")
    text = find_column(text_column, TEXT_NAMES, header, path, "--text-column")
    label = find_column(label_column, LABEL_NAMES, header, path, "--label-column")
    if text is None:
        raise ValueError(
            f"{path}: none of its columns ({', '.join(header)}) looks like text; name it with --text-column"
        )
    name = header.index("id") if "id" in header else None
    for number, fields in records:
        if len(fields) != len(header):
            yield f"row {number}: {len(fields)} fields instead of {len(header)}"
        elif not fields[text].strip():
            yield f"row {number}: empty review"
        elif label is not None and fields[label].strip().lower() not in LABELS:
            yield f"row {number}: label {fields[label][:20]!r} is not 0 or 1"
        else:
            key = fields[name] if name is not None else str(number)
            yield Row(number, key, fields[text], fields[label].strip().lower() if label is not None else None)


def read_acl(folder: Path) -> Iterator[Row]:
    """aclImdb/train or aclImdb/test: pos/, neg/ and unsup/ with one review a file."""
    for kind, label in (("neg", "0"), ("pos", "1"), ("unsup", None)):
        for number, path in enumerate(sorted((folder / kind).glob("*.txt")), 1):
            yield Row(number, f"{kind}/{path.stem}", path.read_text(encoding="utf-8"), label)


def rating_label(key: str) -> int:
    """`12311_10` -> 1: the label that a Kaggle id tells; UNKNOWN where it tells none (rating 0, or another kind of
    id)."""
    match = re.fullmatch(r"\d+_(\d+)", key)
    rating = int(match[1]) if match else 0
    return UNKNOWN if rating == 0 else int(rating >= 5)


def load_reviews(
    path: str | Path,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
) -> pd.DataFrame:
    """A file, or a folder of aclImdb, as a DataFrame id, review, sentiment, in the order of the file.

    Raises FileNotFoundError, or ValueError that lists the broken rows by number, unless skip_bad_rows. With `cache`,
    the result is kept in that folder under the hash of the file, and read from there next time.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    stored = None
    if cache is not None and path.is_file():
        options = f"{CLEANING} {text_column} {label_column} {skip_bad_rows}".encode()
        stored = cache / f"{hashlib.sha256(path.read_bytes() + options).hexdigest()[:24]}.jsonl"
        if stored.exists():
            return as_frame([json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()])
    try:
        rows = list(read_acl(path) if path.is_dir() else read_rows(path, text_column, label_column))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path} is damaged or not UTF-8 text: {error}") from error
    records = checked(rows, path, skip_bad_rows)
    if stored is not None:
        with replacing(stored) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return as_frame(records)


def load_lines(path: Path) -> pd.DataFrame:
    """A text file, one text a line, as load_reviews gives reviews: without labels, ids from 0. Raises ValueError where
    it holds none or is not UTF-8."""
    try:
        texts = [text for line in path.read_text(encoding="utf-8").splitlines() if (text := line.strip())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not texts:
        raise ValueError(f"{path} holds no text")
    return as_frame([(str(number), text, UNKNOWN) for number, text in enumerate(texts)])


def checked(rows: list[Row | str], path: Path, skip_bad_rows: bool) -> list[tuple[str, str, int]]:
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
    if broken and not skip_bad_rows:
        shown = "; ".join(broken[:10]) + ("; …" if len(broken) > 10 else "")
        raise ValueError(f"{path}: {len(broken)} broken rows ({shown}); --skip-bad-rows goes on without them")
    if broken:
        print(f"{path}: {len(broken)} broken rows left out ({broken[0]}{'; …' if len(broken) > 1 else ''})")
    if not records:
        raise ValueError(f"{path} holds no review")
    return records


def as_frame(records: list) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=["id", "review", "sentiment"])
    return frame.astype({"id": str, "review": str, "sentiment": "int64"})


# --------------------------------------------------------------------------------------------------------- split


def hash_rank(ids: pd.Series, salt: str) -> pd.Series:
    """A number for each id that looks random and is the same on every machine."""
    return ids.map(lambda key: int(hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()[:15], 16))


def split_train(frame: pd.DataFrame, fraction: float = 0.2, seed: int = 42) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training, validation), stratified by sentiment, decided by the hash of seed and id: the same on every machine,
    whatever the order of the file. Raises ValueError where a part would be empty or a class is missing."""
    rank = hash_rank(frame["id"], str(seed))
    validation = pd.Series(False, index=frame.index)
    for _, group in rank.groupby(frame["sentiment"]):
        validation[group.sort_values().index[: round(len(group) * fraction)]] = True
    train, held_out = frame[~validation], frame[validation]
    if not len(train) or not len(held_out) or train["sentiment"].nunique() < 2:
        counts = frame["sentiment"].value_counts().to_dict()
        raise ValueError(
            f"cannot split {len(frame)} reviews with labels {counts}: both labels are needed, five of each"
        )
    return train.reset_index(drop=True), held_out.reset_index(drop=True)


def subset(frame: pd.DataFrame, count: int, seed: int, flag: str = "--train-reviews") -> pd.DataFrame:
    """`count` rows, as many of each label as possible alike, chosen by the hash of seed and id; a larger subset
    contains a smaller one. flag: what an error calls the count. Raises ValueError where there are not that many."""
    labels = sorted(frame["sentiment"].unique())
    if not len(labels) <= count <= len(frame):
        raise ValueError(f"{flag} {count} is outside {len(labels)} … {len(frame)}")
    rank = hash_rank(frame["id"], f"subset {seed}")
    place = rank.groupby(frame["sentiment"]).rank(method="first")  # 1, 2, … within a label
    chosen = pd.DataFrame({"place": place, "label": frame["sentiment"]}).sort_values(["place", "label"]).index[:count]
    return frame.loc[sorted(chosen)].reset_index(drop=True)
