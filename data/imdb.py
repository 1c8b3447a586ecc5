"""Reads reviews from Kaggle's TSVs, from Stanford's aclImdb/, and from any table with a column of texts.

The Large Movie Review Dataset: Maas et al. 2011, ACL (P11-1015): 25,000 labelled, 25,000 test, 50,000 unlabelled
reviews. Kaggle's "Bag of Words Meets Bags of Popcorn" contains the same reviews. Its ids end in the star rating (1–10),
so its test labels are known: a rating of 5 or more is positive (there are no 5s and 6s). Only Kaggle's own files,
recognised by their names, have labels from ids.

A review becomes one row of a DataFrame: id (str), review (str, cleaned), sentiment (class index, or -1 if unknown).
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data.checked import reading, show
from data.checksums import is_intact, seal_file
from data.cleaning import clean, has_surrogate
from data.columns import ABSENT, Columns, composed, describe, find_columns, similar_columns
from data.delimited import FIELD_LIMIT, Record
from data.files import check_inside, replacing
from data.labels import SENTIMENT, UNKNOWN, all_hidden, canonical, class_numbers, find_classes, normalize, quoted
from data.readers import KAGGLE, NUMBERED, Source, decode, read_table
from data.unpacking import base_name, read_content

CACHE_VERSION = 14  # part of the cache key: increase it when cleaning or reading changes


class Reviews(NamedTuple):
    """The cleaned reviews of a file or a folder of aclImdb, before their labels become classes."""

    path: Path
    digest: str  # SHA-256 of the file, or of the names and contents of the folder's files
    records: list[tuple[str, str, str]]  # id, review, label ("" if unknown)
    label_column: str  # "" if there is none
    shape: str  # header and first row, for messages
    likely: list[str]  # columns that look like labels, and are not read
    possible: list[str]  # columns that could be labels
    notes: list[str]  # to be printed after the path
    rated: bool = False  # whether it is one of Kaggle's files without labels, whose ids may contain ratings


# ------------------------------------------------------------------------------------------------------------- rows


def parse_record(record: Record, columns: Columns, width: int, keep_empty: bool) -> tuple[str, str, str] | str:
    """Returns (id, review before cleaning, label) of a record, or a description of its defect."""
    number, fields = record.number, record.fields
    if record.defect:
        return f"row {number}: {record.defect}"
    if len(fields) != width:
        return f"row {number}: {len(fields)} fields instead of {width}"
    text, label = fields[columns.text], "" if columns.label is None else fields[columns.label]
    key = str(number) if columns.id is None else fields[columns.id]
    key = f"row {number}" if key == "" else key  # a bare number could be the id of another row
    if text is None or label is None or key is None:
        where = "text" if text is None else "label" if label is None else "id"
        return f"row {number}: a list or an object as {where}"
    if len(text) > FIELD_LIMIT:
        return f"row {number}: a review of {len(text):,} characters; {FIELD_LIMIT:,} are allowed"
    if any(map(has_surrogate, (text, key, label))):
        return f"row {number}: half of a surrogate pair, which is no character"
    if not keep_empty and not text.strip():
        return f"row {number}: empty review"
    return key, text, label.strip()


def clean_rows(
    records: list[Record], columns: Columns, width: int, keep_empty: bool
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Cleans the rows of a table. Returns ((id, review, label) of each row, descriptions of the broken rows)."""
    rows, broken = [], []
    for record in records:
        parsed = parse_record(record, columns, width, keep_empty)
        if isinstance(parsed, str):
            broken.append(parsed)
            continue
        key, text, label = parsed
        try:
            review = clean(text)
        except ValueError as error:
            broken.append(f"row {record.number}: {error}")
            continue
        if review or keep_empty:
            rows.append((key, review, label))
        else:
            broken.append(f"row {record.number}: empty review")
    return rows, broken


def broken_note(
    broken: list[str], count: int, path: Path, skip_bad_rows: bool, shape: str = "", way_out: str = ""
) -> list[str]:
    """Returns a note that broken rows were skipped, if there are any.

    count: all rows.  shape: the header and the first row.  way_out: one that loses no row. Raises ValueError that lists
    the broken rows if no row is left, or unless skip_bad_rows is set.
    """
    if broken and (not skip_bad_rows or len(broken) == count):
        shown = "; ".join(broken[:10]) + ("; …" if len(broken) > 10 else "")
        ways = [way_out, "no row is left" if len(broken) == count else "--skip-bad-rows skips them", shape]
        raise ValueError(f"{path}: {len(broken)} broken rows ({shown}); {'; '.join(filter(None, ways))}")
    return [f"{len(broken)} broken rows skipped ({broken[0]}{'; …' if len(broken) > 1 else ''})"] if broken else []


def rating_label(key: str) -> int:
    """Returns the label of a Kaggle id from its rating: `12311_10` -> 1.

    Returns UNKNOWN for a rating of 0 and for ids of another form.
    """
    match = re.fullmatch(r"\d+_(\d+)", key)
    rating = int(match[1]) if match else 0
    return UNKNOWN if rating == 0 else int(rating >= 5)


def is_kaggle(path: Path) -> bool:
    """Returns whether a file has the name of one of Kaggle's files, also compressed."""
    return base_name(path.name) in KAGGLE.values()


# ----------------------------------------------------------------------------------------------------- one file


def read_reviews(
    path: Path, source: Source, cache: Path | None = None, keep_empty: bool = False, optional_label: bool = False
) -> Reviews:
    """Reads and cleans a file, or a folder of aclImdb, in the order of its rows, and prints what it found.

    With `cache`, the result is stored in that folder under the hash of the file, and read from there the next time.
    keep_empty: empty reviews are rows.  optional_label: a label column that is named but missing is no error. Raises
    FileNotFoundError if the path does not exist, and ValueError for a file that cannot be read, or for broken rows
    unless source.skip_bad_rows is set.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    content = b"" if path.is_dir() else read_content(path, source.max_file_mib)
    digest = hashlib.sha256(content).hexdigest()

    def read() -> Reviews:
        return parse_reviews(path, digest, content, source, keep_empty, optional_label)

    if path.is_dir():
        reviews = read_acl(path, source)
    elif cache is None:
        reviews = read()
    else:
        columns = (source.text_column, source.label_column, source.id_column, source.encoding, source.quoting)
        how = (source.skip_bad_rows, source.max_file_mib, keep_empty, optional_label, path.name)
        key = hashlib.sha256(json.dumps([CACHE_VERSION, digest, *columns, *how]).encode()).hexdigest()[:24]
        reviews = cached_reviews(cache / f"{key}.jsonl", path, read)
    for note in reviews.notes:
        print(f"{path}: {note}")
    return reviews


def joined_name(paths: Sequence[Path]) -> Path:
    """Returns how messages name the files of a part: train-*-of-00002.parquet if they are numbered."""
    first = paths[0]
    return first if len(paths) == 1 else first.with_name(NUMBERED.sub(r"-*-of-\2", first.name))


def join_reviews(files: Sequence[Reviews]) -> Reviews:
    """Joins the reviews of the files of a part, in their order.

    If two files have an id in common, which is usual for row numbers, every id gets the number of its file in front:
    `0-17`. Raises ValueError if the label columns differ.
    """
    first = files[0]
    if len(files) == 1:
        return first
    for other in files[1:]:
        if other.label_column != first.label_column:
            names = [repr(one.label_column) if one.label_column else "none" for one in (first, other)]
            raise ValueError(
                f"{first.path} and {other.path} belong to one split; their label columns are {' and '.join(names)}; "
                "--label-column names one that both have"
            )
    ids = [{key for key, _, _ in one.records} for one in files]
    shared = len(set().union(*ids)) < sum(map(len, ids))
    records = [
        (f"{number}-{key}" if shared else key, text, label)
        for number, one in enumerate(files)
        for key, text, label in one.records
    ]
    return first._replace(path=joined_name([one.path for one in files]), records=records)


def parse_reviews(
    path: Path, digest: str, content: bytes, source: Source, keep_empty: bool, optional_label: bool
) -> Reviews:
    """Reads and cleans the content of a file."""
    table = read_table(path, content, source)
    columns = find_columns(table, source, optional_label)
    with reading(path, "a table that can be read", "correct it, or fetch it again"):
        rows, broken = clean_rows(table.records, columns, len(table.header), keep_empty)
    notes = [table.note] if table.note else []
    cut = len(table.header) == 1 and any(" fields instead of " in row for row in broken)
    way_out = "quote its texts, or name it .txt: then each line is a text" if cut else ""
    notes += broken_note(broken, len(table.records), path, source.skip_bad_rows, describe(table), way_out)
    if not rows:
        raise ValueError(f"{path} contains no review; {describe(table)}")
    if columns.id is not None and (twice := len(rows) - len({key for key, _, _ in rows})):
        notes.append(f"{twice:,} rows repeat an id of an earlier row (column {table.header[columns.id]!r})")
    by_run = columns.id is None and "id_column" in source.of_run
    if by_run and "id" in (composed(title).lower() for title in table.header):
        notes.append("ids are line numbers, as the run read them (--id-column id reads the column)")
    no_labels = columns.label is None and source.label_column != ABSENT
    if no_labels and source.label_column:
        notes.append(
            f"no column {source.label_column!r}, so there are no labels; the header is {quoted(table.header, 20)}"
        )
    likely, possible = similar_columns(table, columns) if no_labels else ([], [])
    label = "" if columns.label is None else table.header[columns.label]
    rated = no_labels and is_kaggle(path) and not likely
    return Reviews(path, digest, rows, label, describe(table), likely, possible, notes, rated)


def cached_reviews(stored: Path, path: Path, read: Callable[[], Reviews]) -> Reviews:
    """Returns the reviews of a cache file. If it does not exist or is damaged, it is written from `read()`."""
    if is_intact(stored):
        facts, *lines = stored.read_text(encoding="utf-8").splitlines()
        return Reviews(path=path, records=[tuple(json.loads(line)) for line in lines], **json.loads(facts))
    reviews = read()
    first = {name: value for name, value in reviews._asdict().items() if name not in ("path", "records")}
    with replacing(stored) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (first, *reviews.records)), encoding="utf-8")
    seal_file(stored)
    return reviews


def read_acl(folder: Path, source: Source) -> Reviews:
    """Reads aclImdb/train or aclImdb/test: pos/, neg/ and unsup/ contain one file for each review.

    Raises ValueError for other folders with reviews in it, which would be classes of their own.
    """
    digest, records, broken = hashlib.sha256(), [], []
    kinds = {"neg": "neg", "pos": "pos", "unsup": ""}
    own = [folder / kind for kind in kinds if (folder / kind).is_dir()]
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    others = (path for path in inner if not any(path.samefile(kind) for kind in own))
    if unknown := [path.name for path in others if any(map(is_text_file, path.iterdir()))]:
        raise ValueError(
            f"{folder} holds {quoted(unknown)} beside pos and neg; only pos, neg and unsup are read: move the others, "
            "or write all reviews into a table"
        )
    for kind, label in kinds.items():
        for path in acl_files(folder, kind):
            content = read_content(path, source.max_file_mib)
            name = f"{kind}/{path.name} {len(content)} "
            digest.update(name.encode("utf-8", "surrogateescape") + content)
            parsed = parse_acl(f"{kind}/{path.stem}", decode(path, content, source.encoding, whole=False))
            if isinstance(parsed, str):
                broken.append(f"{kind}/{show(path.name)}: {parsed}")
            else:
                records.append((*parsed, label))
    notes = broken_note(broken, len(records) + len(broken), folder, source.skip_bad_rows)
    if not records:
        raise ValueError(
            f"{folder} contains no review; those in its folders pos, neg and unsup are read, as .txt files"
        )
    paths = (path for kind in own for path in kind.iterdir() if not is_text_file(path))
    if unread := sorted(path.name for path in paths if not path.name.startswith(".")):
        notes.append(f"not read, since only files that end in .txt are: {quoted(unread, 3)} ({len(unread):,} in all)")
    return Reviews(folder, digest.hexdigest(), records, "", "", [], [], notes)


def is_text_file(path: Path) -> bool:
    """Returns whether a file has the name of a review. Names that begin with a dot belong to an operating system."""
    return path.suffix.lower() == ".txt" and not path.name.startswith(".")


def acl_files(folder: Path, kind: str) -> list[Path]:
    """Returns the files of pos/, neg/ or unsup/ in aclImdb/train or aclImdb/test, sorted by name.

    Raises ValueError for a link that leads out of aclImdb/, and for what is not a file.
    """
    way = "copy what it leads to"
    check_inside(folder / kind, folder.parent, way)
    within = (folder / kind).iterdir() if (folder / kind).is_dir() else ()
    paths = sorted(filter(is_text_file, within))
    for path in paths:
        if path.is_symlink():
            check_inside(path, folder.parent, way)
        if not path.is_file():
            raise ValueError(f"{show(path, 300)} is not a file, but a folder, a pipe or a link to nothing; delete it")
    return paths


def parse_acl(key: str, text: str) -> tuple[str, str] | str:
    """Returns (id, cleaned review) of a file of aclImdb, or a description of its defect."""
    if len(text) > FIELD_LIMIT:
        return f"a review of {len(text):,} characters; {FIELD_LIMIT:,} are allowed"
    if has_surrogate(key):
        return "a file name that is not UTF-8"
    try:
        return (key, review) if (review := clean(text)) else "empty review"
    except ValueError as error:
        return str(error)


# -------------------------------------------------------------------------------------------------------- frames


def label_reviews(
    reviews: Reviews, names: tuple[str, ...] | None, needs_labels: bool = True
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns (DataFrame id, review, sentiment, class names).

    names: the classes; None: those of the file, () if it has no labels. A folder of aclImdb and Kaggle's files without
    a label column, whose ids contain ratings, have the classes negative and positive.  needs_labels: whether the texts
    alone are of no use, for a message. Raises ValueError for a label column that holds no labels, and for a label that
    is none of `names`.
    """
    keys = [key for key, _, _ in reviews.records]
    values = [label for _, _, label in reviews.records]
    where = f"{reviews.path}: column {reviews.label_column!r}" if reviews.label_column else str(reviews.path)
    if reviews.rated:
        names = SENTIMENT if names is None else names
        has_ratings = {canonical(name) for name in names} == set(SENTIMENT)
        ratings = [rating_label(key) if has_ratings else UNKNOWN for key in keys]
        values = ["" if rating == UNKNOWN else SENTIMENT[rating] for rating in ratings]
        if any(values):
            rated = next(key for key, value in zip(keys, values, strict=True) if value)
            print(f"{reviews.path}: no column of labels; they are the ratings in the ids, such as {show(rated, 20)}")
    elif names and all_hidden(values, names):
        print(f"{reviews.path}: all labels are -1: they are withheld, and read as unknown")
        values = [""] * len(values)
    try:
        names = find_classes(values, where) if names is None else names
        numbers = class_numbers(values, names, where)
    except ValueError as error:  # not a row, but the whole column: --skip-bad-rows is no way out
        ways = [] if names is None else ["correct these labels, or empty their cells: such rows are not scored"]
        ways += ["--label-column names another column"]
        ways += [] if needs_labels else [f"--label-column {ABSENT} reads the texts alone"]
        raise ValueError(f"{error}; {'; '.join(ways)}; {reviews.shape}") from None
    texts = (review for _, review, _ in reviews.records)
    given = {normalize(value) for value in values} - {""}
    if len(keys) > 1 and len(given) == 1 and given <= {"0", "1"} and set(map(canonical, names)) == set(SENTIMENT):
        meaning = next(names[number] for number in numbers if number != UNKNOWN)
        print(f"note: {where}: all labels are {given.pop()}, which is read as {meaning}; is it a number of stars?")
    return as_frame(zip(keys, texts, numbers, strict=True)), names


def missing_labels(reviews: Reviews) -> str:
    """Describes a file without labels, with the columns that look like them and the way to name one."""
    if reviews.label_column:
        way = "--label-column names another column"
        return f"{reviews.path}: column {reviews.label_column!r} has no labels; {way}; {reviews.shape}"
    similar = reviews.likely or reviews.possible
    if similar and not similar[0].strip():
        return (
            f"{reviews.path}: no column is read as the label, but one without a title looks like it; give it a title, "
            "such as label"
        )
    which = f"{quoted(similar)} {'looks' if len(similar) == 1 else 'look'} like it: " if similar else ""
    name = shlex.quote(" ".join(show(similar[0]).split())) if similar else "COLUMN"
    return f"{reviews.path}: no column is read as the label; {which}--label-column {name}; {reviews.shape}"


def load_reviews(
    path: str | Path,
    text_column: str = "",
    label_column: str = "",
    skip_bad_rows: bool = False,
    cache: Path | None = None,
    id_column: str = "",
    encoding: str = "",
) -> pd.DataFrame:
    """Loads a file, or a folder of aclImdb, as a DataFrame id, review, sentiment, in the order of the file.

    Sentiment is the index of the class among the sorted classes of the file, UNKNOWN without a label. With `cache`, the
    result is stored in that folder under the hash of the file, and read from there the next time. Raises
    FileNotFoundError if the path does not exist, and ValueError for a file that cannot be read, for broken rows unless
    skip_bad_rows is set, and if a column looks like labels but has no usual name and label_column is not given
    (`none`: the file has no labels).
    """
    source = Source(
        text_column=text_column, label_column=label_column, id_column=id_column, encoding=encoding,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    reviews = read_reviews(Path(path), source, cache)
    if reviews.likely:
        raise ValueError(f"{missing_labels(reviews)}; --label-column {ABSENT} if there are no labels")
    return label_reviews(reviews, None, needs_labels=False)[0]


def as_frame(records: Iterable[tuple[str, str, int]]) -> pd.DataFrame:
    """Converts records (id, review, sentiment) to a DataFrame."""
    frame = pd.DataFrame(list(records), columns=["id", "review", "sentiment"])
    return frame.astype({"id": str, "review": str, "sentiment": "int64"})
