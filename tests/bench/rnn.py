"""Our LSTM and GRU against torch.nn's: forward + backward of two bidirectional layers, 128 wide, on 64 × 256 × 300.

    python tests/bench/rnn.py [REPEATS]

The two alternate in one process; a row holds the medians in seconds and their ratio (above 1: ours is faster).
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from nn.gru import GRU
from nn.lstm import LSTM
from nn.runtime import keep_freed_memory

BATCH, STEPS, WIDTH, HIDDEN, LAYERS = 64, 256, 300, 128, 2


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(repeats: int) -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(BATCH, STEPS, WIDTH, requires_grad=True)
    mask = torch.ones(BATCH, STEPS, dtype=torch.bool)
    for ours, theirs in ((LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)):
        mine = ours(WIDTH, HIDDEN, LAYERS)
        torchs = theirs(WIDTH, HIDDEN, LAYERS, batch_first=True, bidirectional=True)
        runs = {
            "ours": lambda mine=mine: mine(x, mask).sum().backward(),
            "torch": lambda torchs=torchs: torchs(x)[0].sum().backward(),
        }
        times = {name: [] for name in runs}
        for _ in range(repeats + 1):
            for name, run in runs.items():
                times[name].append(seconds(run))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first one warms up
        row = {"network": ours.__name__, **{name: round(value, 3) for name, value in medians.items()}}
        print(json.dumps(row | {"ratio": round(medians["torch"] / medians["ours"], 2)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 7)
