"""The machine of a run: device, precision, and memory."""

import contextlib
import ctypes
import functools
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Module

from data.options import Options
from data.runs import Run
from nn import onednn
from nn.encoder import Encoder
from nn.packed_linear import can_pack, packed_weights
from nn.processor import processor_field
from nn.quant import Int8Linear, form_of, quantized_weights

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def choose_device(name: str) -> torch.device:
    """Returns a device; `auto` is the GPU if there is one. Raises ValueError for a device that is not available."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind, _, number = name.partition(":")
    if kind not in available or not (name in (kind, "cpu:0") or (number.isdecimal() and kind != "cpu")):
        raise ValueError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:1, mps")
    if not available[kind]:
        found = ", ".join(known for known, is_there in available.items() if is_there)
        raise ValueError(f"device {name!r} is not available; torch {torch.__version__} finds {found}")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # no such GPU, or one that cannot be used
        raise ValueError(f"device {name!r} is not available: {str(error).splitlines()[0]}") from error
    return device


def keep_freed_memory() -> None:
    """Keeps freed blocks in the process on Linux with glibc; has no effect elsewhere.

    By default glibc returns every freed block over 32 MiB to the system. The page faults of the next step then take a
    quarter of a training step on CPU. All threads allocate from one arena, because glibc returns the memory of the
    others to the system.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(arena_max, 1)


def release_freed_memory() -> None:
    """Returns the pages of freed blocks to the system. Called from time to time, it bounds the fragmentation that
    batches of many lengths cause."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def native_bf16(device: torch.device) -> bool:
    """Returns whether the hardware has bf16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def is_emulated(name: str, device: torch.device) -> bool:
    """Returns whether an x86 CPU lacks products in this precision, so that torch converts each number."""
    x86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    if device.type != "cpu" or not x86:
        return False
    if name == "bf16":
        return not native_bf16(device)
    return name == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


@functools.cache
def note_emulated(name: str, device: torch.device) -> None:
    """Prints once that a precision is slow, if it is emulated."""
    if is_emulated(name, device):
        print(f"note: this processor has no products in {name} and computes them slowly; --precision fp32 is faster")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of fp32, bf16 or fp16; `auto` is bf16 if the hardware has it, else fp32.

    Raises ValueError for another name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")
    if name == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    return DTYPES[name]


class Machine(NamedTuple):
    """The device of a run and the precision of its matrix products."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """Returns a context in which matrix products are computed in `dtype`. Weights and losses stay fp32.

        Norms and softmax are computed in fp32; on a CPU in bf16, their results are bf16 (nn/encoder.py).
        In fp32, the context selects the faster library (nn/onednn.py).
        """
        if self.dtype == torch.float32 and self.device.type == "cpu" and onednn.is_faster():
            return onednn.FastProducts()
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def __str__(self) -> str:
        return f"{describe_device(self.device)}, {str(self.dtype).removeprefix('torch.')}"


def layers_to_cast(model: Module) -> list[Linear]:
    """Returns the linear layers that may compute in another dtype than fp32 with weights that are cast beforehand.

    Layers whose weights another module reads (`READS_BASE`, DoRA) keep fp32, and so do those that compute virtual
    tokens.
    """
    fp32 = {id(module.base) for module in model.modules() if getattr(module, "READS_BASE", False)}
    fp32 |= {id(module) for name, module in model.named_modules() if name.startswith("virtual.")}
    return [module for module in model.modules() if type(module) is Linear and id(module) not in fp32]


@contextlib.contextmanager
def cast_once(model: Module, machine: Machine) -> Iterator[None]:
    """Keeps the weights of linear layers in the machine's dtype for the block, in which nothing is trained.

    Without this, autocast casts them in every pass; the results are bitwise equal.
    """
    layers = [] if machine.dtype == torch.float32 else layers_to_cast(model)
    kept = [(p, p.data) for layer in layers for p in layer.parameters(recurse=False)]
    try:
        with torch.inference_mode(False):  # an inference tensor cannot become the data of a parameter
            for parameter, data in kept:
                parameter.data = data.to(machine.dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def prepared_once(model: Module, machine: Machine) -> contextlib.AbstractContextManager:
    """Prepares the weights of linear layers once for a block in which nothing is trained: packed for oneDNN where it
    multiplies in the machine's dtype (nn/packed_linear.py), elsewhere `cast_once`."""
    if can_pack(machine.device, machine.dtype):
        in_8_bits = [module for module in model.modules() if type(module) is Int8Linear and module.multiplies_bf16()]
        rows = scoring_tokens(model, machine) or SCORING_TOKENS
        return packed_weights([*layers_to_cast(model), *in_8_bits], rows)
    return cast_once(model, machine)


def choose_machine(device: str, precision: str, notes: bool = True) -> Machine:
    """Returns the machine. Raises ValueError for an unknown or unavailable device or precision.

    notes: print that a precision is slow here.
    """
    found = choose_device(device)
    if found.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # True rounds the factors of fp32 convolutions to TF32
        if found.index is not None:
            torch.cuda.set_device(found)  # Triton and pinned memory use the current GPU
    if notes:
        note_emulated(precision, found)
    return Machine(found, choose_precision(precision, found))


def check_checkpointing(enabled: bool, machine: Machine) -> None:
    """Raises ValueError for activation checkpointing on MPS, whose random state torch does not restore."""
    if enabled and machine.device.type == "mps":
        way_out = "start a run without it, or with --device cpu"
        raise ValueError(f"--checkpointing cannot repeat the dropout masks of MPS; {way_out}")


def machine_of(options: Options, run: Run | None = None) -> Machine:
    """Returns the machine of a run. `run`: one that is resumed, which keeps the precision that `auto` selected when it
    started. Raises ValueError for an unknown or unavailable device or precision."""
    machine = choose_machine(options.device, options.precision)
    if run is None or options.precision != "auto":
        return machine
    before = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    dtype = before.get(str(run.config.get("machine")).rpartition(", ")[2], machine.dtype)
    if dtype != machine.dtype:
        print(f"warning: {run.folder} began in {dtype} and keeps it; a new run would have {machine.dtype} here")
    return machine._replace(dtype=dtype)


def peak_memory(device: torch.device) -> int | None:
    """Returns the peak memory so far in bytes: of tensors on a CUDA GPU, else of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_device(device: torch.device) -> str:
    """Returns the name of a GPU, or of the CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = processor_field("model name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"


# --------------------------------------------------------------------------------------------------------- memory

# tokens in a pass in fp32, including padding: few enough that the activations of two threads stay in a CPU's cache
TRAINING_TOKENS = 1_536  # three reviews of 512; with more, the memory of two passes increases and the speed hardly
SCORING_TOKENS = 1_024


def tokens_per_pass(model: Module, machine: Machine, tokens: int = TRAINING_TOKENS) -> int:
    """Returns the number of tokens per pass, including padding, at which an encoder trains fast; 0: no limit.

    In half precision it is twice as large: the same number of bytes. On a GPU and for word networks larger passes are
    faster.  tokens: in fp32
    """
    if machine.device.type != "cpu" or not isinstance(model, Encoder):
        return 0
    return tokens * torch.float32.itemsize // machine.dtype.itemsize


def scoring_tokens(model: Module, machine: Machine) -> int:
    """Returns the number of tokens per pass in scoring, as `tokens_per_pass` does for training."""
    return tokens_per_pass(model, machine, SCORING_TOKENS)


class StaticMemory(NamedTuple):
    """Bytes that a model needs before any example is processed."""

    weights: int  # all parameters and buffers
    gradients: int  # of the trained parameters
    optimizer: int  # AdamW's two moments, fp32, of the trained parameters


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Returns the size of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def num_parameters(model: Module) -> int:
    """Counts the parameters without quantized weights, which are buffers unless the model is sharded."""
    return sum(p.numel() for p in model.parameters() if p.dtype not in (torch.int8, torch.uint8))


def num_weights(model: Module) -> int:
    """Counts all parameters, the quantized ones too."""
    return num_parameters(model) + quantized_weights(model)[0]


def static_memory(model: Module) -> StaticMemory:
    """Computes the memory that does not depend on the batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = 2 * 4 * sum(p.numel() for p in trained)
    return StaticMemory(bytes_of([*model.parameters(), *model.buffers()]), bytes_of(trained), moments)


def describe_memory(model: Module, average: bool = False) -> str:
    """Describes the static memory in one line, and what quantized and frozen weights save.

    average: whether a running mean of the trained weights is kept as well.
    """
    mib, static = 2**20, static_memory(model)
    small, small_bytes = quantized_weights(model)
    frozen = small + num_parameters(model) - sum(p.numel() for p in model.parameters() if p.requires_grad)
    line = f"memory: weights {static.weights / mib:,.0f} MiB"
    if small:
        line += f" ({4 if form_of(model) == 'nf4' else 8} bits save {(4 * small - small_bytes) / mib:,.0f})"
    line += f", gradients and moments {(static.gradients + static.optimizer) / mib:,.0f} MiB"
    if frozen:
        line += f" (frozen weights save {12 * frozen / mib:,.0f})"
    return line + (f", running mean {static.gradients / mib:,.0f} MiB" if average else "")
