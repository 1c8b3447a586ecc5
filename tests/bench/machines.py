"""Runs torchrun's command for two machines (data/README.md, "Several processes") on one computer.

    python tests/bench/machines.py      as root, on Linux with iproute2

A machine is a network namespace with its own host name and its own processes; both have the same files. Prints how each
trial ended, which is kept in machines.txt:

same      two machines and one process: the largest difference of their weights
apart     the second machine has other files in the folder of runs: the error
killed    the second machine is killed: what the first prints
cut       the network between the machines is cut: the same; ranks wait SECONDS for each other instead of half an hour
"""

# ruff: noqa: E402  (imports after the path is set)

import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.torch import load_file

from data import ranks
from data.errors import clean_exit
from train import main as train

FIRST, SECOND = MACHINES = ("machine1", "machine2")
SECONDS = 20
RUN = "--model roberta --weights none --vocab-size 1000 --data demo --train-reviews 1024 --validation-reviews 64"
RUN += " --test-reviews 60 --dropout 0 --classifier-dropout 0 --adam-epsilon 1e-4 --precision fp32 --device cpu"
SHAPE = "hidden_size=32 num_layers=2 num_heads=2 feed_forward_size=64"
FLAGS = [*RUN.split(), "--save-minutes", "0", "--shape", SHAPE]


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Makes the two machines, 10.9.0.1 and 10.9.0.2, and removes them after the block."""
    hosts = "127.0.0.1 localhost\n" + "".join(f"10.9.0.{i} {name}\n" for i, name in enumerate(MACHINES, 1))
    try:
        for name in MACHINES:
            ip(f"netns add {name}")
            Path(f"/etc/netns/{name}").mkdir(parents=True, exist_ok=True)
            Path(f"/etc/netns/{name}/hosts").write_text(hosts, encoding="utf-8")
        ip(f"link add eth0 netns {FIRST} type veth peer name eth0 netns {SECOND}")
        for i, name in enumerate(MACHINES, 1):
            ip(f"-n {name} addr add 10.9.0.{i}/24 dev eth0")
            for device in ("lo", "eth0"):
                ip(f"-n {name} link set {device} up")
        yield
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            Path(f"/etc/netns/{name}/hosts").unlink(missing_ok=True)


def ip(command: str) -> None:
    """Runs a command of iproute2."""
    subprocess.run(["ip", *command.split()], check=True)


def start(machine: str, folder: Path, name: str, nodes: str, *, apart: bool = False, **flags: int) -> subprocess.Popen:
    """Starts torchrun on a machine. nodes: --nnodes. apart: hide the folder of runs from the machine."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{FIRST}:29500", "--rdzv-id", name]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", "1", *meeting]
    launcher += ["--max-restarts", "3"] if ":" in nodes else []
    given = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    command = [*launcher, __file__, *FLAGS, "--runs", str(folder), "--name", name, *given]
    script = f"hostname {machine}; " + (f"mount -t tmpfs none {folder}; " if apart else "") + 'exec "$@"'
    space = ["ip", "netns", "exec", machine, "unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", ranks.FRESH_STORE: "1"}
    launched = [*space, "--mount-proc", "sh", "-c", script, "sh", *command]
    return subprocess.Popen(launched, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def log_of(folder: Path, name: str) -> list[dict]:
    """Returns the events of a run, none if it has no log yet."""
    path = folder / name / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def same(folder: Path) -> str:
    """Trains in one process and on two machines. Returns the largest difference of the weights."""
    command = [sys.executable, __file__, *FLAGS, "--runs", str(folder), "--name", "one", "--epochs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    for process in [start(machine, folder, "same", "2", epochs=2) for machine in MACHINES]:
        process.communicate()
    one, two = (load_file(folder / name / "best/model.safetensors") for name in ("one", "same"))
    return f"{max(float((one[key] - two[key]).abs().max()) for key in one):.1e}"


def apart(folder: Path) -> str:
    """Hides the folder of runs from the second machine. Returns the errors."""
    started = [start(name, folder, "apart", "2", apart=name == SECOND, epochs=2) for name in MACHINES]
    lines = [line for process in started for line in process.communicate()[0].splitlines()]
    return "; ".join(line for line in lines if line.startswith("error:"))


def lost(folder: Path, name: str) -> str:
    """Loses the second machine in the third epoch. Returns what the first prints."""
    first, second = (start(machine, folder, name, "1:2", epochs=20) for machine in MACHINES)
    while len([event for event in log_of(folder, name) if event["event"] == "epoch"]) < 2 and first.poll() is None:
        time.sleep(0.1)
    if name == "killed":
        second.kill()
    else:
        ip(f"-n {FIRST} link set eth0 down")
    shown = [line for line in first.communicate()[0].splitlines() if line.startswith(("run:", "error:", "finished"))]
    second.kill()
    second.communicate()
    return "; ".join(line.removeprefix(f"run: {folder / name} on ") for line in shown)


TRIALS: dict[str, Callable[[Path], str]] = {
    "same": same,
    "apart": apart,
    "killed": partial(lost, name="killed"),
    "cut": partial(lost, name="cut"),
}


def report() -> None:
    """Prints how each trial ended."""
    with tempfile.TemporaryDirectory() as folder:
        for name, trial in TRIALS.items():
            with network():
                print(f"{name}: {trial(Path(folder))}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:  # a rank
        ranks.STEP_TIMEOUT = datetime.timedelta(seconds=SECONDS)
        with ranks.leaving(), clean_exit():
            train(sys.argv[1:])
    else:
        report()
