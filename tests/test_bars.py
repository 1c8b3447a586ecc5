"""Tests of data/bars.py."""

import contextlib
import io
import sys

import pytest
from conftest import fail_at

import train
from data import bars
from data.bars import progress_bar


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_of_each_minute(monkeypatch, capsys):
    monkeypatch.setattr(bars, "SECONDS", 1e-9)
    with progress_bar(total=4, initial=1, desc="epoch 1/2", unit=" steps") as bar:
        for loss in (0.5, 0.25, 0.125):
            bar.set_postfix({"loss": loss}, refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" elapsed")[0][:-7] for line in lines] == [f"epoch 1/2: {n} of 4 steps" for n in (2, 3, 4)]
    assert [line.rpartition(" left, ")[2] for line in lines] == ["loss=0.5", "loss=0.25", "loss=0.125"]


@pytest.mark.parametrize("hidden", [False, True])
def test_short_or_hidden_work_writes_nothing_into_a_log(capsys, hidden):
    with progress_bar(range(1000), hidden=hidden, desc="scoring") as bar:
        assert list(bar) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_hidden_long_work_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(bars, "SECONDS", 1e-9)
    with progress_bar(range(10), hidden=True) as bar:
        assert len(list(bar)) == 10
    assert capsys.readouterr().err == ""


def test_a_length_that_is_unknown(monkeypatch, capsys):
    monkeypatch.setattr(bars, "SECONDS", 1e-9)
    with progress_bar((n for n in range(2)), desc="unpacking", unit=" files") as bar:
        assert list(bar) == [0, 1]
    assert capsys.readouterr().err == "unpacking: 1 files, 00:00 elapsed\nunpacking: 2 files, 00:00 elapsed\n"


def test_a_terminal_gets_a_bar_that_is_removed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with progress_bar(total=2, desc="scoring", mininterval=0) as bar:
        bar.update()
        bar.update()
    shown = stream.getvalue()
    assert "50%|" in shown
    assert "\n" not in shown
    assert shown.endswith("\r")


def test_an_error_removes_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with contextlib.suppress(ValueError), progress_bar(range(2), desc="unpacking") as bar:
        raise ValueError(next(iter(bar)))
    assert stream.getvalue().endswith(" \r")


def test_an_error_in_training_removes_the_bar(small_run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    fail_at(3, monkeypatch)
    with pytest.raises(SystemExit):
        train.main(small_run)
    assert "epoch 1/2:" in stream.getvalue()
    assert stream.getvalue().endswith(" \r")
