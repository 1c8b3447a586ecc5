"""The machine of a run, its random streams, and how a program ends."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.errors import Interrupt, Stopped, clean_exit, interruptible
from data.seeds import derive_seed, random_state, set_random_state
from nn import processor, runtime
from nn.autocast import product_dtype
from nn.runtime import choose_machine, peak_memory

CPU = torch.device("cpu")


def test_seeds_of_different_purposes_differ():
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("dropout", "order 0", "order 1")}
    assert len(seeds) == 150
    assert derive_seed(42, "dropout") == 8314730153327713313  # a change would invalidate all published rows


def test_random_state_is_restored():
    state = random_state(CPU)
    first = torch.rand(5)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("native", [True, False])
def test_a_precision_that_the_processor_emulates_is_noted_once(monkeypatch, capsys, precision: str, native: bool):
    runtime.note_emulated.cache_clear()
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "native_bf16", lambda _: native)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: native, raising=False)
    for name in (precision, precision, "fp32", "auto"):
        choose_machine("cpu", name)
    note = f"note: this processor has no products in {precision} and computes them slowly; --precision fp32 is faster\n"
    assert capsys.readouterr().out == ("" if native else note)


def test_choose_machine():
    assert choose_machine("cpu:0", "fp32").device.type == "cpu"
    assert choose_machine("cpu", "fp32").dtype == torch.float32
    assert choose_machine("cpu", "bf16").dtype == torch.bfloat16
    assert choose_machine("cpu", "auto").dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="unknown precision"):
        choose_machine("cpu", "double")
    for name in ("gpu", "CPU", "meta", "mkldnn", "cuda:x", "cpu:", "cpu:7", ""):
        with pytest.raises(ValueError, match=f"^unknown device '{name}'; known: auto, cpu, cuda, cuda:1, mps$"):
            choose_machine(name, "fp32")


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^device '{name}' is not available; torch [^;]* finds cpu$"):
        choose_machine(name, "fp32")


def test_autocast_lowers_only_matrix_products():
    machine = choose_machine("cpu", "bf16")
    x = torch.randn(3, 3)
    with machine.autocast():
        assert (x @ x).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(x, (3,)).dtype == torch.float32
        for y in (x, x.double(), x.bfloat16()):
            assert product_dtype(y) == torch.nn.functional.linear(y, y).dtype
    assert product_dtype(x) == torch.float32
    assert product_dtype(x.to("meta")) == torch.float32  # a device without autocast


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nvalue"), "error: bad value\n"),
        (FileNotFoundError("x does not exist"), "error: x does not exist\n"),
        (
            MemoryError(),
            "error: out of memory; close other programs; training needs less with a lower --batch-size (and a higher "
            "--accumulation), a lower --max-length, or --checkpointing, and scoring with shorter reviews\n",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "error: out of memory; close other programs"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
        (RuntimeError("Could not determine home directory."), "error: no home directory is known for ~; write the"),
        (
            UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
            "error: 'caf\\udce9' is not valid text",
        ),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop, clean_exit():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_debug_1_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch):
    for value, raised in (("0", SystemExit), ("1", ValueError)):
        monkeypatch.setenv("DEBUG", value)
        with pytest.raises(raised), clean_exit():
            raise ValueError("a wrong value")


def test_defects_of_the_program_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), clean_exit():
        raise RuntimeError("shapes do not match")


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """Sets SIGHUP to its default, which nohup changes for the tests that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_and_the_second_one_without_a_state(number: int):
    before = signal.getsignal(number)  # SIG_IGN if a shell started the tests in the background
    with Interrupt() as interrupt:
        interrupt.check()
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.exit_code == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("no_nohup")
def test_a_rank_stops_once_for_the_signals_of_slurm_and_of_torchrun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with Interrupt() as interrupt:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.received == signal.SIGTERM


def test_a_hangup_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupt.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_step_waits_for_a_check_or_the_end_of_the_block(number: int, checked: bool):
    done = []

    def step(interrupt: Interrupt) -> None:
        with interrupt.deferred():
            os.kill(os.getpid(), number)
            done.append("step")
            if checked:
                interrupt.check()
            done.append("rest")

    with Interrupt() as interrupt, pytest.raises(Stopped):
        step(interrupt)
    assert done == (["step"] if checked else ["step", "rest"])


def test_a_signal_ends_a_wait_for_native_code():
    def interrupt_and_work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    begin = time.perf_counter()
    with pytest.raises(Stopped), Interrupt():
        interruptible(interrupt_and_work)
    assert time.perf_counter() - begin < 4
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch):
    assert 10 * 2**20 < peak_memory(CPU) < 2**40
    monkeypatch.setattr(runtime, "resource", None)  # as on Windows
    assert peak_memory(CPU) is None


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_characters_that_a_console_lacks_are_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, "stdout", console)
    with pytest.raises(UnicodeEncodeError):
        print("α", flush=True)
    with clean_exit():
        print("α is 1")
    assert console.buffer.getvalue() == b"? is 1\n"


@pytest.mark.parametrize("code", [None, 2])
def test_a_closed_pipe_ends_the_program_quietly(
    code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The exit code is that of the program, or else a shell's for SIGPIPE."""

    def program() -> None:
        with clean_exit():
            print("text", end="")
            if code is not None:
                sys.exit(code)

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            program()
    assert stop.value.code == (141 if code is None else code)
    assert capsys.readouterr().err == ""


def test_ctrl_c_outside_of_the_training_loop_ends_the_program_quietly(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop, clean_exit():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""


def test_a_field_of_the_processor_is_found_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A: B\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert [processor.processor_field(name) for name in ("cpu", "model", "model name")] == ["", "17", "A: B"]
