"""Makes command-line flags from dataclasses, and records where each value came from."""

import argparse
import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from data.checked import show
from data.files import user_path

Value = TypeVar("Value")

# of fields whose value is a path, or may be one
PATHS = ("DIR", "FILE", "DIR_OR_FILE", "DIR_OR_ID", "WEIGHTS", "RUN_OR_WEIGHTS", "VECTORS", "[FILE.html]")
FILLED = (*PATHS, "COLUMN", "ENCODING", "STYLE")  # of fields whose value may not be ""
METAVARS: dict[Any, str] = {int: "N", float: "NUMBER"}  # of fields that name no other; text: TEXT


def option(default: Any, group: str, text: str, metavar: str = "", choices: Sequence[str] = (), bare: str = "") -> Any:
    """Returns a dataclass field with its default, its group in --help, and its help text.

    metavar: what the value is, in --help (FILE, DIR, NAME).  choices: the values that are accepted.
    bare: the value of a flag given without one; "": a value is required.
    A field of type tuple[str, ...] is a flag that takes one or more values.
    """
    metadata = {"group": group, "help": text, "metavar": metavar, "choices": tuple(choices), "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """Returns the command-line spelling of a field: `max_length` -> `--max-length`."""
    return "--" + name.replace("_", "-")


def field_names(cls: type) -> set[str]:
    """Returns the names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(cls)}


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns `; did you mean NAME?` with the closest of `names`, or "" if none is close.

    A flag is also found by its initials: `--lr`. cutoff: the smallest similarity, of 0 to 1.
    """
    names = list(names)
    initials = {"--" + "".join(part[:1] for part in other[2:].split("-")): other for other in names}
    bare = {other.lstrip("-"): other for other in names}  # dashes would make all flags similar
    close = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=cutoff)
    found = initials.get(name) or (bare[close[0]] if close else "")
    return f"; did you mean {found}?" if found else ""


# ------------------------------------------------------------------------------------------------------ the parser


class Parser(argparse.ArgumentParser):
    """An ArgumentParser of flags alone. It prints one line for an error and exits with code 2.

    The value of a flag with one value may begin with a dash: `--text "-bad"`.
    """

    once = False  # whether a flag with one value is refused if it is given twice, as one with a file always is

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        print(f"error: {text} (--help lists every flag)", file=sys.stderr)
        sys.exit(2)

    def flags(self) -> dict[str, argparse.Action]:
        """Returns every flag with its action, in the order of --help."""
        return {name: action for action in self._actions for name in action.option_strings}

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Returns {field: value} of the flags in argv. Exits with code 2 for an error."""
        return vars(self.parse_args(self.joined(argv)))

    def joined(self, argv: Sequence[str]) -> list[str]:
        """Joins each flag that takes one value with this value, `--text=-bad`, so that it may begin with a dash.

        Exits with code 2 for an unknown flag, a missing value, or a value without a flag.
        """
        known, waiting = self.flags(), list(argv)
        found: list[str] = []
        while waiting:
            name, equals, _ = waiting[0].partition("=")
            if name not in known:
                self.unknown(waiting[0], found, known)
            action, token = known[name], waiting.pop(0)
            if action.nargs == 0 and equals:
                self.error(f"{name} takes no value")
            once = self.once or action.metavar in ("FILE", "DIR_OR_FILE")  # one would expect both to be read
            if once and action.nargs not in (0, "+") and any(f.partition("=")[0] == name for f in found):
                self.error(f"{name} is given twice")
            if action.nargs == 0 or equals:
                found.append(token)
            elif action.nargs == "+":
                found += [token, *self.values(name, waiting)]
            elif action.nargs == "?" and (not waiting or waiting[0].startswith("--")):
                found.append(f"{token}={action.const}")
            else:
                found.append(f"{token}={self.value(name, waiting, known)}")
        return found

    def value(self, name: str, waiting: list[str], known: Iterable[str]) -> str:
        """Removes the value of the flag `name` from `waiting`, and returns it."""
        token = waiting[0].partition("=")[0] if waiting else ""
        if not waiting or token in known:
            self.error(f"{name} needs a value")
        if token.startswith("--") and (hint := did_you_mean(token, known, cutoff=0.8)):
            self.error(f"{name} needs a value{hint} ({name}={waiting[0]} takes it as the value)")
        return waiting.pop(0)

    def values(self, name: str, waiting: list[str]) -> list[str]:
        """Removes the values of the flag `name`, up to the next flag, from `waiting`, and returns them."""
        end = next((k for k, token in enumerate(waiting) if token.startswith("-")), len(waiting))
        if not end:
            self.error(f"{name} needs a value")
        taken, waiting[:] = waiting[:end], waiting[end:]
        return taken

    def unknown(self, token: str, before: Sequence[str], known: Mapping[str, argparse.Action]) -> NoReturn:
        """Exits with code 2 for a token that is no flag. before: the tokens before it."""
        if token.startswith("-"):
            name = token.partition("=")[0]
            self.error(f"unknown flag {name}{did_you_mean(name, known)}")
        last = before[-1] if before else ""
        if last in known and known[last].nargs == 0:
            self.error(f"{last} takes no value, but {token!r} follows it")
        self.error(f"{token!r} belongs to no flag; a value with spaces needs quotes")


def whole_number(text: str) -> int:
    """Parses an int of 64 bits, which torch's sizes and seeds are. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{show(text, 40)} is beyond 64 bits")
    return value


def finite_number(text: str) -> float:
    """Parses a finite float. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def true_or_false(text: str) -> bool:
    """Parses a bool. Raises ArgumentTypeError."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


PARSERS: dict[Any, Callable[[str], Any]] = {bool: true_or_false, int: whole_number, float: finite_number, str: str}


def default_text(defaults: dict[str, Any]) -> str:
    """Describes the default of a field, or its defaults if they differ by owner. defaults: {owner: default}"""
    shown = {owner: value for owner, value in defaults.items() if value not in ("", None, ())}
    if len(set(shown.values())) > 1:
        return " (default: " + ", ".join(f"{value} for {owner}" for owner, value in shown.items()) + ")"
    return f" (default: {next(iter(shown.values()))})" if shown else ""


def add_flag(group: Any, name: str, fields: Mapping[str, dataclasses.Field], names: Iterable[str]) -> None:
    """Adds the flag of a field to an argument group. fields: {owner: field}.  names: the values that --help lists."""
    field = next(iter(fields.values()))
    kind, choices = field.type, field.metadata["choices"]
    known = ", ".join(names or choices)
    text = field.metadata["help"] + (f": {known}" if known else "")
    text = (text + default_text({owner: f.default for owner, f in fields.items()})).replace("%", "%%")
    if kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        return
    metavar = field.metadata["metavar"] or ("NAME" if known else METAVARS.get(kind, "TEXT"))
    values: dict[str, Any] = {"metavar": metavar, "help": text}
    if get_origin(kind) in (tuple, list):
        values |= {"nargs": "+", "action": "extend"}
    else:
        values |= {"type": one_of(choices) if choices else PARSERS[kind]}
        values |= {"nargs": "?", "const": field.metadata["bare"]} if field.metadata["bare"] else {}
    group.add_argument(flag(name), **values)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Returns a function that returns its argument if it is one of `choices`, otherwise raises ArgumentTypeError."""

    def parse(text: str) -> str:
        try:
            return check_choice("value", text, dict(zip(choices, choices, strict=True)))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def parse_flags(
    classes: Mapping[str, type],
    argv: Sequence[str] | None,
    description: str,
    lists: Mapping[str, Iterable[str]] | None = None,
    examples: Mapping[str, str] | None = None,
    once: bool = False,
) -> dict[str, Any]:
    """Parses the fields of several dataclasses. Returns {field: value} for the flags on the command line.

    classes: {owner: dataclass}; a field that several classes share is one flag.  lists: {field: names} that --help
    appends to the field's text.  examples: {group: command} that --help shows.  once: whether a flag with one value is
    refused if it is given twice, as one with a file always is; otherwise the last value counts. An unknown flag or a
    value of the wrong type exits with code 2.
    """
    parser = Parser(
        prog=f"python {Path(sys.argv[0]).name}",
        usage="%(prog)s [--FLAG VALUE ...]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.once = once
    groups: dict[str, Any] = {}
    owners: dict[str, dict[str, dataclasses.Field]] = {}
    for owner, cls in classes.items():
        for field in dataclasses.fields(cls):
            owners.setdefault(field.name, {})[owner] = field
    for name, fields in owners.items():
        group = next(iter(fields.values())).metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group, (examples or {}).get(group))
        add_flag(groups[group], name, fields, (lists or {}).get(name, ()))
    given = parser.parse(sys.argv[1:] if argv is None else argv)
    metavars = {name: next(iter(fields.values())).metadata["metavar"] for name, fields in owners.items()}
    for name in given.keys() & {name for name, metavar in metavars.items() if metavar in FILLED}:
        if "" in (given[name] if isinstance(given[name], list) else [given[name]]):
            parser.error(f"{flag(name)} is empty")
    paths = given.keys() & {name for name, metavar in metavars.items() if metavar in PATHS}
    for name in paths:  # a shell does not expand ~ in --flag=~/x
        given[name] = [*map(expanded, given[name])] if isinstance(given[name], list) else expanded(given[name])
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def expanded(path: str) -> str:
    """Returns the path of a flag with `~` expanded."""
    return str(user_path(path)) if path.startswith("~") else path


def split_folders(values: Iterable[str]) -> list[str]:
    """Splits values that are several folders separated by spaces. The name of an existing folder stays whole."""
    found: list[str] = []
    for value in values:
        parts = value.split()
        several = not Path(value).exists() and len(parts) > 1 and all(Path(part).exists() for part in parts)
        found += parts if several else [value]
    return found


def parse_fields(cls: type, text: str) -> dict[str, Any]:
    """Parses `hidden_size=64 pooling=max+mean` into values for fields of the dataclass `cls`.

    Raises ValueError for an unknown or a repeated field, for a value of the wrong type, and for fields without a space
    between them.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name != "labels"}
    values: dict[str, Any] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        if name in values:
            raise ValueError(f"--shape names {name} twice; leave one out")
        if "=" in value:
            raise ValueError(f'--shape {part}: put a space between two fields: --shape "FIELD=VALUE FIELD=VALUE"')
        try:
            values[name] = parse_field(check_choice("field of --shape", name, fields), value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--shape {part}: {error}") from None
    return values


def parse_field(field: dataclasses.Field, text: str) -> Any:
    """Parses the value of a field by its type: bool, int, float, str, a tuple of them (`c2p,p2c`), or one or None.

    Raises ArgumentTypeError.
    """
    kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    kind: Any = get_origin(kinds[0]) or kinds[0]
    if kind is tuple:
        parse = PARSERS[get_args(kinds[0])[0]]
        return tuple(parse(part) for part in text.replace("|", ",").split(","))
    if kind not in PARSERS:
        raise argparse.ArgumentTypeError(f"a {kind.__name__} cannot be given on the command line")
    return PARSERS[kind](text)


def check_different(folders: Sequence[str], name: str) -> None:
    """Raises ValueError for a folder that is named twice: its answers would count double. name: the flag

    The folder `best` of a run is the run.
    """
    found = [Path(os.path.realpath(user_path(folder))) for folder in folders]  # `resolve` raises an error for a loop
    paths = [path.parent if path.name == "best" else path for path in found]
    if repeated := next((folder for i, folder in enumerate(folders) if paths[i] in paths[:i]), None):
        raise ValueError(f"{name} names {repeated} twice; leave one out")


def check_choice(kind: str, name: str, table: Mapping[str, Value]) -> Value:
    """Returns table[name]. Raises ValueError that lists the known names."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}{did_you_mean(name, table)}")
    return table[name]


def merge_defaults(
    classes: Iterable[type], layers: Iterable[tuple[str, Mapping[str, Any]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges the defaults of dataclasses with layers of values; each layer overrides the ones before it.

    layers: (origin, {field: value}). Returns ({field: value}, {field: origin}).
    """
    values = {field.name: field.default for cls in classes for field in dataclasses.fields(cls)}
    origins = dict.fromkeys(values, "default")
    for origin, given in layers:
        values.update(given)
        origins.update(dict.fromkeys(given, origin))
    return values, origins


def pick_fields(cls: type[Value], values: Mapping[str, Any]) -> Value:
    """Builds the dataclass `cls` from the entries of `values` that are its fields."""
    return cls(**{name: value for name, value in values.items() if name in field_names(cls)})
