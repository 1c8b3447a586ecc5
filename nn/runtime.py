"""What a run needs from the machine: device, precision, seeds, memory, and how errors leave the program."""

import contextlib
import ctypes
import hashlib
import os
import platform
import resource
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose (initialisation, order of epoch 3, dropout …), so that no stream disturbs
    another. 63 bits."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def choose_device(name: str) -> torch.device:
    """`auto`: the GPU if there is one. Raises ValueError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error
    return device


def keep_freed_memory() -> None:
    """glibc hands every block over 32 MiB back to the system when it is freed, and page-faults it in again at the next
    step: a quarter of a training step on CPU. This keeps such blocks in the process. Does nothing elsewhere."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Gives the pages of freed blocks back to the system: now and then, or batches of many lengths leave ever more
    holes."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """fp32, bf16 or fp16 as a dtype; `auto` is bf16 where the hardware has it, else fp32. Raises ValueError."""
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")
    if name == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    return DTYPES[name]


class Machine(NamedTuple):
    """Where a run computes, and in which precision its matrix products are."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """Matrix products in `dtype`; weights, norms, softmax and losses stay fp32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def __str__(self) -> str:
        return f"{describe_device(self.device)}, {str(self.dtype).removeprefix('torch.')}"


def choose_machine(device: str, precision: str) -> Machine:
    """Raises ValueError for a device or precision that is not known or not here."""
    found = choose_device(device)
    return Machine(found, choose_precision(precision, found))


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random.cuda"], device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that this process took so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):  # noqa: PTH110
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """What a user can cause ends in one line and exit code 2; DEBUG=1 shows where it came from."""
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
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def explain(error: BaseException) -> str | None:
    """One line for an error that a user can mend; None for a defect of this program."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        return (
            "out of memory; lower --batch-size (and raise --accumulation), lower --max-length, or add --checkpointing"
        )
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return None
    return text or type(error).__name__


class NotFinite(Exception):
    """The loss is not a number, or infinite; rows: of the batch that it is the loss of."""

    def __init__(self, loss: float, rows: Sequence[int]) -> None:
        self.loss, self.rows = loss, rows


class Stopped(Exception):
    """The user asked to stop, and the state is saved."""


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loop looks at between steps; the second one stops at
    once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Stopped
