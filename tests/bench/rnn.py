"""Compares the speed of our LSTM and GRU with torch.nn's: forward and backward of two bidirectional layers, 128 wide,
with inputs 300 wide.

    python tests/bench/rnn.py [REPEATS [IMDB_DIRECTORY]]

The first comparison has 64 × 256 tokens without padding. With a directory, the second one has BATCHES batches of 64
reviews with their real lengths, truncated to 400 words. Ours are bucketed by length as in train.py; torch's are random
and padded to their longest review, bucketed, or bucketed and packed (pack_padded_sequence). Each runs in fp32 and under
autocast to bf16, torch's also with weights and inputs in bf16. The implementations alternate in one process.

A row has the medians in seconds and two ratios, above 1 where ours is faster: torch's fastest in fp32 to ours in fp32,
and torch's fastest of all to ours in bf16.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pack_padded_sequence

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, find_file
from data.imdb import load_reviews
from data.orders import shuffled_order
from data.tokenization import train_tokenizer
from nn.gru import GRU
from nn.lstm import LSTM
from nn.runtime import choose_machine, keep_freed_memory

BATCH, STEPS, WIDTH, HIDDEN, LAYERS, BATCHES = 64, 256, 300, 128, 2, 12
PairedBatches = dict[str, list[tuple[Tensor, Tensor]]]  # ours, torch … -> batches of x [B, T, WIDTH] and mask [B, T]


def seconds(step: Callable[[], None]) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str, steps: dict[str, Callable[[], None]], repeats: int) -> None:
    """Alternates the steps and prints a row with their medians; the first repeat is a warm-up."""
    times: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(repeats + 1):
        for key, step in steps.items():
            times[key].append(seconds(step))
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}
    theirs = {key: value for key, value in medians.items() if not key.startswith("ours")}
    fp32 = min(value for key, value in theirs.items() if "bf16" not in key) / medians["ours"]
    bf16 = min(theirs.values()) / medians["ours, bf16"]
    row = {"work": name, **{key: round(value, 3) for key, value in medians.items()}}
    print(json.dumps(row | {"ratio fp32": round(fp32, 2), "ratio bf16": round(bf16, 2)}), flush=True)


def real_lengths(directory: str) -> np.ndarray:
    """Returns the number of words of the first reviews in the training file, in the order of the file."""
    reviews = load_reviews(find_file(Path(directory), LABELED)[0])["review"][: BATCH * BATCHES]
    tokenizer = train_tokenizer("wordlevel", reviews, 40_000)
    return np.array([len(ids) for ids in tokenizer.encode(reviews, 400)])


def random_batches(lengths: np.ndarray, order: list[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
    """Draws the inputs and masks of batches of reviews. order: the review numbers of each batch"""
    batches = []
    for rows in order:
        mask = torch.arange(int(lengths[rows].max())) < torch.from_numpy(lengths[rows])[:, None]
        batches.append((torch.randn(*mask.shape, WIDTH, requires_grad=True), mask))
    return batches


def real_batches(directory: str) -> PairedBatches:
    """Returns the same reviews bucketed by length, and in the order of the file."""
    lengths = real_lengths(directory)
    in_order = [np.arange(start, start + BATCH) for start in range(0, len(lengths), BATCH)]
    bucketed = random_batches(lengths, shuffled_order(lengths, BATCH, seed=0, epoch=0))
    random = random_batches(lengths, in_order)
    return {"ours": bucketed, "torch, random": random, "torch, bucketed": bucketed, "torch, packed": bucketed}


def training_steps(ours: Module, theirs: Module, batches: PairedBatches) -> dict[str, Callable[[], None]]:
    """Returns a function for each implementation and precision that runs forward and backward of all its batches."""
    theirs_bf16 = copy.deepcopy(theirs).bfloat16()

    def run_ours(mixed: bool) -> None:
        for x, mask in batches["ours"]:
            with choose_machine("cpu", "bf16" if mixed else "fp32").autocast():
                h = ours(x, mask)
            h.sum().backward()

    def run_torch(key: str, module: Module, mixed: bool) -> None:
        for x, mask in batches[key]:
            x = x.to(next(module.parameters()).dtype)
            if "packed" in key:
                x = pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                output = module(x)[0]
            (output.data if "packed" in key else output).sum().backward()

    steps: dict[str, Callable[[], None]] = {"ours": partial(run_ours, False), "ours, bf16": partial(run_ours, True)}
    for key in (key for key in batches if key != "ours"):
        steps[key] = partial(run_torch, key, theirs, False)
        steps[f"{key}, bf16 autocast"] = partial(run_torch, key, theirs, True)
        steps[f"{key}, bf16 weights"] = partial(run_torch, key, theirs_bf16, False)
    return steps


def main(repeats: int, directory: str | None) -> None:
    """Prints one row for LSTM and GRU each, or two with the real lengths of a directory."""
    keep_freed_memory()
    torch.manual_seed(0)
    full = [(torch.randn(BATCH, STEPS, WIDTH, requires_grad=True), torch.ones(BATCH, STEPS, dtype=torch.bool))]
    real = real_batches(directory) if directory else None
    for ours, theirs in ((LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)):
        layers = (
            ours(input_size=WIDTH, hidden_size=HIDDEN, num_layers=LAYERS),
            theirs(WIDTH, HIDDEN, num_layers=LAYERS, batch_first=True, bidirectional=True),
        )
        steps = training_steps(*layers, batches={"ours": full, "torch": full})
        compare(f"{ours.__name__}, {BATCH} x {STEPS}", steps=steps, repeats=repeats)
        if real:
            steps = training_steps(*layers, batches=real)
            compare(f"{ours.__name__}, {BATCHES} real batches", steps=steps, repeats=max(1, repeats // 3))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 7, sys.argv[2] if sys.argv[2:] else None)
