"""Matches the classification head of a checkpoint to the classes of the data, by name.

A checkpoint names its classes in id2label of its config. The classes of the data come from its label column
(data/labels.py). Names are compared without regard to case, and the usual names of two sentiment classes (neg, 0, false
and pos, 1, true) are equal to negative and positive. The rows of the head are then put into the order of the data.
Placeholder names (LABEL_0, or the number itself) are matched by position.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data.checked import listed, show
from data.labels import LONGEST_CLASS, SENTIMENT, canonical, fold, is_class_name, normalize, one_line

NEW_LAYER = "train.py --head new trains a new last layer for the classes of the data"
CORRECT_IT = "correct it in config.json"
NEW_MODEL = "--weights none makes a new model for the classes of the data"
OTHER_TASK = re.compile(r"For(TokenClassification|QuestionAnswering|MultipleChoice)$")  # end of an architecture's name
OTHER_HEADS = (r"(classifier|qa_outputs|sequence_summary)\..*",)  # tensors of these tasks


class Head(NamedTuple):
    """The classes of a loaded model: class i is labels[i], and has row order[i] of the file's last layer."""

    labels: tuple[str, ...]
    order: tuple[int, ...]


def published_names(published: dict[str, Any], count: int, where: Path) -> tuple[str, ...] | None:
    """Returns the names of the `count` classes of a published config; None if it has placeholders or no names.

    Raises ValueError as `class_table` does, and if the classes are not 0 … count - 1 or a name occurs twice.
    """
    names = class_table(published, where)
    if names is None:
        return None
    if sorted(names) != list(range(count)):
        shown = listed(sorted(names), 20)
        raise ValueError(f"{where}: id2label names the classes [{shown}], but the head has {count}; {NEW_LAYER}")
    ordered = tuple(names[i] for i in range(count))
    if "" in ordered:
        raise ValueError(f"{where}: id2label has no name for class {ordered.index('')}; {CORRECT_IT}")
    if len({canonical(name) for name in ordered}) < count:
        raise ValueError(f"{where}: id2label uses a name twice: {listed(ordered, 20)}; {NEW_LAYER}")
    return ordered


def names_of_backbone(published: dict[str, Any], count: int, where: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes of an adapter from the config of its backbone; None if they are not named there.

    count: classes of the adapter. A backbone with another number of classes does not name those of the adapter. Raises
    ValueError as `published_names` does.
    """
    names = class_table(published, where)
    if names is not None and len(names) != count and sorted(names) == list(range(len(names))):
        return None
    return published_names(published, count, where)


def class_table(published: dict[str, Any], where: Path) -> dict[int, str] | None:
    """Returns {class number: name} of id2label, or else of label2id; None if they have placeholders or are missing.

    Raises ValueError for a table that does not map class numbers to names, or names to class numbers.
    """
    table = published.get("id2label")
    if table is not None:
        if not isinstance(table, dict) or not all(map(is_entry, table.items())):
            raise ValueError(f"{where}: id2label {show(repr(table))} does not map class numbers to names; {CORRECT_IT}")
        names = {int(key): one_line(str(name)) for key, name in table.items()}
        if not is_placeholder(names):
            return names
    names = inverted(published.get("label2id"), where)
    return None if is_placeholder(names) else names


def is_placeholder(names: dict[int, str]) -> bool:
    """Returns whether the names of the classes are their numbers, LABEL_0 and so on, or empty."""
    return all(name in (f"LABEL_{i}", str(i), "") for i, name in names.items())


def inverted(label2id: Any, where: Path) -> dict[int, str]:
    """Returns {class number: name} of a published label2id, {} if it is missing.

    Numbers may be spelled as text ("1") or as floats (1.0), and a table that maps numbers to names is an id2label.
    Raises ValueError for another table.
    """
    if label2id is None or label2id == {}:
        return {}
    entries = list(label2id.items()) if isinstance(label2id, dict) else [("", None)]
    for pairs in ([(number, name) for name, number in entries], entries):
        pairs = [(int(key) if isinstance(key, float) and key.is_integer() else key, name) for key, name in pairs]
        names = {int(str(key)): one_line(str(name)) for key, name in pairs if is_entry((key, name))}
        if len(names) == len(entries):
            return names
    raise ValueError(f"{where}: label2id {show(repr(label2id))} does not map names to class numbers; {CORRECT_IT}")


def is_entry(entry: tuple[Any, Any]) -> bool:
    """Returns whether an entry of id2label has a class number and a name."""
    key, name = entry
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", str(key)) or isinstance(name, list | dict):
        return False
    return is_class_name(one_line(str(name)))


def checked_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns the given class names as a tuple, checked to be valid in a config.

    Raises TypeError for a string in place of a tuple and for a name that is not a string. Raises ValueError for fewer
    than two names, an invalid name, and equal names.
    """
    if isinstance(labels, str):
        raise TypeError(f"labels is the text {show(labels, 40)}, not a tuple of names")
    names = tuple(labels)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"labels has {show(repr(wrong[0]), 40)}, which is not a string")
    if wrong := [name for name in names if not normalize(name) or not is_class_name(name)]:
        why = f"which is empty, not printable, or longer than {LONGEST_CLASS} characters"
        raise ValueError(f"labels has the name {show(repr(wrong[0]), 40)}, {why}")
    if len({canonical(name) for name in names}) < max(2, len(names)):
        raise ValueError(f"labels are {listed(names, 20)}, not two or more different names")
    return names


def placeholder_names(count: int) -> tuple[str, ...]:
    """Returns the names of `count` classes that have none."""
    return SENTIMENT if count == 2 else tuple(map(str, range(count)))


def numbered_rows(labels: tuple[str, ...]) -> tuple[int, ...] | None:
    """Returns the rows of a head without names if those of the data are 0 … count - 1, or LABEL_0 and so on, in any
    order: as text, LABEL_10 comes before LABEL_2. Returns None for other names."""
    numbers = [fold(normalize(label)) for label in labels]
    return tuple(map(int, numbers)) if sorted(numbers) == sorted(map(str, range(len(labels)))) else None


def match_head(
    published: dict[str, Any],
    count: int | None,
    labels: tuple[str, ...] | None,
    where: Path,
    way_out: str = NEW_LAYER,
) -> Head:
    """Returns the classes of the model and the rows of the file's head that belong to them.

    count: classes of the file's head; None: it has none, or a new one replaces it.  labels: the classes of the data;
    None: those of the file.  way_out: what the message proposes for other classes. Raises ValueError for a head that
    does not distinguish these classes.
    """
    if count is None:
        new = labels or SENTIMENT
        return Head(new, tuple(range(len(new))))
    check_kind(published, count, where)
    names = published_names(published, count, where)
    if labels is None:
        labels = names or placeholder_names(count)
    if len(labels) != count:
        shown = listed(names, 20) if names else f"{count} classes without names"
        raise ValueError(f"{where} distinguishes {shown}; the data has {listed(labels, 20)}; {way_out}")
    if names is None:
        head = Head(labels, numbered_rows(labels) or tuple(range(count)))
        by_row = [labels[head.order.index(row)] for row in range(count)]
        if list((published.get("id2label") or {}).values()) != by_row:  # numbers can be the names of classes
            print(f"labels: {where} does not name its classes; by position they are {', '.join(by_row)}")
        return head
    rows = {canonical(name): row for row, name in enumerate(names)}
    if unknown := [label for label in labels if canonical(label) not in rows]:
        raise ValueError(f"{where} distinguishes {listed(names, 20)}, but not {listed(unknown, 20)}; {way_out}")
    order = tuple(rows[canonical(label)] for label in labels)
    if order != tuple(range(count)):
        print(f"labels: the head of {where} has the order {', '.join(names)}; its rows are put into the data's order")
    return Head(tuple(names[row] for row in order), order)


def check_task(published: dict[str, Any], where: Path) -> None:
    """Raises ValueError for a checkpoint whose head labels tokens or answers questions.

    Its last layer has the name and the shape of a classifier's in BERT, DistilBERT, DeBERTa and ModernBERT.
    """
    names = published.get("architectures")
    found = [name for name in names if OTHER_TASK.search(str(name))] if isinstance(names, list) else []
    if found:
        raise ValueError(f"{where} is a {show(found[0])}, whose head does not classify texts; {NEW_LAYER}")


def check_kind(published: dict[str, Any], count: int, where: Path) -> None:
    """Raises ValueError for a head that does not assign each text to one of several classes."""
    if count == 1:
        raise ValueError(f"{where} has a head with one output (regression or ranking), not classes; {NEW_LAYER}")
    problem = published.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{where} has a head for {show(problem)}, which is not supported; {NEW_LAYER}")
