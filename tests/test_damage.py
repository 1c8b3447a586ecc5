"""Damaged files of every format end in success or in one line; tests/reliability.py reads 100 times as many."""

import mmap
import os
from collections import Counter
from pathlib import Path

import pytest
from damage import SECONDS, read_in_child, read_in_one_child, run_format
from damage_run import FORMATS

SIZES = Counter(name.split()[0] for name in FORMATS)  # forms of one format share its inputs
FAILURES = ("traceback", "hang", "memory", "died")


@pytest.mark.filterwarnings(
    "ignore:This process.*is multi-threaded:DeprecationWarning", "ignore:Sparse CSR:UserWarning"
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_with_one_line(name: str, one_thread: None):
    found = run_format(name, FORMATS[name], count=-(-20 // SIZES[name.split()[0]]), seed=1)
    assert found["places"] == {}
    assert [found[kind] for kind in FAILURES] == [0, 0, 0, 0]
    assert found["read"] + found["refused"] == found["inputs"]


def explode(_: object) -> None:
    raise TypeError("'NoneType' object is not subscriptable")


def refuse(_: object) -> None:
    raise ValueError("x.json is damaged; fetch it again")


def escape(_: object) -> None:
    raise ValueError("x.json has the title \x1b[31mred")


def grow(_: object) -> None:
    pages = mmap.mmap(-1, 2**30 + 2**26)  # not from memory that this process freed before
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (len, "traceback"),
        (explode, "traceback"),
        (refuse, "refused"),
        (escape, "refused"),  # as an escape sequence
        (grow, "memory"),
        (str, "read"),
    ],
)
def test_how_a_reader_ends_is_judged(use, kind: str, tmp_path, one_thread: None):
    folder = tmp_path / "input"
    folder.mkdir()
    outcome = read_in_child(use, folder)
    assert outcome.kind == kind
    assert outcome.seconds < SECONDS


def end_by_name(folder: Path) -> None:
    {"read": str, "refused": refuse, "traceback": explode, "died": lambda _: os._exit(3)}[folder.suffix[1:]](folder)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_inputs_read_together_are_judged_as_alone(tmp_path: Path, one_thread: None):
    """Neither a traceback nor the death of the child hides how the other inputs end."""
    kinds = ["read", "refused", "traceback", "read", "died", "refused", "traceback", "read"]
    folders = [tmp_path / f"{number}.{kind}" for number, kind in enumerate(kinds)]
    for folder in folders:
        folder.mkdir()
    assert [outcome.kind for outcome in read_in_one_child(end_by_name, folders)] == kinds
