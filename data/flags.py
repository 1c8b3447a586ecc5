"""Makes command-line flags from dataclasses, and records where each value came from."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

Value = TypeVar("Value")


def option(default: Any, group: str, text: str) -> Any:
    """Returns a dataclass field with its default, its group in --help, and its help text."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


def flag(name: str) -> str:
    """Returns the command-line spelling of a field: `max_length` -> `--max-length`."""
    return "--" + name.replace("_", "-")


def field_names(cls: type) -> set[str]:
    """Returns the names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(cls)}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints one line for an error and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists every flag)", file=sys.stderr)
        sys.exit(2)


def default_text(defaults: dict[str, Any]) -> str:
    """Describes the default of a field, or its defaults if they differ by owner. defaults: {owner: default}"""
    shown = {owner: value for owner, value in defaults.items() if value not in ("", None)}
    if len(set(shown.values())) > 1:
        return " (default: " + ", ".join(f"{value} for {owner}" for owner, value in shown.items()) + ")"
    return f" (default: {next(iter(shown.values()))})" if shown else ""


def parse_flags(
    classes: Mapping[str, type],
    argv: Sequence[str] | None,
    description: str,
    lists: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, Any]:
    """Parses the fields of several dataclasses. Returns {field: value} for the flags on the command line.

    classes: {owner: dataclass}; a field that several classes share is one flag.  lists: {field: names} that --help
    appends to the field's text. An unknown flag or a value of the wrong type exits with code 2.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    owners: dict[str, dict[str, dataclasses.Field]] = {}
    for owner, cls in classes.items():
        for field in dataclasses.fields(cls):
            owners.setdefault(field.name, {})[owner] = field
    for name, fields in owners.items():
        field = next(iter(fields.values()))
        group = field.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(group))
        text = field.metadata["help"] + (f": {', '.join(lists[name])}" if lists and name in lists else "")
        text = (text + default_text({owner: f.default for owner, f in fields.items()})).replace("%", "%%")
        if field.type is bool:
            groups[group].add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            kind: Any = field.type
            groups[group].add_argument(flag(name), type=kind, metavar=kind.__name__.upper(), help=text)
    return vars(parser.parse_args(argv))


def parse_fields(cls: type, text: str) -> dict[str, Any]:
    """Parses `hidden_size=64 pooling=max+mean` into values for fields of the dataclass `cls`.

    Raises ValueError for an unknown field or a value of the wrong type.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls) if field.name != "labels"}
    values: dict[str, Any] = {}
    for part in text.split():
        name, _, value = part.partition("=")
        default = check_choice("field of --shape", name, defaults)
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"--shape {part}: {value!r} is neither true nor false")
            values[name] = value.lower() == "true"
            continue
        kind: Any = float if default is None else type(default)
        try:
            values[name] = kind(value)
        except ValueError:
            raise ValueError(f"--shape {part}: {value!r} is not of type {kind.__name__}") from None
    return values


def check_choice(kind: str, name: str, table: Mapping[str, Value]) -> Value:
    """Returns table[name]. Raises ValueError that lists the known names."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
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
