"""Ends a program with one line: for errors that a user can fix, for signals, and for running out of memory."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import torch


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Prints an error that a user can fix as one line and exits with code 2. DEBUG=1 keeps the traceback."""
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        message = explain(error)
        if message is None or os.environ.get("DEBUG"):
            raise
        traceback.clear_frames(error.__traceback__)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an allocation failed, on a GPU or in main memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def explain(error: BaseException) -> str | None:
    """Returns one line for an error that a user can fix, None for a defect of this program."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return (
            "out of memory; lower --batch-size (and raise --accumulation), lower --max-length, or add --checkpointing"
        )
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return None
    return text or type(error).__name__


class NotFinite(Exception):
    """Reports a loss that is NaN or infinite. rows: the examples of its batch, as numbers in the corpus."""

    def __init__(self, loss: float, rows: Sequence[int]) -> None:
        self.loss, self.rows = loss, rows


class Stopped(Exception):
    """Ends a run that a signal interrupted, after its state was saved."""


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into the flag `asked`, which the loop reads between steps.

    The second signal raises KeyboardInterrupt at once. Leaving the context restores the handlers.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raises Stopped after the first signal."""
        if self.asked:
            raise Stopped
