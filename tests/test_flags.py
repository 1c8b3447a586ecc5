"""Flags made from dataclasses: values, messages, help."""

import dataclasses
from pathlib import Path

import pytest

from data.eval_options import Options as EvalOptions
from data.flags import (
    check_choice,
    flag,
    merge_defaults,
    option,
    parse_fields,
    parse_flags,
    pick_fields,
    split_folders,
)


@dataclasses.dataclass(frozen=True)
class Options:
    rate: float = option(0.1, "one", "50% of it")
    size: int = option(3, "one", "a size")
    name: str = option("", "two", "a name")
    fast: bool = option(False, "two", "a switch")


@dataclasses.dataclass(frozen=True)
class Other:
    depth: int = option(1, "three", "a depth")
    width: int = option(2, "three", "a width")


@dataclasses.dataclass(frozen=True)
class Deeper(Other):
    depth: int = option(9, "three", "a depth")


@dataclasses.dataclass(frozen=True)
class Several:
    learning_rate: float = option(1.0, "four", "a rate", metavar="RATE")
    folders: tuple[str, ...] = option((), "four", "some folders", metavar="DIR")
    colour: str = option("red", "four", "a colour", choices=("red", "green"))
    column: str = option("", "four", "a column", metavar="COLUMN")


CLASSES = {"main": Options, "other": Other, "deeper": Deeper}


def test_flags_are_the_fields_of_all_classes():
    assert parse_flags(CLASSES, [], "") == {}
    given = parse_flags(CLASSES, ["--rate", "2", "--name", "x", "--fast", "--depth", "4"], "")
    assert given == {"rate": 2.0, "name": "x", "fast": True, "depth": 4}
    assert parse_flags(CLASSES, ["--no-fast"], "") == {"fast": False}
    for wrong in (["--rat", "1"], ["--size", "1.5"], ["--size"]):
        with pytest.raises(SystemExit) as stop:
            parse_flags(CLASSES, wrong, "")
        assert stop.value.code == 2


def test_a_tilde_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse_flags({"eval.py": EvalOptions}, ["--data=~/f.csv", "--out=~/o", "--text=~/x", "--run=~/a"], "")
    assert found == {"data": f"{tmp_path}/f.csv", "out": f"{tmp_path}/o", "text": "~/x", "run": (f"{tmp_path}/a",)}


def test_help_shows_groups_defaults_and_lists(capsys):
    with pytest.raises(SystemExit):
        parse_flags(CLASSES, ["--help"], "", {"name": ["red", "green"]})
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("50% of it (default: 0.1)", "a name: red, green", "a depth (default: 1 for other, 9 for deeper)"):
        assert text in shown
    assert "a width (default: 2)" in shown


def test_later_layers_override_earlier_ones_and_origins_are_recorded():
    values, origins = merge_defaults([Options], [("model", {"rate": 1.0, "size": 5}), ("command line", {"rate": 2.0})])
    assert pick_fields(Options, values | {"else": 1}) == Options(rate=2.0, size=5)
    assert origins == {"rate": "command line", "size": "model", "name": "default", "fast": "default"}


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown colour 'blue'; known: red, green"):
        check_choice("colour", "blue", {"red": 1, "green": 2})
    assert check_choice("colour", "red", {"red": 1}) == 1


def test_fields_of_a_config_from_text():
    assert parse_fields(Options, "rate=3 size=4 name=a+b fast=True") == {
        "rate": 3.0, "size": 4, "name": "a+b", "fast": True,
    }  # fmt: skip
    for text, message in (
        ("size=x", "--shape size=x: 'x' is not a whole number"),
        ("rate=x", "'x' is not a number"),
        ("rate=nan", "'nan' is not a finite number"),
        ("fast=1", "neither true nor false"),
        ("size=1,rate=2", "--shape size=1,rate=2: put a space between two fields"),
        ("sice=1", "unknown field of --shape 'sice'; known: rate, size, name, fast"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_fields(Options, text)
    assert flag("max_length") == "--max-length"


@dataclasses.dataclass(frozen=True)
class Shape:
    terms: tuple[str, ...] = ()
    sizes: tuple[int, ...] | None = None
    width: int | None = None
    dropout: float | None = None
    table: dict[str, int] | None = None


def test_a_field_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="--shape names size twice; leave one out"):
        parse_fields(Options, "size=16 rate=1 size=32")


def test_fields_are_parsed_by_their_type():
    """A field that may be None is no float, and a tuple is no sequence of characters."""
    assert parse_fields(Shape, "terms=c2p,p2c sizes=1,2 width=64 dropout=0") == {
        "terms": ("c2p", "p2c"), "sizes": (1, 2), "width": 64, "dropout": 0.0,
    }  # fmt: skip
    assert isinstance(parse_fields(Shape, "width=64")["width"], int)
    assert parse_fields(Shape, "terms=c2p|p2c width=none") == {"terms": ("c2p", "p2c"), "width": None}
    with pytest.raises(ValueError, match="a dict cannot be given on the command line"):
        parse_fields(Shape, "table={}")


@pytest.mark.parametrize("text", ["-bad", "--bad", "-1", "- a list", "--no good, this", "-h is no word", "", "a=b"])
def test_a_value_may_begin_with_a_dash(text: str):
    assert parse_flags(CLASSES, ["--name", text, "--fast"], "") == {"name": text, "fast": True}
    assert parse_flags(CLASSES, [f"--name={text}"], "") == {"name": text}


def test_negative_numbers_are_values():
    assert parse_flags(CLASSES, ["--size", "-3", "--rate", "-1e-3"], "") == {"size": -3, "rate": -0.001}


def test_a_flag_takes_several_values(tmp_path: Path):
    four = {"main": Several}
    found = parse_flags(four, ["--folders", "a b", "c", "--learning-rate", "2"], "")
    assert found == {"folders": ("a b", "c"), "learning_rate": 2.0}
    assert parse_flags(four, ["--folders", "a", "b", "--folders", "c"], "") == {"folders": ("a", "b", "c")}
    (tmp_path / "my runs").mkdir()
    (tmp_path / "other").mkdir()
    both, mine, other = f"{tmp_path}/other {tmp_path}/other", f"{tmp_path}/my runs", f"{tmp_path}/other"
    assert split_folders([mine, other]) == [mine, other]
    assert split_folders([both]) == [other, other]
    assert split_folders([f"{tmp_path}/not here"]) == [f"{tmp_path}/not here"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--foo", "1"], "unknown flag --foo"),
        (["--learning-rat", "1"], "unknown flag --learning-rat; did you mean --learning-rate?"),
        (["--lr=1"], "unknown flag --lr; did you mean --learning-rate?"),
        (["--zzz"], "unknown flag --zzz"),
        (["-x"], "unknown flag -x"),
        (["--size", "1.5"], "--size: '1.5' is not a whole number"),
        (["--size", str(2**63)], "--size: 9223372036854775808 is beyond 64 bits"),
        (["--size", str(-(2**63) - 1)], "--size: -9223372036854775809 is beyond 64 bits"),
        (["--rate", "fast"], "--rate: 'fast' is not a number"),
        (["--rate", "inf"], "--rate: 'inf' is not a finite number"),
        (["--size"], "--size needs a value"),
        (["--name", "--fast"], "--name needs a value"),
        (
            ["--name", "--nofast"],
            "--name needs a value; did you mean --no-fast? (--name=--nofast takes it as the value)",
        ),
        (["--folders"], "--folders needs a value"),
        (["--folders", "a", ""], "--folders is empty"),
        (["--column="], "--column is empty"),
        (["--fast", "yes"], "--fast takes no value, but 'yes' follows it"),
        (["--fast=yes"], "--fast takes no value"),
        (["bert"], "'bert' belongs to no flag; a value with spaces needs quotes"),
        (["--name", "two", "words"], "'words' belongs to no flag; a value with spaces needs quotes"),
        (["--colour", "gren"], "--colour: unknown value 'gren'; known: red, green; did you mean green?"),
    ],
)
def test_messages_say_what_is_wrong(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse_flags({**CLASSES, "several": Several}, argv, "")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message} (--help lists every flag)\n"


def test_help_has_a_short_usage_examples_and_metavars(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse_flags({"main": Several}, ["--help"], "What it does.", examples={"four": "python it.py --colour red"})
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert shown.splitlines()[0].endswith("[--FLAG VALUE ...]")
    assert shown.splitlines()[1] == ""
    assert "four:\n  python it.py --colour red\n" in shown
    assert "--learning-rate RATE" in shown
    assert "--folders DIR [DIR ...]" in shown
    assert "a colour: red, green (default: red)" in shown


def test_a_flag_with_an_optional_value():
    @dataclasses.dataclass(frozen=True)
    class Optional:
        page: str = option("", "one", "a page", metavar="FILE", bare="-")
        name: str = option("", "one", "a name")

    for words, expected in (
        ("--page", {"page": "-"}),
        ("--page --name x", {"page": "-", "name": "x"}),
        ("--page out.html --name x", {"page": "out.html", "name": "x"}),
        ("--page=out.html", {"page": "out.html"}),
        ("--name x", {"name": "x"}),
    ):
        assert parse_flags({"main": Optional}, words.split(), "") == expected


def test_a_flag_given_twice_counts_last_or_is_refused(capsys: pytest.CaptureFixture[str]):
    arguments = ["--rate", "2", "--rate=3"]
    assert parse_flags(CLASSES, arguments, "") == {"rate": 3}
    with pytest.raises(SystemExit):
        parse_flags(CLASSES, arguments, "", once=True)
    assert "--rate is given twice" in capsys.readouterr().err
