"""Our LSTM and GRU against torch.nn's: forward + backward of two bidirectional layers, 128 wide, inputs 300 wide.

    python tests/bench/rnn.py [REPEATS [IMDB_FOLDER]]

First 64 × 256 places, all real. Then, where a folder is named, BATCHES batches of 64 reviews with their real lengths,
at most 400 words: torch's padded to the longest of a random batch, ours bucketed by length as train.py has them. The
two alternate in one process; a row holds the medians in seconds and their ratio (above 1: ours is faster).
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, find_file
from data.batches import shuffled_order
from data.imdb import load_reviews
from data.tokenization import train_tokenizer
from nn.gru import GRU
from nn.lstm import LSTM
from nn.runtime import keep_freed_memory

BATCH, STEPS, WIDTH, HIDDEN, LAYERS, BATCHES = 64, 256, 300, 128, 2, 12


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str, runs: dict, repeats: int) -> None:
    times = {key: [] for key in runs}
    for _ in range(repeats + 1):
        for key, run in runs.items():
            times[key].append(seconds(run))
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}  # the first one warms up
    row = {"work": name, **{key: round(value, 3) for key, value in medians.items()}}
    print(json.dumps(row | {"ratio": round(medians["torch"] / medians["ours"], 2)}), flush=True)


def real_lengths(folder: str) -> np.ndarray:
    """Words of the first reviews in the training file, in its order."""
    reviews = load_reviews(find_file(Path(folder), LABELED))["review"][: BATCH * BATCHES]
    tokenizer = train_tokenizer("wordlevel", reviews, 40_000)
    return np.array([len(ids) for ids in tokenizer.encode(reviews, 400)])


def batches(lengths: np.ndarray, order: list[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = []
    for rows in order:
        mask = torch.arange(int(lengths[rows].max())) < torch.from_numpy(lengths[rows])[:, None]
        made.append((torch.randn(*mask.shape, WIDTH, requires_grad=True), mask))
    return made


def main(repeats: int, folder: str | None) -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    x = torch.randn(BATCH, STEPS, WIDTH, requires_grad=True)
    mask = torch.ones(BATCH, STEPS, dtype=torch.bool)
    if folder:
        lengths = real_lengths(folder)
        padded = batches(lengths, [np.arange(at, at + BATCH) for at in range(0, len(lengths), BATCH)])
        bucketed = batches(lengths, shuffled_order(lengths, BATCH, seed=0, epoch=0))
    for ours, theirs in ((LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)):
        mine = ours(WIDTH, HIDDEN, LAYERS)
        torchs = theirs(WIDTH, HIDDEN, LAYERS, batch_first=True, bidirectional=True)
        runs = {
            "ours": lambda mine=mine: mine(x, mask).sum().backward(),
            "torch": lambda torchs=torchs: torchs(x)[0].sum().backward(),
        }
        compare(f"{ours.__name__}, {BATCH} x {STEPS}", runs, repeats)
        if folder:
            runs = {
                "ours": lambda mine=mine: [mine(*batch).sum().backward() for batch in bucketed],
                "torch": lambda torchs=torchs: [torchs(x)[0].sum().backward() for x, _ in padded],
            }
            compare(f"{ours.__name__}, {BATCHES} real batches", runs, max(1, repeats // 3))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 7, sys.argv[2] if sys.argv[2:] else None)
