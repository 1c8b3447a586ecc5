import dataclasses

import pytest

from data.flags import check_choice, flag, merge_defaults, option, parse_fields, parse_flags, pick_fields


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
        ("size=x", "'x' is not of type int"),
        ("fast=1", "neither true nor false"),
        ("sice=1", "unknown field of --shape 'sice'; known: rate, size, name, fast"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_fields(Options, text)
    assert flag("max_length") == "--max-length"
