"""Measures training with one pass at a time, computed by all threads, against two at the same time (nn/threads.py).

    python tests/bench/passes.py IMDB_FOLDER [--tokens N …] [--repeats N] | tee tests/bench/passes.txt

Reviews per second are medians of alternating runs of the same training steps: BERT with 6 layers, 384 wide, all weights
trained, and LoRA in the shape of DeBERTa-v3-xsmall, batches of 16 reviews with the lengths of IMDB, at most 512 tokens.
bf16 is measured if the CPU has bf16 products.  tokens: in a pass, in fp32; the default is the project's
"""

import argparse
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as train.py
sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from bench.measure import Run, alternate
from bench.workload import optimizer_step, prepare, sample_rows, training_of

from nn.runtime import TRAINING_TOKENS, choose_machine, keep_freed_memory
from nn.training import Training

LENGTH, BATCH = 512, 16
WORKS = {"BERT, all weights": ("bert", ()), "DeBERTa, LoRA": ("xsmall", ("--peft", "lora"))}


def steps(t: Training, batches: list[np.ndarray], at_once: int, tokens: int) -> None:
    """Makes an optimizer step with each batch.  tokens: in a pass, in the precision of the run"""
    one = mock.patch("train.passes_at_once", return_value=at_once)
    with one, mock.patch("train.tokens_per_pass", return_value=tokens):
        for rows in batches:
            optimizer_step(t, [rows])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--tokens", nargs="*", type=int, default=[TRAINING_TOKENS])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    halves = choose_machine("cpu", "auto", notes=False).dtype == torch.bfloat16
    for title, (shape, flags) in WORKS.items():
        work = prepare(given.folder, shape, LENGTH, partial(sample_rows, block=BATCH, blocks=4))
        batches = work.batches(f"{BATCH} reviews", "grouped")
        for precision, factor in (("fp32", 1), ("bf16", 2)) if halves else (("fp32", 1),):
            t = training_of(work, precision, BATCH, *flags)
            runs: dict[str, Run] = {
                f"{at_once} at a time, {factor * tokens} tokens": partial(steps, t, batches, at_once, factor * tokens)
                for tokens in given.tokens
                for at_once in (1, 2)
            }
            for name, seconds in alternate(runs, given.repeats).items():
                print(f"{title}, {precision}: {name}: {len(work.corpus) / seconds:.2f} reviews/s", flush=True)


if __name__ == "__main__":
    main()
