"""Shows how far long work is: as a bar on a terminal, elsewhere (a log, a pipe) as a line a minute."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 60.0  # before the first line, and between two lines
LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} elapsed, {remaining} left{postfix}"
ENDLESS = "{desc}: {n_fmt}{unit}, {elapsed} elapsed"  # of a length that is unknown


class Lines:
    """Writes the states of a bar, which overwrite each other on a terminal, as lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Writes a state, without the characters that move the cursor and overwrite."""
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flushes the stream."""
        self.stream.flush()


@contextmanager
def progress_bar(items: Iterable[Any] | None = None, hidden: bool = False, **options: Any) -> Iterator[tqdm]:
    """Shows a bar on standard error in a `with` block. Its end, also by an error, removes the bar from a terminal.

    items: what an iteration yields.  hidden: shows nothing.  options: tqdm's total, initial, desc, unit, ….
    """
    if not hidden and not sys.stderr.isatty():
        line = LINE if "total" in options or hasattr(items, "__len__") else ENDLESS
        options |= {"file": Lines(sys.stderr), "bar_format": line}
        options |= {"delay": SECONDS, "mininterval": SECONDS, "miniters": 1}
    with tqdm(items, leave=False, disable=hidden, **options) as bar:
        yield bar
