"""Reads text files with one text per line, and distinguishes them from tables and JSON files that are named .txt."""

import hashlib
import io
import re
from pathlib import Path

from data.columns import ABSENT
from data.delimited import DELIMITERS, FIELD_LIMIT, FIRST_LINE, split_header
from data.imdb import Reviews
from data.labels import looks_like_labels
from data.readers import TEXT_NAMES, Source, decode_as, parse_line
from data.unpacking import base_name, read_content, unpack

WITH_LABELS = "labels need a table: a first line such as text<TAB>label, and a tab before each label"
WORD = re.compile(r"[\w.-]*")  # a column's name


def is_text_lines(path: Path, source: Source) -> bool:
    """Returns whether a .txt file holds one text a line.

    It is a table if the first line is a header with the column of texts: its name in `source`, or a usual name. Raises
    ValueError for JSON.
    """
    is_text = base_name(path.name).lower().endswith(".txt")
    if not is_text and (not path.name.lower().endswith(".zip") or "." in Path(path.stem).name):
        return False
    name, content = unpack(path, read_content(path, source.max_file_mib), source.max_file_mib)
    if not (is_text or name.lower().endswith(".txt")):
        return False
    first = first_line(decode_as(path, content, source))
    of_run = "text_column" in source.of_run
    if header_titles(first, source.text_column, of_run) or (of_run and header_titles(first)):
        return False
    packed = None if is_text else name
    check_not_json(path, first, packed)
    return True


def first_line(text: str) -> str:
    """Returns the first line that is not blank."""
    return next((line for line in re.split(r"[\r\n]+", text[:FIRST_LINE]) if line.strip()), "")


def check_not_json(path: Path | None, first: str, packed: str | None = None) -> None:
    """Raises ValueError if a text is JSON. path: None: standard input.  first: its first line that is not blank.
    packed: name of the text within the .zip file `path`"""
    value, is_opened = parse_line(first), first.strip() in ("{", "[")
    if is_opened or isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        ending = "json" if is_opened or isinstance(value, list) else "jsonl"
        if packed is not None:
            way_out = f"unpack it and name the file {packed[:-4]}.{ending}"
        else:
            way_out = (
                f"name it {base_name(path.name)[:-4]}.{ending}" if path else f"--predict FILE.{ending} reads a file"
            )
        raise ValueError(f"{path or 'standard input'} holds JSON objects, not one text a line; {way_out}")


def note_labels(reviews: Reviews) -> None:
    """Prints that the lines of a text file seem to hold labels, which are read as a part of the texts."""
    lines = [text for _, text, _ in reviews.records if text]
    found = ["begins with __label__"] if lines and all(line.startswith("__label__") for line in lines) else []
    for delimiter, name in (*DELIMITERS.items(), ("@", "@")):
        parts = [line.rpartition(delimiter) for line in lines]
        if all(text for text, _, _ in parts) and looks_like_labels([label for _, _, label in parts]):
            found.append(f"seems to end in a label (separated by {name})")
    if found:
        print(f"note: {reviews.path}: each line {found[0]}, which is read as text; {WITH_LABELS}")


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
