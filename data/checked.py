"""Reads files of unknown origin: every defect becomes one ValueError that names the file and the way out.

`reading` wraps the code that parses a format. `parse_json` and `as_object` read JSON of a bounded size and depth.
`show` makes text of a file fit for a terminal.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from data.errors import interruptible, printable

JSON_BYTES = 2**28  # of a JSON file; the largest tokenizer.json in use has 35 MB
SHOWN = 100  # characters of a value in a message
# characters that change what a terminal shows: controls, line separators, marks of direction and of byte order
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
FETCH = "fetch it again"  # the way out for a file that was not written here
Result = TypeVar("Result")


@contextlib.contextmanager
def reading(path: Path | str, kind: str, way_out: str = FETCH) -> Iterator[None]:
    """Raises each error of the block as `PATH is damaged or not KIND (the error); WAY_OUT`, a ValueError.

    A ValueError that names the path stays as it is, and so does an error of the operating system (no such file, no
    permission, a full disk).  kind: `a tokenizer.json`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None or str(path) in str(error):
            raise
        raise ValueError(damaged(path, kind, error, way_out)) from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(damaged(path, kind, error, way_out)) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # a panic in a Rust package
            raise
        raise ValueError(damaged(path, kind, error, way_out)) from error


def damaged(path: Path | str, kind: str, error: BaseException, way_out: str) -> str:
    """Describes a file that cannot be parsed."""
    reason = "it needs more memory than is available" if isinstance(error, MemoryError) else show(str(error), 200)
    return f"{path} is damaged or not {kind} ({reason or type(error).__name__}); {way_out}"


def with_way_out(problem: str, way_out: str) -> str:
    """Returns the message `PROBLEM; WAY_OUT`, without the second part if it is empty."""
    return f"{problem}; {way_out}" if way_out else problem


def show(value: Any, limit: int = SHOWN) -> str:
    """Returns a value as one line without control characters, cut to `limit` characters.

    Terminal escape sequences in a file never reach the terminal.
    """
    text = printable(str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discards what native code writes to standard error in the block: a panic in a Rust package prints its own
    lines."""
    if sys.stderr is None:  # closed by the caller: `2>&-`
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# ------------------------------------------------------------------------------------------------------------ JSON


def parse_json(text: str | bytes, where: Path | str, way_out: str = FETCH) -> Any:
    """Parses JSON. Raises ValueError that names `where` for text that is not JSON, too large, or nested too deeply.

    way_out: the end of the message, "" if the caller continues it.
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"{where} has {len(text):,} bytes; a JSON file of at most {JSON_BYTES:,} is read")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(with_way_out(f"{where} is nested too deeply to be read", way_out)) from error
    except ValueError as error:  # also UnicodeDecodeError, and numbers of thousands of digits
        raise ValueError(with_way_out(f"{where} is not valid JSON ({show(error)})", way_out)) from error


def as_object(value: Any, where: Path | str) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError that names `where` for any other value."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object {{…}}, not {show(json.dumps(value), 40)}")
    return value


def read_json(path: Path, way_out: str = FETCH) -> Any:
    """Reads a JSON file. Raises FileNotFoundError or ValueError, each naming the file. way_out: as of parse_json"""
    try:
        if (size := path.stat().st_size) > JSON_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; a JSON file of at most {JSON_BYTES:,} is read")
        if path.is_char_device() or path.is_fifo():  # /dev/zero has no end
            raise ValueError(f"{path} is a device or a pipe, not a JSON file")
        return parse_json(path.read_bytes().decode("utf-8-sig"), path, way_out)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(with_way_out(f"{path} is not valid JSON ({error})", way_out)) from error


def read_object(path: Path, way_out: str = FETCH) -> dict[str, Any]:
    """Reads a JSON file with one object. Raises as read_json does."""
    return as_object(read_json(path, way_out), path)


# ------------------------------------------------------------------------------------------------------------ time


def within(seconds: float, work: Callable[[], Result], what: str) -> Result:
    """Returns work(), computed in a thread. Raises ValueError that names `what` if it takes longer than `seconds`.

    These are seconds of processor time of this process, or a tenth of the elapsed time if that is more, so that other
    programs on a busy machine do not end the work.
    """
    start, computed = time.monotonic(), time.process_time()

    def spent() -> float:
        return max(time.process_time() - computed, (time.monotonic() - start) / 10)

    try:
        return interruptible(work, seconds, spent)
    except TimeoutError as error:
        raise ValueError(f"{what} is not finished after {seconds:,.0f} s, and is given up") from error


# ----------------------------------------------------------------------------------------------- values of an object

NAMES: dict[Any, str] = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null",
}  # fmt: skip


@contextlib.contextmanager
def about(path: Path | str, what: str = "") -> Iterator[None]:
    """Raises each ValueError of the block as `PATH WHAT: the error`, unless it names the path already.

    what: `is not UTF-8`.
    """
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}{what and ' '}{what}: {show(error, 1000)}") from error


def has_type(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value fits an annotation: int, float, bool, str, None, Any, tuple[X, ...], list[X],
    dict[str, X], or one of several (X | Y). A whole number is a float too; NaN and infinity are not."""
    if kind is Any:
        return True
    if get_origin(kind) in (Union, UnionType):
        return any(has_type(value, one) for one in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return isinstance(value, list | tuple) and all(has_type(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(has_type(item, get_args(kind)[1]) for item in value.values())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


def type_text(kind: Any) -> str:
    """Describes an annotation: `a whole number or null`, `a list (text)`."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(type_text(one) for one in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return f"a list ({type_text(get_args(kind)[0])})"
    return "an object {…}" if get_origin(kind) is dict else NAMES.get(kind, "any value")


def check_types(values: Mapping[str, Any], kinds: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
    """Raises ValueError for the values that do not fit the annotation of their name. names: in the message, if they
    differ."""
    wrong = [name for name, kind in kinds.items() if name in values and not has_type(values[name], kind)]
    if wrong:
        name = wrong[0]
        shown = (names or {}).get(name, name)
        raise ValueError(f"{shown} = {show(repr(values[name]), 60)} must be {type_text(kinds[name])}")


def listed(names: Iterable[Any], most: int = 5) -> str:
    """Lists names for a message: fit for a terminal, and not more than `most`."""
    found = list(islice(names, most + 1))
    return ", ".join(show(name) for name in found[:most]) + (", …" if len(found) > most else "")
