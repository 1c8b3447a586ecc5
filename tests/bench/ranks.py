"""Compares ranks of one thread with one process of as many threads: accuracy, weights, speed, bytes of a step.

python tests/bench/ranks.py FOLDER RANKS REPEATS [arguments of train.py] trains alternately, and adds to ranks.json.
Bytes are those that the loopback device sent, without the weights that rank 0 sends once; no other program may use it
meanwhile.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "data" / "results" / "ranks.json"
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def trained(folder: Path, ranks: int, threads: int, arguments: list[str]) -> dict[str, Any]:
    """Trains in a process or in ranks; returns its seconds, bytes and results."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    launcher = torchrun if ranks > 1 else [sys.executable]
    command = [*launcher, str(ROOT / "train.py"), *arguments, "--runs", str(folder.parent), "--name", folder.name]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    begin, sent = time.perf_counter(), int(LOOPBACK.read_text())
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    seconds, sent = time.perf_counter() - begin, int(LOOPBACK.read_text()) - sent
    result, log = (folder / name for name in ("result.json", "log.jsonl"))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [event["tokens_per_second"] for event in events if event["event"] == "epoch"]
    return {"seconds": seconds, "bytes": sent, "rate": median(rates), "result": json.loads(result.read_text())}


def largest_difference(first: Path, second: Path) -> float:
    """Returns the largest difference of a trained weight after the last step."""
    states = [load_file(folder / "state" / "state.safetensors") for folder in (first, second)]
    names = [name for name in states[0] if name.startswith("model.")]
    return max((states[0][name] - states[1][name]).abs().max().item() for name in names)


def short(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns accuracy, loss and number of reviews."""
    return {name: metrics[name] for name in ("accuracy", "loss", "count")}


def main(folder: Path, ranks: int, repeats: int, arguments: list[str]) -> None:
    """Trains `repeats` times in one process and in ranks, and adds what was found to ranks.json."""
    one, several = [], []
    for number in range(repeats):
        one.append(trained(folder / f"one{number}", 1, ranks, arguments))
        several.append(trained(folder / f"ranks{number}", ranks, 1, arguments))
    result = several[0]["result"]
    steps = load_file(folder / "ranks0" / "state" / "state.safetensors")["optimizer.0.step"].item()
    gradient_bytes, weights = (4 * result["parameters"][name] for name in ("trained", "total"))
    found = {
        "ranks": ranks,
        "command": " ".join(arguments),
        "machine": result["machine"],
        "torch": torch.__version__,
        "test": {"one": short(one[0]["result"]["test"]), "ranks": short(result["test"])},
        "largest_difference_of_a_weight": largest_difference(folder / "one0", folder / "ranks0"),
        "repeated_ranks_differ_by": largest_difference(folder / "ranks0", folder / f"ranks{repeats - 1}"),
        "tokens_per_second": {"one": [run["rate"] for run in one], "ranks": [run["rate"] for run in several]},
        "speed_ratio": median(run["rate"] for run in several) / median(run["rate"] for run in one),
        "wall_seconds": {"one": [run["seconds"] for run in one], "ranks": [run["seconds"] for run in several]},
        "bytes_of_a_step": {
            "measured, all ranks": (several[0]["bytes"] - one[0]["bytes"] - (ranks - 1) * weights) / steps,
            "ring all-reduce, 2 (R - 1) n": 2 * (ranks - 1) * gradient_bytes,
        },
    }
    before = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else []
    OUTPUT.write_text(json.dumps([*before, found], indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
