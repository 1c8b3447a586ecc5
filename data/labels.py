"""Derives class names from the values of a label column, and maps values to classes.

0/1, 0.0/1.0, False/True, neg/pos and negative/positive, in any case, are the classes `negative` and `positive`. The
classes of any other column are its distinct values: numbers in numeric order ("2" before "10", and "1.0" is "1"), names
in alphabetical order. An empty value and `nan` mean that the label is unknown.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from data.checked import show

SENTIMENT = ("negative", "positive")
UNKNOWN = -1  # class index of a row without a label
HIDDEN = "-1"  # label of all rows of a file whose labels are withheld (GLUE, Hugging Face)
SPELLINGS = (("0", "1"), ("false", "true"), ("neg", "pos"), SENTIMENT)  # of (negative, positive)
MEANING = {spelling: name for pair in SPELLINGS for spelling, name in zip(pair, SENTIMENT, strict=True)}
NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?")  # "007" and "1e5" are names
PLACEHOLDER = re.compile(r"label_(0|[1-9][0-9]{0,8})")  # the name of a class that has none in a published config
# zero-width space, marks of direction, word joiner, byte order mark, soft hyphen
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u061c\u2060\ufeff\u00ad"))
JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))  # of Persian words and of emoji: a part of a name
SELECTORS = dict.fromkeys(map(ord, "\ufe0e\ufe0f"))  # show an emoji as text or in colour
MAX_CLASSES = 100
LONGEST_CLASS = 200  # characters
FEW_CLASSES = 20  # more distinct values than this must occur twice on average
# marks of a missing label: a column with one of them beside negative and positive, or beside numbers, is refused
MISSING = (
    "na", "n/a", "#n/a", "\\n", "nat", "nil", "null", "none", "unknown", "?", "-", "unsup", "unsupervised", "unlabeled",
    "unlabelled",
)  # fmt: skip
LONGEST_NAME = 60  # characters of a value that can be a label of a column with an unknown name


def one_line(value: str) -> str:
    """Removes invisible characters, and makes each run of white space one space: "very   good " -> "very good"."""
    return " ".join((value if value.isascii() else value.translate(INVISIBLE)).split())


def is_class_name(name: str) -> bool:
    """Returns whether a class name can be printed and has at most LONGEST_CLASS characters."""
    return len(name) <= LONGEST_CLASS and name.translate(JOINERS).isprintable()


def normalize(value: str) -> str:
    """Makes a label one line, composes its accents (Unicode's form NFC), and shortens a number: " 1.0 " -> "1".

    Returns "" for `nan`. Two names that look equal are one class.
    """
    value = unicodedata.normalize("NFC", one_line(value))
    if NUMBER.fullmatch(value):
        number = format(Decimal(value), "f")
        number = number.rstrip("0").rstrip(".") if "." in number else number
        return "0" if number == "-0" else number
    return "" if value.lower() in ("nan", "<na>") else value


def lower(name: str) -> str:
    """Returns a name in lower case, also Turkish İ without the dot above that casefold leaves."""
    return name.casefold().replace("i\u0307", "i")


def fold(name: str) -> str:
    """Returns a normalized label in lower case, and a number for a placeholder: Good -> "good", LABEL_2 -> "2"."""
    folded = lower(name)
    return found[1] if (found := PLACEHOLDER.fullmatch(folded)) else folded


def canonical(name: str) -> str:
    """Returns the form in which class names are compared: NEG, 0, False and Negative -> "negative"; Good -> "good"."""
    folded = lower(normalize(name)).translate(SELECTORS)
    return MEANING.get(folded, folded)


def comparable(names: Iterable[str]) -> list[str]:
    """Returns class names in one spelling, to compare those of two models: ("POS", "LABEL_2") -> ["positive", "2"]"""
    return [canonical(fold(name)) for name in names]


def quoted(values: Iterable[str], most: int = 8) -> str:
    """Lists values for a message: 'a', 'b', …"""
    values = [value if len(value) <= LONGEST_NAME else value[:LONGEST_NAME] + "…" for value in values]
    return ", ".join(map(repr, values[:most])) + (", …" if len(values) > most else "")


def is_sentiment(values: Iterable[str]) -> bool:
    """Returns whether the distinct values are one spelling of negative and positive, or one half of it."""
    folded = {value.casefold() for value in values}
    return any(folded <= set(pair) for pair in SPELLINGS)


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts class names: as numbers if all are numbers, otherwise as text."""
    names = list(names)
    if all(NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=Decimal))
    return tuple(sorted(names))


def check_names(counts: Counter[str], where: str) -> None:
    """Raises ValueError for values that are no labels, and for names that differ only in their spelling.

    Programs print a name, so it must be one that `is_class_name` accepts.
    """
    rows = counts.total()
    for name in counts:
        if len(name) > LONGEST_CLASS:
            raise ValueError(f"{where} holds no labels: the value '{show(name, 40)}' has {len(name):,} characters")
        if not is_class_name(name):
            raise ValueError(f"{where} has the class '{show(name)}', which contains a control character; rename it")
    if len(counts) > MAX_CLASSES or (len(counts) > FEW_CLASSES and 2 * len(counts) > rows):
        raise ValueError(
            f"{where} holds no labels: {len(counts):,} distinct values in {rows:,} rows ({quoted(counts, 3)})"
        )
    spellings: dict[str, str] = {}
    for name in counts:
        other = spellings.setdefault(canonical(name), name)
        if other != name:
            raise ValueError(
                f"{where} spells one class in two ways, {show(repr(other))} and {show(repr(name))}; write one of them"
            )
    if all(name.casefold() in MEANING for name in counts):
        raise ValueError(f"{where} mixes the spellings {quoted(sorted(counts))} of two classes; use one of them")


def find_classes(values: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns the class names of a label column, () if all its values are empty.

    where: the file and the column, for messages. Raises ValueError for a column that holds no labels.
    """
    counts = Counter(name for value in values if (name := normalize(value)))
    if not counts:
        return ()
    if is_sentiment(counts):
        return SENTIMENT
    marks = sorted(name for name in counts if name.casefold() in MISSING)
    known = sort_names(counts.keys() - marks)
    has_both = is_sentiment(known) or set(SENTIMENT) <= set(map(canonical, known))
    if marks and known and (has_both or all(map(NUMBER.fullmatch, known))):
        way_out = "leave the cell of a missing label empty, or give that class another name"
        raise ValueError(f"{where} has {quoted(marks)} beside {quoted(known)}: {way_out}")
    check_names(counts, where)
    return sort_names(counts)


def class_numbers(values: Sequence[str], names: tuple[str, ...], where: str) -> list[int]:
    """Maps each value to the number of its class, UNKNOWN if it is empty.

    A value is a name itself, a name in another case, LABEL_2 for the name 2 and the other way round, or, if the classes
    are negative and positive, another spelling of them. Raises ValueError that names the values that are no class.
    """
    table = {normalize(name): number for number, name in enumerate(names)}
    folded = {fold(name): number for name, number in table.items()}
    if {canonical(name) for name in names} == set(SENTIMENT):
        by_meaning = {canonical(name): number for name, number in table.items()}
        folded |= {spelling: by_meaning[name] for spelling, name in MEANING.items() if spelling not in folded}
    normal = [normalize(value) for value in values]
    numbers = {name: table.get(name, folded.get(fold(name))) for name in set(normal)}
    numbers[""] = UNKNOWN
    unknown = Counter(name for name in normal if numbers[name] is None)
    if unknown:
        shown = ", ".join(
            f"{show(repr(name))} ({count:,} row{'s' * (count > 1)})" for name, count in unknown.most_common(5)
        )
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"{where} has labels that are not classes: {shown}{more}; the classes are {quoted(names, 20)}")
    return [number for name in normal if (number := numbers[name]) is not None]


def all_hidden(values: Sequence[str], names: tuple[str, ...]) -> bool:
    """Returns whether all labels are -1, which is no class: the labels of a test file are withheld."""
    return bool(values) and HIDDEN not in names and {normalize(value) for value in values} == {HIDDEN}


def few_names(values: Sequence[str]) -> Counter[str]:
    """Counts the distinct values of a column if they are at most twenty short ones; otherwise the result is empty."""
    counts: Counter[str] = Counter()
    for value, count in Counter(values).items():  # each spelling is normalized once
        if name := normalize(value):
            counts[name] += count
            if len(counts) > FEW_CLASSES:
                return Counter()
    return counts if all(len(name) <= LONGEST_NAME for name in counts) else Counter()


def looks_like_labels(values: Sequence[str]) -> bool:
    """Returns whether the values of a column could be labels: two to twenty short values, at least one repeated, or
    negative and positive in one spelling."""
    counts = few_names(values)
    return len(counts) > 1 and (is_sentiment(counts) or len(counts) < counts.total())


def holds_sentiment(values: Sequence[str]) -> bool:
    """Returns whether a column holds two classes in a usual spelling, as 0 and 1."""
    counts = few_names(values)
    return len(counts) == 2 and is_sentiment(counts)
