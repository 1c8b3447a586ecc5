"""Finds the columns of text, label and id in a table, and describes tables in messages."""

import unicodedata
from typing import NamedTuple

from data.checked import show
from data.delimited import Record
from data.labels import few_names, holds_sentiment, looks_like_labels, quoted
from data.readers import TEXT_NAMES, Source, Table

LABEL_NAMES = ("sentiment", "label", "polarity", "target")  # usual names of a column of labels
# further names of such columns: they are not chosen automatically, but messages suggest them
SIMILAR_NAMES = (
    "class", "classes", "category", "labels", "rating", "ratings", "stars", "star_rating", "score", "grade", "gold",
    "y", "tag", "emotion", "opinion", "verdict", "sentiments", "feeling", "annotation", "output",
)  # fmt: skip
ABSENT = "none"  # value of --label-column and --id-column: there is no such column
SHOWN = 40  # characters of a field in a message


class Columns(NamedTuple):
    """Column numbers of a table. None: there is no such column."""

    text: int
    label: int | None
    id: int | None


def describe(table: Table) -> str:
    """Describes a table by its header and its first row."""
    fields = next((record.fields for record in table.records if not record.defect), None)
    row = "no rows follow" if fields is None else f"its first row is {quoted(shorten(fields))}"
    return f"its header is {quoted(shorten(table.header), 20)}; {row}"


def shorten(fields: list[str | None] | list[str]) -> list[str]:
    """Shortens the fields of a row for a message."""
    texts = [" ".join((field or "").split()) for field in fields]
    return [text if len(text) <= SHOWN else text[: SHOWN - 1] + "…" for text in texts]


def composed(title: str) -> str:
    """Makes a title one line and composes its accents (Unicode's form NFC), so that titles that look equal are equal.

    Characters that are not visible, such as a byte order mark, are removed.
    """
    visible = "".join(char for char in title if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split())


def find_named(table: Table, name: str, by: str) -> int:
    """Returns the number of the column `name`. Raises ValueError if the header does not have it exactly once.

    by: who names it, for the message.
    """
    found = [number for number, title in enumerate(table.header) if title == name]
    found = found or [number for number, title in enumerate(table.header) if composed(title) == composed(name)]
    if not found:
        raise ValueError(f"{table.path} has no column {name!r}, which {by}; {describe(table)}")
    if len(found) > 1:
        raise ValueError(f"{table.path} has {len(found)} columns {name!r}; rename all but one; {describe(table)}")
    return found[0]


def find_usual(table: Table, usual: tuple[str, ...], taken: list[int], flag: str) -> int | None:
    """Returns the number of the only column with a usual name, None if there is none.

    taken: columns with another use. Raises ValueError if several columns have a usual name.
    """
    titles = [composed(title).lower() for title in table.header]
    found = [number for number, title in enumerate(titles) if title in usual and number not in taken]
    if len(found) > 1:
        names = show(", ".join(table.header[number] for number in found))
        raise ValueError(f"{table.path}: several columns ({names}) have a usual name; choose one with {flag}")
    return found[0] if found else None


def find_columns(table: Table, source: Source, optional_label: bool = False) -> Columns:
    """Finds the columns of a table. Raises ValueError if it is empty, or if a column is not found or found twice.

    optional_label: a label column that is named but missing is no error.
    """
    if not table.header:
        defect = next((f"row {record.number}: {record.defect}" for record in table.records if record.defect), "")
        way_out = "correct it, or save the table as CSV"
        unread = f"{table.path} has no row that can be read ({defect}); {way_out}"
        raise ValueError(unread if defect else f"{table.path} is empty")
    named: dict[str, int | None] = {}
    for use, name in (("text", source.text_column), ("label", source.label_column), ("id", source.id_column)):
        if name == ABSENT and ABSENT not in table.header and use != "text":
            named[use] = None
        elif name and not (use == "label" and optional_label and composed(name) not in map(composed, table.header)):
            of_run = f"{use}_column" in source.of_run
            by = f"the run names (--{use}-column replaces it)" if of_run else f"--{use}-column names"
            named[use] = find_named(table, name, by)
    for use, usual in (("label", LABEL_NAMES), ("id", ("id",)), ("text", TEXT_NAMES)):
        if use not in named:
            taken = [number for number in named.values() if number is not None]
            missing = use == "label" and bool(source.label_column)
            named[use] = None if missing else find_usual(table, usual, taken, f"--{use}-column")
    if named["text"] is None:
        raise ValueError(
            f"{table.path}: no column is read as the text; --text-column COLUMN names it, or add a header line if "
            f"there is none; {describe(table)}"
        )
    if named["text"] == named["label"]:
        raise ValueError(f"{table.path}: column {table.header[named['text']]!r} cannot be both the text and the label")
    return Columns(text=named["text"], label=named["label"], id=named["id"])


def column_values(records: list[Record], number: int) -> list[str]:
    """Returns the values of a column. Broken rows are left out."""
    return [record.fields[number] or "" for record in records if len(record.fields) > number]


def similar_columns(table: Table, columns: Columns) -> tuple[list[str], list[str]]:
    """Returns (names of columns that look like labels, names of columns that could be labels).

    The first have a name such as `class`, or hold two classes such as 0 and 1; the second hold few short values.
    """
    likely, possible = [], []
    for number, title in enumerate(table.header):
        if number in (columns.text, columns.id):
            continue
        values = column_values(table.records, number)
        if holds_sentiment(values) or (composed(title).lower() in SIMILAR_NAMES and few_names(values)):
            likely.append(title)
        elif looks_like_labels(values):
            possible.append(title)
    return likely, possible
