"""Flags of a command from the fields of a dataclass, and the origin of each value."""

import argparse
import dataclasses
import sys
from typing import Any


def option(default: Any, group: str, text: str) -> Any:
    """A field of an options dataclass: its default, the group that --help shows it in, and what it says there."""
    return dataclasses.field(default=default, metadata={"group": group, "help": text})


def flag(name: str) -> str:
    """How the command line spells a field."""
    return "--" + name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"error: {message} (--help lists every flag)", file=sys.stderr)
        sys.exit(2)


def parse_flags(cls: type, argv: list[str] | None, description: str) -> dict[str, Any]:
    """The fields of `cls` that the command line names, as {field: value}. An unknown flag or bad value exits with 2."""
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        group = field.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(group))
        text = field.metadata["help"]
        text += f" (default: {field.default})" if field.default not in ("", None) else ""
        if field.type is bool:
            groups[group].add_argument(
                flag(field.name), action=argparse.BooleanOptionalAction, help=text.replace("%", "%%")
            )
        else:
            groups[group].add_argument(
                flag(field.name), type=field.type, metavar=field.type.__name__.upper(), help=text.replace("%", "%%")
            )
    return vars(parser.parse_args(argv))


def parse_fields(cls: type, text: str) -> dict[str, Any]:
    """`hidden_size=64 pooling=max+mean` -> values for fields of the dataclass `cls`. Raises ValueError for an unknown
    field or a value of another type."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls) if field.name != "labels"}
    values = {}
    for part in text.split():
        name, _, value = part.partition("=")
        default = known("field of --shape", name, defaults)
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"--shape {part}: {value!r} is neither true nor false")
            values[name] = value.lower() == "true"
            continue
        kind = float if default is None else type(default)
        try:
            values[name] = kind(value)
        except ValueError:
            raise ValueError(f"--shape {part}: {value!r} is no {kind.__name__}") from None
    return values


def known(kind: str, name: str, table: dict[str, Any]) -> Any:
    """table[name]. Raises ValueError that lists what is known."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return table[name]


def layer(cls: type, layers: list[tuple[str, dict[str, Any]]]) -> tuple[Any, dict[str, str]]:
    """(options, {field: origin}): each layer overrides the ones before it."""
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    origins = dict.fromkeys(values, "default")
    for origin, given in layers:
        values |= given
        origins |= dict.fromkeys(given, origin)
    return cls(**values), origins
