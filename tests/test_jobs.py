"""A torchrun job finds the run that it started, and no other."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fail_at

import train
from data import jobs
from data.runs import Run


def set_attempt(monkeypatch: pytest.MonkeyPatch, agent: str, attempt: int = 0, number: int = 0) -> None:
    """Sets the variables of rank `number` of a machine that torchrun started, with a log folder named `agent`."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
    monkeypatch.setenv(
        "TORCHELASTIC_ERROR_FILE", f"/tmp/torchelastic_x/none_{agent}/attempt_{attempt}/{number}/error.json"
    )


def test_an_agent_is_the_same_in_all_attempts_and_ranks(monkeypatch: pytest.MonkeyPatch):
    found = []
    for agent, attempt, number in [("a", 0, 0), ("a", 0, 1), ("a", 2, 0), ("b", 0, 0)]:
        set_attempt(monkeypatch, agent, attempt, number)
        found.append(jobs.agent())
    assert found[0] == found[1] == found[2] != found[3]
    for none in ("", "error.json", "a/b/error.json"):  # "" with --log-dir /dev/null
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", none)
        assert jobs.agent() == ""
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert jobs.agent() == ""


@pytest.mark.parametrize("attempt", [0, 1])  # 0: a machine joined; it is not counted
def test_a_job_continues_its_own_run(
    attempt: int, small_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    set_attempt(monkeypatch, "a")
    with monkeypatch.context() as patch:
        fail_at(8, patch, RuntimeError)  # in the second epoch
        with pytest.raises(RuntimeError):
            train.main(small_run)
    assert "epoch 1/2" in capsys.readouterr().out
    set_attempt(monkeypatch, "a", attempt)
    train.main(small_run)
    output = capsys.readouterr().out
    assert "epoch 2/2" in output
    assert "epoch 1/2" not in output
    assert Run.open("runs/small").config["agents"] == [jobs.agent()]


@pytest.mark.parametrize("attempt", [0, 1, 2])
@pytest.mark.parametrize("first", ["b", ""])  # "": without torchrun
def test_the_run_of_another_job_is_refused_in_all_attempts(
    attempt: int, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both have the same command, those of pytest."""
    set_attempt(monkeypatch, first)
    agents = [jobs.agent()] if first else []
    Run.create(tmp_path / "small", {"options": {}, "agents": agents}).release()
    set_attempt(monkeypatch, "a", attempt)
    with pytest.raises(ValueError, match=r"small exists; continue with --resume .*, or choose another --name$"):
        train.main(["--data", "demo", "--runs", str(tmp_path), "--name", "small", "--device", "cpu"])


def test_one_common_agent_makes_the_job_and_machines_that_join_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run.create(tmp_path / "r", {"agents": ["a"]})
    assert not run.is_of_job(["b"])
    assert not run.is_of_job([])
    assert run.is_of_job(["a", "b"])
    run.record_agents(["a", "b"])
    assert run.config["agents"] == ["a", "b"]
    assert run.is_of_job(["b"])  # after the first machine left
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "2"])
    assert not run.is_of_job(["b"])  # another command of a script that torchrun started


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("arguments", "variable", "flag"),
    [
        (["--nnodes", "1:2"], "", "--nnodes 1:2"),
        (["--nnodes=2:4"], "1", "--nnodes 2:4"),
        (["--nn", "1:2"], "", "--nnodes 1:2"),
        (["--nnodes", "2:2"], "", ""),
        (["--nnodes", "2"], "1:2", ""),
        (["--nproc_per_node", "2"], "1:2", "--nnodes 1:2"),
        (["--standalone"], "", ""),
        (["--nproc", "1:2"], "", ""),  # --nproc-per-node, abbreviated
    ],
)
def test_a_number_of_machines_that_varies_repeats_the_command(
    arguments: list[str], variable: str, flag: str, monkeypatch: pytest.MonkeyPatch
):
    """--max-restarts is 0."""
    command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        agent.stdout.readline()  # from then on /proc has its arguments
        monkeypatch.setattr(jobs.os, "getppid", lambda: agent.pid)
        monkeypatch.setenv("PET_NNODES", variable)
        assert jobs.repeated_by() == ""  # without torchrun
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        assert jobs.repeated_by() == flag
        agent.communicate(b"\n")


def test_without_the_command_line_of_its_parent_a_rank_reads_the_variable_of_torchrun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs.os, "getppid", lambda: -1)  # has no folder in /proc
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("PET_NNODES", "1:2")
    assert jobs.repeated_by() == "--nnodes 1:2"


def test_a_command_that_is_repeated_needs_a_name_and_a_log_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match=r"^torchrun --max-restarts needs --name, by which the run is found again$"):
        train.main(["--data", "demo", "--device", "cpu"])
    with pytest.raises(ValueError, match=r"^torchrun --max-restarts needs its log folder, .* leave out --log-dir /dev"):
        train.main(["--data", "demo", "--device", "cpu", "--name", "x"])


def test_a_variable_without_torchrun_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "x")
    with pytest.raises(ValueError, match=r"^the environment variable TORCHELASTIC_MAX_RESTARTS is 'x', not a whole"):
        jobs.repeated_by()
