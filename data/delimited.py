r"""Reads delimited text: finds the delimiter and the form of quotes from what is in the file.

The delimiter is the one of tab, comma, semicolon and bar that splits the header line; if several do, the one that
separates a column of texts or, failing this, gives all rows the width of the header. Quotes have three readings:

    rfc4180    "a ""great"" film": a quoted field may contain delimiters and line breaks, a quote in it is doubled.
               Python, pandas, Excel and R write this form. Without a tab as delimiter it is the default.
    literal    a record is a line; a pair of quotes around a field is removed, \" is a quote, other quotes are
               characters. Kaggle's files have this form (quoting=3). With tabs it is the default.
    backslash  "a \"great\" film": as rfc4180, and a quote is escaped by a backslash; all other backslashes stay as they
               are. MySQL and Spark write it.

A reading is consistent if its quotes are as described and all rows have the width of the header.

1. With commas, semicolons and bars: rfc4180. If it is not consistent, or has quotes in fields that are not quoted, and
   the file contains \", backslash is taken if that is consistent. Otherwise, spaces between a delimiter and a quote
   (`1, "A film"`) are left out if this leaves fewer broken rows, or as many broken rows and the same number of rows. If
   rfc4180 is consistent and literal is too, with more rows, and no quote is doubled, a stray quote may have joined
   rows: the file is refused, and `--quoting` selects a reading.
2. With tabs: literal or rfc4180, the one that is consistent; here rfc4180 has no quotes in fields that are not quoted,
   because none of its programs writes them. If both are consistent and each record is one line in both, they differ in
   doubled quotes only, and rfc4180 is taken: the literal form never doubles a quote. If both are consistent with
   different rows, or neither is and the rows differ, the file is refused: `--quoting` selects a reading. A file with
   quotes that are not those of rfc4180 is backslash if only that is consistent. Kaggle's own files are literal if
   neither is consistent.

A note names the delimiter and the reading if they are not the default for the ending of the file and `--quoting` names
none.
"""

import contextlib
import csv
import gc
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FIELD_LIMIT = 10 * 2**20  # characters of a field
MOST_COLUMNS = 10_000
FIRST_LINE = 2**20  # characters in which the end of the first line is looked for
ENDS_IN_CR = re.compile(r'(?:[^"\r\n]|"[^"]*")*\r(?!\r*\n)')  # a first line, quoted line ends apart
# a first line that Excel reads and does not show
SEP_LINE = re.compile(r'"?sep=([^\w\s"\x00-\x1f]|[\t ])"?(?=[\r\n])')
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
LINE = re.compile(r"([^\r\n]*)(?:\r\n?|\n)|([^\r\n]+)")
RFC4180, LITERAL, BACKSLASH = "rfc4180", "literal", "backslash"
SPACED = "spaced"  # rfc4180 without the spaces after a delimiter; not a choice of --quoting
READINGS = {
    RFC4180: "quoted fields with doubled quotes (rfc4180)",
    LITERAL: "quotes as characters (literal)",
    BACKSLASH: "quoted fields with escaped quotes (backslash)",
}
CHOOSE = "choose with --quoting literal or --quoting rfc4180"


class Record(NamedTuple):
    """One row of a table. A field is None if it holds a list or an object. A defect replaces the fields."""

    number: int  # line of the file on which the row ends, 1 = the header; in JSON and Parquet the row, from 1
    fields: list[str | None]
    defect: str = ""


class Rows(NamedTuple):
    """Delimited text under one reading. header: [] if there is none."""

    header: list[str]
    records: list[Record]

    def broken(self) -> list[int]:
        """Returns the numbers of the records that do not have the width of the header."""
        return [row.number for row in self.records if row.defect or len(row.fields) != len(self.header)]


def unquote(field: str) -> str:
    """Removes one pair of quotes around a field and the backslash before each quote inside."""
    if len(field) > 1 and field[0] == field[-1] == '"':
        field = field[1:-1]
    return field.replace('\\"', '"')


def too_many(count: int) -> str:
    """Describes a row with too many fields."""
    return f"{count:,} fields; at most {MOST_COLUMNS:,} are read"


def split_lines(text: str, delimiter: str) -> Iterator[Record]:
    """Yields the records of the literal reading. An empty line has no fields."""
    for number, found in enumerate(LINE.finditer(text), 1):  # io.StringIO would copy the text, with 4 bytes a character
        line = found[1] or found[2] or ""
        if (count := line.count(delimiter)) >= MOST_COLUMNS:
            yield Record(number, [], too_many(count + 1))
        else:
            yield Record(number, [unquote(field) for field in line.split(delimiter)] if line else [])


def split_quoted(text: str, delimiter: str, skip_spaces: bool = False) -> Iterator[Record]:
    """Yields the records of RFC 4180. A record with wrong quotes has a defect, and the next line begins a new one.

    skip_spaces: whether spaces at the beginning of a field are left out
    """
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skip_spaces)
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
                if len(fields) > MOST_COLUMNS:
                    yield Record(reader.line_num, [], too_many(len(fields)))
                else:
                    yield Record(reader.line_num, [*fields])
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(reader.line_num, [], quote_defect(str(error), start, reader.line_num))
    finally:
        csv.field_size_limit(limit)


def quote_defect(error: str, start: int, end: int) -> str:
    """Describes an error of csv.reader in the lines from start to end."""
    if "field larger" in error:
        if end > start:
            return f"a field of lines {start} to {end} has over {FIELD_LIMIT:,} characters, or its quote is not closed"
        return f"a field of line {start} has over {FIELD_LIMIT:,} characters"
    if "unexpected end" in error:
        return f"the quote that begins a field on line {start} is not closed within {FIELD_LIMIT:,} characters"
    if "expected after" in error:
        return "a quote inside a quoted field is not doubled" + (f" (lines {start} to {end})" if end > start else "")
    return error


def split_spaced(text: str, delimiter: str) -> Iterator[Record]:
    """Yields the records of RFC 4180. Spaces at the beginning of a field are left out."""
    return split_quoted(text, delimiter, skip_spaces=True)


def split_escaped(text: str, delimiter: str) -> Iterator[Record]:
    r"""Yields the records of RFC 4180 in which \" is a quote as well, but not after an escaped backslash."""
    mark = next((chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text), "")  # for private use
    if not mark:
        raise ValueError("it contains all characters for private use, so escaped quotes cannot be marked")
    marked = re.sub(r'(?<!\\)((?:\\\\)*)\\"', rf"\1{mark}", text)  # an even number of backslashes escapes no quote
    for record in split_quoted(marked, delimiter):
        yield record._replace(fields=[field and field.replace(mark, '"') for field in record.fields])


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Stops the garbage collector in the block: it would go through millions of new records again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def split_rows(text: str, delimiter: str, quoting: str) -> Rows:
    """Splits a text under one of READINGS or SPACED.

    Empty lines are no rows, except between the rows of a single column.
    """
    readings = {RFC4180: split_quoted, LITERAL: split_lines, BACKSLASH: split_escaped, SPACED: split_spaced}
    split = readings[quoting]
    with without_collection():
        records = list(split(text, delimiter))
    while records and not records[-1].fields and not records[-1].defect:
        records.pop()
    first = next((i for i, row in enumerate(records) if row.fields or row.defect), len(records))
    if first == len(records) or records[first].defect:
        return Rows([], records[first:])
    header, records = [field or "" for field in records[first].fields], records[first + 1 :]
    if len(header) > 1:
        return Rows(header, [row for row in records if row.fields or row.defect])
    return Rows(header, [row if row.fields or row.defect else row._replace(fields=[""]) for row in records])


def read_delimited(
    path: Path, text: str, default: str, names: set[str], quoting: str, kaggle: bool
) -> tuple[Rows, str]:
    """Reads delimited text. Returns its rows, and a note on its form if that is not the default.

    default: delimiter of the file's ending.  names: possible names of the column of texts.  quoting: "" or one of
    READINGS.  kaggle: whether it is one of Kaggle's own files.
    """
    if "\n" in text and not ENDS_IN_CR.match(text[:FIRST_LINE]):
        text = re.sub(r"\r(?!\n)", " ", text)  # a CR alone ends a line only in files whose first line ends in one
    hint = SEP_LINE.match(text)
    text = text[hint.end() :] if hint else text
    delimiter = hint[1] if hint else find_delimiter(path, text, default, names)
    if quoting:
        taken, rows = quoting, split_rows(text, delimiter, quoting)
    elif delimiter == "\t":
        taken, rows = choose_tab_reading(path, text, kaggle)
    else:
        taken, rows = choose_reading(path, text, delimiter)
    check_quotes(path, rows)
    rows = mark_repeated_headers(rows)
    usual = (default, LITERAL if default == "\t" else RFC4180)
    if quoting or (delimiter, taken) == usual:
        return rows, ""
    return rows, f"separated by {DELIMITERS.get(delimiter, repr(delimiter))}, {READINGS[taken]}"


def mark_repeated_headers(rows: Rows) -> Rows:
    """Returns the rows with a defect for each that repeats the header, as in files that were joined.

    Otherwise its label would be a class. A single column has no such rows.
    """
    if len(rows.header) < 2:
        return rows
    again, width, header = "the header again", len(rows.header), [field.strip().lower() for field in rows.header]

    def repeats(fields: list[str | None]) -> bool:
        """Returns whether the fields of a row are the titles, but for case and spaces."""
        return len(fields) == width and all((f or "").strip().lower() == h for f, h in zip(fields, header, strict=True))

    return rows._replace(records=[r._replace(defect=again) if repeats(r.fields) else r for r in rows.records])


def check_quotes(path: Path, rows: Rows) -> None:
    """Raises ValueError for a header with wrong quotes, and for a quote that is not closed.

    After such a quote all rows would be lost as one broken row.
    """
    for row in rows.records[: None if rows.header else 1]:
        if not rows.header or "not closed" in row.defect:
            way = "correct it, or read quotes as characters with --quoting literal"
            raise ValueError(f"{path}, row {row.number}: {row.defect}; {way}")


def split_header(line: str, delimiter: str) -> list[str]:
    """Splits a header line, in which names may be quoted. Returns [] for a line that is too long to be a header."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def find_delimiter(path: Path, text: str, default: str, names: set[str]) -> str:
    """Returns the delimiter of the header line. Raises ValueError if several are possible."""
    line = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    if (count := max(line.count(delimiter) for delimiter in DELIMITERS)) >= MOST_COLUMNS:
        raise ValueError(
            f"{path}: no column is read as the text: its first line has {count + 1:,} fields, and at most "
            f"{MOST_COLUMNS:,} are read; add a header line if there is none"
        )
    fields = {d: split_header(line, d) for d in DELIMITERS}
    found = [d for d in fields if len(fields[d]) > 1]
    if len(found) < 2:
        return found[0] if found else default
    named = [d for d in found if names & {t for field in fields[d] for t in (field.strip(), field.strip().lower())}]
    if len(named) != 1:
        named = [d for d in named or found if not split_rows(text, d, LITERAL if d == "\t" else RFC4180).broken()]
    if len(named) != 1:
        each = ", ".join(DELIMITERS[d] for d in found)
        raise ValueError(f"{path}: each of {each} splits the header {line[:120]!r}; rename the columns, or quote names")
    return named[0]


def choose_reading(path: Path, text: str, delimiter: str) -> tuple[str, Rows]:
    """Chooses the reading of text with commas, semicolons or bars (rule 1). Raises ValueError if two readings fit."""
    rows = split_rows(text, delimiter, RFC4180)
    has_line_breaks = any("\n" in (field or "") for row in rows.records for field in row.fields)
    neighbour = rf"[^{re.escape(delimiter)}\r\n]"  # of a doubled quote; an empty field "" has none
    is_doubled = re.search(f'{neighbour}""|""{neighbour}', text) is not None
    if has_line_breaks and not is_doubled and len(rows.header) > 1 and not rows.broken():
        lines = split_rows(text, delimiter, LITERAL)
        if not lines.broken() and len(lines.records) > len(rows.records):
            raise ValueError(two_readings(path, literal=lines, quoted=rows))
    if '\\"' in text and (rows.broken() or not is_rfc4180(text, delimiter)):
        escaped = split_rows(text, delimiter, BACKSLASH)
        if not escaped.broken():
            return BACKSLASH, escaped
    if f'{delimiter} "' in text and not is_rfc4180(text, delimiter):
        spaced = split_rows(text, delimiter, SPACED)
        broken, before = len(spaced.broken()), len(rows.broken())
        joined = len(spaced.records) != len(rows.records)  # by a stray quote
        if broken < before or (broken == before and not joined):
            return RFC4180, spaced
    return RFC4180, rows


def is_rfc4180(text: str, delimiter: str) -> bool:
    """Returns whether each quote in a text opens or closes a field or is one of two in a quoted field."""
    if text.count('"') % 2:
        return False
    outside = text.split('"')[::2]  # between quotes that close and open; empty between the two of a doubled quote
    ends = (delimiter, "\n", "\r")
    opened = all(part.endswith(ends) for part in outside[:-1] if part)
    return opened and all(part.startswith(ends) for part in outside[1:] if part)


def choose_tab_reading(path: Path, text: str, kaggle: bool) -> tuple[str, Rows]:
    """Chooses the reading of text with tabs (rule 2). Raises ValueError if the file has two readings."""
    literal = split_rows(text, "\t", LITERAL)
    broken = literal.broken()
    if not is_rfc4180(text, "\t"):
        if broken and not kaggle and '\\"' in text:
            escaped = split_rows(text, "\t", BACKSLASH)
            return (LITERAL, literal) if escaped.broken() else (BACKSLASH, escaped)
        return LITERAL, literal
    quoted = split_rows(text, "\t", RFC4180)
    others = quoted.broken()
    if literal == quoted or (kaggle and others):
        return LITERAL, literal
    same_lines = [row.number for row in literal.records] == [row.number for row in quoted.records]
    if not others and (broken or same_lines):
        return RFC4180, quoted
    if others and not broken:
        return LITERAL, literal
    if not broken:
        raise ValueError(two_readings(path, literal=literal, quoted=quoted))
    raise ValueError(
        f"{path}: with quotes as characters, {len(broken)} rows do not have {len(literal.header)} fields (row "
        f"{broken[0]} first); with quoted fields, {len(others)} (row {others[0]} first); {CHOOSE}"
    )


def two_readings(path: Path, literal: Rows, quoted: Rows) -> str:
    """Describes a file that two readings fit."""
    rows = f"{len(literal.records):,} rows with quotes as characters, {len(quoted.records):,} with quoted fields"
    return f"{path} has two readings: {rows}, which contain line breaks; {CHOOSE}"
