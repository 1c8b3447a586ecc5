"""Compares two ranks with one process: largest difference of the weights, seconds, bytes exchanged in a step.

python tests/bench/ranks.py FOLDER RANKS [arguments of train.py] trains twice and prints JSON.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def seconds(launcher: list[str], threads: int, arguments: list[str]) -> float:
    """Runs train.py and returns its wall time, including the start of Python."""
    begin = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([*launcher, str(ROOT / "train.py"), *arguments], env=environment, check=True)
    return time.perf_counter() - begin


def main(folder: Path, ranks: int, arguments: list[str]) -> None:
    """Trains with one process of `ranks` threads, and with `ranks` ranks of one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    common = [*arguments, "--runs", str(folder)]
    times = {
        "one": seconds([sys.executable], ranks, [*common, "--name", "one"]),
        "ranks": seconds(torchrun, 1, [*common, "--name", "ranks"]),
    }
    first, second = (load_file(folder / name / "state/state.safetensors") for name in times)
    weights = [name for name in first if name.startswith("model.")]
    result = json.loads((folder / "ranks/result.json").read_text())
    found = {
        "ranks": ranks,
        "seconds": times,
        "largest_difference": max((first[name] - second[name]).abs().max().item() for name in weights),
        "theoretical_bytes_sent_by_a_rank": 2 * (ranks - 1) * 4 * result["parameters"]["trained"] // ranks,
        "command": arguments,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
