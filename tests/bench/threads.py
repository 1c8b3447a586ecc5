"""What the patience of waiting threads costs: the OpenMP runtime's own, GOMP_SPINCOUNT 10,000 (train.py's), passive.

    python tests/bench/threads.py [REPEATS]

Training steps of the built-in weights on 16 × 128 tokens, on all cores: first on free cores, then beside one busy
process a core, which waits for nobody. The settings alternate, each in a process of its own, since the runtime reads
them once. Prints medians in tokens a second, and their ratio to the runtime's own setting.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"own": {}, "spin 10,000": {"GOMP_SPINCOUNT": "10000"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
BATCH, LENGTH, SECONDS = 16, 128, 8


def tokens_per_second() -> float:
    sys.path.insert(0, str(ROOT))
    import torch

    from nn.checkpoint import load_pretrained
    from nn.runtime import keep_freed_memory

    keep_freed_memory()
    model = load_pretrained("builtin").train()
    ids, mask = torch.randint(10, 9000, (BATCH, LENGTH)), torch.ones(BATCH, LENGTH, dtype=torch.bool)
    labels = torch.zeros(BATCH, dtype=torch.long)
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < SECONDS:
        torch.nn.functional.cross_entropy(model(ids, mask), labels).backward()
        steps += 1
    return steps * BATCH * LENGTH / spent


def main(repeats: int) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    for beside in (0, os.cpu_count()):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            found = {name: [] for name in SETTINGS}
            for _ in range(repeats):
                for name, setting in SETTINGS.items():
                    command = [sys.executable, __file__, "one"]
                    printed = subprocess.run(command, env=outside | setting, capture_output=True, check=True).stdout
                    found[name].append(float(printed))
        finally:
            for process in busy:
                process.kill()
        medians = {name: round(statistics.median(values)) for name, values in found.items()}
        ratios = {f"ratio {name}": round(value / medians["own"], 2) for name, value in medians.items()}
        print(json.dumps({"busy processes": beside, **medians, **ratios}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["one"]:
        print(tokens_per_second())
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 3)
