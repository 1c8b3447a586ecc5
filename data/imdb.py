"""Reads reviews from Kaggle's TSVs, from Stanford's aclImdb/, and from any table with a column of texts.

The Large Movie Review Dataset: Maas et al. 2011, ACL (P11-1015): 25,000 labelled, 25,000 test, 50,000 unlabelled
reviews. Kaggle's "Bag of Words Meets Bags of Popcorn" contains the same reviews. Its ids end in the star rating (1–10),
so its test labels are known: a rating of 5 or more is positive (there are no 5s and 6s). Only Kaggle's own files,
recognised by their names, have labels from ids.

A review becomes one row of a DataFrame: id (str), review (str, cleaned), sentiment (class index, or -1 if unknown).
"""

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

from data.checked import reading, show
from data.checksums import is_intact, seal_file
from data.columns import ABSENT, Columns, describe, find_columns, similar_columns
from data.delimited import DELIMITERS, FIELD_LIMIT, FIRST_LINE, Record, split_header
from data.files import check_inside, replacing
from data.labels import SENTIMENT, UNKNOWN, all_hidden, canonical, class_numbers, find_classes, quoted
from data.readers import (
    LABELED,
    TEST,
    TEXT_NAMES,
    UNLABELED,
    Source,
    decode,
    decode_as,
    parse_line,
    read_table,
)
from data.unpacking import base_name, read_content, unpack

BREAKS = re.compile(r"</?(?:br|p|div|li|tr|td|hr|h[1-6]|ul|ol|blockquote)\b[^<>]*>", re.IGNORECASE)
NO_TAG = re.compile(r"<(?!/?[a-zA-Z][^<>]*>)")  # a "<" that does not open a tag: `a < b`, `<3`, `<!--`
NO_ENTITY = re.compile(r"&(?!#?\w{1,40};)")  # an "&" that does not open an entity: `AT&T`
# tags whose text is not shown; one that is not closed is a word: `I loved the <style> of this film`
RAW = [
    (re.compile(f"<(?={name}\\b)", re.IGNORECASE), re.compile(f"</{name}\\b", re.IGNORECASE))
    for name in ("script", "style", "template")
]
MOST_TAGS = 20_000  # of a review; each takes a kilobyte while it is parsed
SPACES = re.compile("  +")  # begins with two literal spaces: found five times as fast as " {2,}"
SURROGATE = re.compile("[\ud800-\udfff]")
WORD = re.compile(r"[\w.-]*")  # a column's name
CACHE_VERSION = 5  # part of the cache key: increase it when cleaning or reading changes
NAMED = (LABELED, UNLABELED, TEST)


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


def clean(text: str) -> str:
    """Converts HTML to plain text.

    Line breaks and block tags become a space, other tags are removed, entities are decoded, and a run of spaces, tabs
    and line breaks becomes one space. Raises ValueError for a text with very many tags.
    """
    text = BREAKS.sub(" ", text)
    if "<" in text or "&" in text:
        text = without_tags(text)
    for blank in "\t\r\n":
        text = text.replace(blank, " ")
    return SPACES.sub(" ", text).strip(" ")


def without_tags(text: str) -> str:
    """Removes HTML tags and decodes entities. Raises ValueError for a text with very many tags."""
    text = NO_TAG.sub("&lt;", NO_ENTITY.sub("&amp;", text))
    for opening, closing in RAW:
        end = max((match.end() for match in closing.finditer(text)), default=0)
        text = text[:end] + opening.sub("&lt;", text[end:])
    if (tags := text.count("<")) > MOST_TAGS:
        raise ValueError(f"a review with {tags:,} HTML tags; {MOST_TAGS:,} are allowed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a review may look like a file name
        return BeautifulSoup(text, "html.parser").get_text()


def has_surrogate(text: str) -> bool:
    """Returns whether a text contains half of a surrogate pair."""
    return not text.isascii() and SURROGATE.search(text) is not None


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
    if text is None or label is None or key is None:
        return f"row {number}: a list or an object instead of a text"
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


def broken_note(broken: list[str], count: int, path: Path, skip_bad_rows: bool, shape: str = "") -> list[str]:
    """Returns a note that broken rows were skipped, if there are any.

    count: all rows.  shape: the header and the first row. Raises ValueError that lists the broken rows if no row is
    left, or unless skip_bad_rows is set.
    """
    if broken and (not skip_bad_rows or len(broken) == count):
        shown = "; ".join(broken[:10]) + ("; …" if len(broken) > 10 else "")
        way = "no row is left" if len(broken) == count else "--skip-bad-rows skips them"
        raise ValueError(f"{path}: {len(broken)} broken rows ({shown}); {way}{shape and '; '}{shape}")
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
    return base_name(path.name) in NAMED


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


def parse_reviews(
    path: Path, digest: str, content: bytes, source: Source, keep_empty: bool, optional_label: bool
) -> Reviews:
    """Reads and cleans the content of a file."""
    table = read_table(path, content, source)
    columns = find_columns(table, source, optional_label)
    with reading(path, "a table that can be read", "correct it, or fetch it again"):
        rows, broken = clean_rows(table.records, columns, len(table.header), keep_empty)
    notes = [table.note] if table.note else []
    notes += broken_note(broken, len(table.records), path, source.skip_bad_rows, describe(table))
    if not rows:
        raise ValueError(f"{path} contains no review; {describe(table)}")
    if columns.id is not None and (twice := len(rows) - len({key for key, _, _ in rows})):
        notes.append(f"{twice:,} rows repeat an id of an earlier row (column {table.header[columns.id]!r})")
    no_labels = columns.label is None and source.label_column != ABSENT
    if no_labels and source.label_column:
        notes.append(
            f"no column {source.label_column!r}, so there are no labels; the header is {quoted(table.header, 20)}"
        )
    likely, possible = similar_columns(table, columns) if no_labels and not is_kaggle(path) else ([], [])
    label = "" if columns.label is None else table.header[columns.label]
    return Reviews(path, digest, rows, label, describe(table), likely, possible, notes)


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
    """Reads aclImdb/train or aclImdb/test: pos/, neg/ and unsup/ contain one file for each review."""
    digest, records, broken = hashlib.sha256(), [], []
    for kind, label in (("neg", "neg"), ("pos", "pos"), ("unsup", "")):
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
        raise ValueError(f"{folder} contains no review")
    return Reviews(folder, digest.hexdigest(), records, "", "", [], [], notes)


def acl_files(folder: Path, kind: str) -> list[Path]:
    """Returns the files of pos/, neg/ or unsup/ in aclImdb/train or aclImdb/test, sorted by name.

    Raises ValueError for a link that leads out of aclImdb/, and for what is not a file.
    """
    way = "copy what it leads to"
    check_inside(folder / kind, folder.parent, way)
    paths = sorted((folder / kind).glob("*.txt"))
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


def is_text_lines(path: Path, source: Source) -> bool:
    """Returns whether a .txt file holds one text a line.

    It is a table if the first line is a header with the column of texts: its name in `source`, or a usual name. Raises
    ValueError for JSON.
    """
    if not base_name(path.name).lower().endswith(".txt"):
        return False
    content = unpack(path, read_content(path, source.max_file_mib), source.max_file_mib)[1]
    first = first_line(decode_as(path, content, source))
    of_run = "text_column" in source.of_run
    if header_titles(first, source.text_column, of_run) or (of_run and header_titles(first)):
        return False
    check_not_json(path, first)
    return True


def first_line(text: str) -> str:
    """Returns the first line that is not blank."""
    return next((line for line in re.split(r"[\r\n]+", text[:FIRST_LINE]) if line.strip()), "")


def check_not_json(path: Path | None, first: str) -> None:
    """Raises ValueError if a text is JSON. path: None: standard input.  first: its first line that is not blank"""
    value, is_opened = parse_line(first), first.strip() in ("{", "[")
    if is_opened or isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        ending = "json" if is_opened or isinstance(value, list) else "jsonl"
        way_out = f"name it {base_name(path.name)[:-4]}.{ending}" if path else f"--predict FILE.{ending} reads a file"
        raise ValueError(f"{path or 'standard input'} holds JSON objects, not one text a line; {way_out}")


def check_column_flags(path: Path, source: Source) -> None:
    """Raises ValueError if the command line names columns of a file with one text a line."""
    for name in ("text_column", "label_column", "id_column", "quoting"):
        if getattr(source, name) not in ("", ABSENT) and name not in source.of_run:
            raise ValueError(
                f"{path} holds one text a line, so --{name.replace('_', '-')} has no effect: its first line is no "
                "header with the column of texts, which --text-column names"
            )


def header_titles(line: str, text_column: str = "", of_run: bool = False) -> list[str]:
    """Returns the titles of a line that is the header of a table with texts, [] for any other line.

    text_column: the title of the texts, if it is known; otherwise a usual one. Only tabs separate titles of several
    words, since a text may contain the other delimiters, unless the command line names the column. of_run: whether a
    run does instead.
    """
    names, is_named = {text_column} if text_column else set(TEXT_NAMES), bool(text_column) and not of_run
    for delimiter in DELIMITERS:
        titles = [title.strip() for title in split_header(line, delimiter)]
        are_names = is_named or delimiter == "\t" or all(map(WORD.fullmatch, titles))
        if are_names and names & {*titles, *(title.lower() for title in titles)}:
            return titles
    return []


def read_lines(path: Path, source: Source, keep_empty: bool = False) -> Reviews:
    """Reads a text file, one text a line. Ids count the lines from 0, without the empty ones unless they are kept.

    Raises ValueError if the file is empty or cannot be decoded.
    """
    content = read_content(path, source.max_file_mib)
    text = decode_as(path, unpack(path, content, source.max_file_mib)[1], source)
    lines = [line.strip() for line in io.StringIO(text, newline="")]  # U+0085 and U+2028 end no line
    lines = lines if keep_empty else [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path} holds no text")
    if longest := [number for number, line in enumerate(lines, 1) if len(line) > FIELD_LIMIT]:
        raise ValueError(f"{path}: text {longest[0]} has more than {FIELD_LIMIT:,} characters; split it")
    records = [(str(number), line, "") for number, line in enumerate(lines)]
    return Reviews(path, hashlib.sha256(content).hexdigest(), records, "", "", [], [], [])


# -------------------------------------------------------------------------------------------------------- frames


def label_reviews(reviews: Reviews, names: tuple[str, ...] | None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns (DataFrame id, review, sentiment, class names).

    names: the classes; None: those of the file, () if it has no labels. A folder of aclImdb and Kaggle's files without
    a label column, whose ids contain ratings, have the classes negative and positive. Raises ValueError for a label
    column that holds no labels, and for a label that is none of `names`.
    """
    keys = [key for key, _, _ in reviews.records]
    values = [label for _, _, label in reviews.records]
    where = f"{reviews.path}: column {reviews.label_column!r}" if reviews.label_column else str(reviews.path)
    if not reviews.label_column and is_kaggle(reviews.path):
        names = SENTIMENT if names is None else names
        has_ratings = {canonical(name) for name in names} == set(SENTIMENT)
        ratings = [rating_label(key) if has_ratings else UNKNOWN for key in keys]
        values = ["" if rating == UNKNOWN else SENTIMENT[rating] for rating in ratings]
    elif names and all_hidden(values, names):
        print(f"{reviews.path}: all labels are -1: they are withheld, and read as unknown")
        values = [""] * len(values)
    try:
        names = find_classes(values, where) if names is None else names
        numbers = class_numbers(values, names, where)
    except ValueError as error:  # not a row, but the whole column: --skip-bad-rows is no way out
        ways = f"--label-column names another column, --label-column {ABSENT} reads the texts alone"
        raise ValueError(f"{error}; {ways}; {reviews.shape}") from None
    texts = (review for _, review, _ in reviews.records)
    return as_frame(zip(keys, texts, numbers, strict=True)), names


def missing_labels(reviews: Reviews) -> str:
    """Describes a file without labels, with the columns that look like them and the way to name one."""
    if reviews.label_column:
        return f"{reviews.path}: column {reviews.label_column!r} has no values; {reviews.shape}"
    similar = reviews.likely or reviews.possible
    which = f"{quoted(similar)} {'looks' if len(similar) == 1 else 'look'} like it: " if similar else ""
    name = show(similar[0]) if similar else "COLUMN"
    return f"{reviews.path} has no label column with a usual name; {which}--label-column {name}; {reviews.shape}"


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
    return label_reviews(reviews, None)[0]


def as_frame(records: Iterable[tuple[str, str, int]]) -> pd.DataFrame:
    """Converts records (id, review, sentiment) to a DataFrame."""
    frame = pd.DataFrame(list(records), columns=["id", "review", "sentiment"])
    return frame.astype({"id": str, "review": str, "sentiment": "int64"})


# --------------------------------------------------------------------------------------------------------- split


def hash_key(key: str) -> int:
    """Hashes a text to a pseudo-random integer of 60 bits, the same on every machine."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)


def hash_rank(ids: pd.Series, salt: str) -> pd.Series:
    """Hashes each id to an integer of 60 bits, which orders the reviews. salt: another order"""
    return ids.map(lambda key: hash_key(f"{salt}:{key}"))


def split_train(
    frame: pd.DataFrame, fraction: float = 0.2, seed: int = 42, labels: tuple[str, ...] = SENTIMENT
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits reviews into (training, validation), stratified by sentiment. labels: the class names, for messages.

    The hash of seed and id decides: the split is the same on every machine and for any order of the file.
    Raises ValueError if a split would be empty or a class is missing.
    """
    rank = hash_rank(frame["id"], str(seed))
    validation = pd.Series(False, index=frame.index)
    for _, group in rank.groupby(frame["sentiment"]):
        validation[group.sort_values().index[: round(len(group) * fraction)]] = True
    train, held_out = frame[~validation], frame[validation]
    if not len(train) or not len(held_out) or train["sentiment"].nunique() < 2:
        counts = {labels[number]: count for number, count in frame["sentiment"].value_counts().items()}
        raise ValueError(
            f"cannot split {len(frame)} reviews with labels {counts}: at least three of each label are needed"
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
