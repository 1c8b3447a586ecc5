"""Ends a program cleanly: errors that a user can fix and exhausted memory with one line, signals with their exit code.

Prints to any console: characters that it cannot show are replaced, and a closed pipe ends the program quietly.
"""

import contextlib
import errno
import io
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch

from data.jobs import by_torchrun

Value = TypeVar("Value")
CLOSED_PIPE, INTERRUPTED = 141, 130  # exit codes of a shell for SIGPIPE and SIGINT
POLL = 0.1  # seconds between two looks at a thread, a file or another rank
NO_MEMORY = (  # of RuntimeErrors: torch's CPU allocator, by platform; MPS, CUDA's own calls; cuBLAS
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Prints an error that a user can fix as one line and exits with code 2. DEBUG=1 keeps the traceback.

    Ends quietly if the reader of the output closes it (`| head`) and after Ctrl-C, SIGTERM and SIGHUP.
    """
    prepare_output()
    try:
        with Interrupt():
            yield
        sys.stdout.flush()
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if is_closed_pipe(error):
            sys.exit(CLOSED_PIPE)
        message = user_message(error)
        if message is None or os.environ.get("DEBUG") == "1":
            raise
        traceback.clear_frames(error.__traceback__)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    finally:
        discard_unwritten()


def prepare_output() -> None:
    """Makes standard output replace the characters that its encoding lacks (cp1252, latin-1, ascii).

    It also writes each line at once, so that a log file shows a run while it trains. A stream that the caller closed
    (`>&-`) is replaced by the null device, so that no data file gets its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (open as long as the program runs)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)


def is_closed_pipe(error: BaseException) -> bool:
    """Returns whether a write failed because the other end of a pipe is closed.

    Windows reports this as EINVAL without the name of a file.
    """
    if isinstance(error, BrokenPipeError):
        return True
    invalid = isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
    return invalid and sys.platform == "win32"


def discard_unwritten() -> None:
    """Discards output that cannot be written: Python would print an error about it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an allocation failed, on a GPU or in main memory."""
    named = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return named or isinstance(error, MemoryError | torch.OutOfMemoryError)


def printable(text: str) -> str:
    """Returns a text as one line, with an escape sequence for each character that could change a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in " ".join(text.split())
    )


def user_message(error: BaseException) -> str | None:
    """Returns one line for an error that a user can fix, None for a defect of this program."""
    text = printable(str(error))
    if out_of_memory(error):
        return (
            "out of memory; close other programs; training needs less with a lower --batch-size (and a higher "
            "--accumulation), a lower --max-length, or --checkpointing, and scoring with shorter reviews"
        )
    if isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        return f"{error.object[:40]!a} is not valid text: some of its bytes are not {error.encoding}"
    if isinstance(error, RuntimeError) and "home directory" in text:  # of Path.expanduser
        return "no home directory is known for ~; write the whole path"
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return None
    return text or type(error).__name__


class NotFinite(Exception):
    """Reports a loss that is NaN or infinite. rows: the examples of its batch, as numbers in the corpus."""

    def __init__(self, loss: float, rows: Sequence[int]) -> None:
        self.loss, self.rows = loss, rows


class Diverged(ValueError):
    """Ends a run whose loss, gradient or logits are not finite: a resumed run would come to the same step."""


class Stopped(BaseException):
    """Ends a run that a signal interrupted. number: the signal.

    It is no Exception, so that the code that reports damaged files does not catch it.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as a shell reports the signal


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt:
    """Raises Stopped at the first Ctrl-C, SIGTERM or SIGHUP; in a block `deferred`, at its next `check`.

    The second signal raises KeyboardInterrupt, except under torchrun: a cluster manager such as SLURM sends a signal to
    all processes of a job, and torchrun sends it to the ranks again. Leaving the context restores the handlers. A
    SIGHUP that is ignored at the start, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal
        self.deferring = False

    def __enter__(self) -> "Interrupt":
        ignored = {number for number in SIGNALS[2:] if signal.getsignal(number) == signal.SIG_IGN}  # by nohup
        self.before = {number: signal.signal(number, self.handle) for number in SIGNALS if number not in ignored}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Records the first signal and raises Stopped unless deferred; the second may raise KeyboardInterrupt."""
        if self.received:
            if by_torchrun():  # which kills a rank 30 seconds after a signal
                return
            raise KeyboardInterrupt
        self.received = number
        if not self.deferring:
            raise Stopped(number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers Stopped until `check`, or until the block ends."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
        self.check()

    def check(self) -> None:
        """Raises Stopped after the first signal."""
        if self.received:
            raise Stopped(self.received)


def interruptible(
    work: Callable[[], Value], seconds: float = math.inf, clock: Callable[[], float] = time.monotonic
) -> Value:
    """Returns work(), computed in a thread, so that a signal is handled while native code runs.

    Native code must release Python's lock for that. Raises TimeoutError if it takes longer than `seconds` of a clock;
    the thread cannot be stopped, and ends with the program.
    """
    results: list[Value] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread, end = threading.Thread(target=run, daemon=True), clock() + seconds
    thread.start()
    while thread.is_alive():
        if (left := end - clock()) <= 0:
            raise TimeoutError
        thread.join(min(left, POLL))
    if errors:
        raise errors[0]
    return results[0]
