"""Measures how waiting OpenMP threads affect speed: the runtime's default, GOMP_SPINCOUNT 10,000 (train.py's), passive.

    python tests/bench/threads.py [REPEATS]

Measures training steps of the built-in weights on 16 × 128 tokens with all cores: first with all cores free, then with
one busy process for each core. The settings alternate, each in a new process, since the runtime reads them once. Prints
medians in tokens per second, and their ratio to the runtime's default ("own").
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from nn.checkpoint import load_pretrained
from nn.runtime import keep_freed_memory

SETTINGS = {"own": {}, "spin 10,000": {"GOMP_SPINCOUNT": "10000"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
BATCH, LENGTH, SECONDS = 16, 128, 8


def tokens_per_second() -> float:
    """Measures training steps in this process."""
    keep_freed_memory()
    model = load_pretrained("builtin").train()
    ids, mask = torch.randint(10, 9000, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.bool)
    labels = torch.zeros(BATCH, dtype=torch.long)
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < SECONDS:
        torch.nn.functional.cross_entropy(model(ids, mask), labels).backward()
        steps += 1
    return steps * BATCH * LENGTH / spent


def medians(repeats: int) -> dict[str, int]:
    """Returns the median speed of each setting, in tokens per second."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, __file__, "one"]
    found: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(repeats):
        for name, setting in SETTINGS.items():
            done = subprocess.run(command, env=outside | setting, capture_output=True, check=True)
            found[name].append(float(done.stdout))
    return {name: round(statistics.median(values)) for name, values in found.items()}


def main(repeats: int) -> None:
    """Prints one row with free cores and one with busy cores."""
    for num_busy in (0, os.cpu_count() or 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
        try:
            row = medians(repeats)
        finally:
            for process in busy:
                process.kill()
        ratios = {f"ratio {name}": round(value / row["own"], 2) for name, value in row.items()}
        print(json.dumps({"busy processes": num_busy, **row, **ratios}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["one"]:
        print(tokens_per_second())
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 3)
