"""Damaged files of every format end in success or in one line; tests/reliability.py reads fifty times as many."""

import mmap
from collections import Counter

import pytest
import torch
from damage import SECONDS, read_in_child, run_format
from damage_run import FORMATS

SIZES = Counter(name.split()[0] for name in FORMATS)  # forms of one format share its inputs
FAILURES = ("traceback", "hang", "memory", "died")


@pytest.fixture
def forking():
    """Uses one thread: a forked child cannot use the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings(
    "ignore:This process.*is multi-threaded:DeprecationWarning", "ignore:Sparse CSR:UserWarning"
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_with_one_line(name: str, forking: None):
    found = run_format(name, FORMATS[name], count=-(-40 // SIZES[name.split()[0]]), seed=1)
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
    fresh = mmap.mmap(-1, 2**30 + 2**26)  # not from memory that this process freed before
    for start in range(0, len(fresh), mmap.PAGESIZE):
        fresh[start] = 1


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (len, "traceback"),
        (explode, "traceback"),
        (refuse, "refused"),
        (escape, "traceback"),
        (grow, "memory"),
        (str, "read"),
    ],
)
def test_how_a_reader_ends_is_judged(use, kind: str, tmp_path, forking: None):
    folder = tmp_path / "input"
    folder.mkdir()
    outcome = read_in_child(use, folder)
    assert outcome.kind == kind
    assert outcome.seconds < SECONDS
