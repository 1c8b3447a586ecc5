import os
import signal

import pytest
import torch

from data.errors import Interrupt, Stopped, clean_exit
from data.seeds import derive_seed, random_state, set_random_state
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


def test_choose_machine():
    assert choose_machine("cpu", "fp32").dtype == torch.float32
    assert choose_machine("cpu", "bf16").dtype == torch.bfloat16
    assert choose_machine("cpu", "auto").dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="unknown precision"):
        choose_machine("cpu", "double")
    with pytest.raises(ValueError, match="device 'gpu' is not available"):
        choose_machine("gpu", "fp32")


def test_autocast_lowers_only_matrix_products():
    machine = choose_machine("cpu", "bf16")
    x = torch.randn(3, 3)
    with machine.autocast():
        assert (x @ x).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(x, (3,)).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nvalue"), "error: bad value\n"),
        (FileNotFoundError("x does not exist"), "error: x does not exist\n"),
        (MemoryError(), "error: out of memory; lower --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "error: out of memory; lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "error: out of memory"),
    ],
)
def test_errors_that_a_user_can_fix_are_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop, clean_exit():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_defects_of_the_program_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), clean_exit():
        raise RuntimeError("shapes do not match")


def test_the_first_signal_sets_a_flag_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)  # SIG_IGN if a shell started the tests in the background
    with Interrupt() as interrupt:
        interrupt.check()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(Stopped):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == before


def test_peak_memory_is_in_bytes():
    assert 10 * 2**20 < peak_memory(CPU) < 2**40
