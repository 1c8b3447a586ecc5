"""Measures fp32 products of matrices by torch's default library and by oneDNN (nn/onednn.py).

    python tests/bench/onednn.py IMDB_FOLDER [--repeats N] | tee tests/bench/onednn.txt

First single products y = x Wᵀ and those of its gradients, then batches of products and the product of a recurrent
step, then scoring and training in fp32. Both libraries alternate in one process; rates and speeds are of medians.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from bench.measure import alternate, seconds
from bench.workload import epoch, prepare, sample_rows, scoring, training_of
from torch import Tensor

from nn import onednn
from nn.onednn import linear, product
from nn.runtime import describe_device, keep_freed_memory

SIZES = [(2048, 384, 1536), (2048, 1536, 384), (2048, 384, 384), (4096, 256, 1024), (256, 256, 256), (64, 128, 128)]
BATCHES = [(16, 512, 64, 512), (16, 512, 512, 64), (64, 256, 64, 256), (64, 128, 64, 128)]  # of q kᵀ and A v
STEPS = [(2, 32, 128, 512), (2, 64, 128, 512), (2, 32, 256, 1024), (2, 32, 64, 256)]  # of both directions of an LSTM
WORK = {"bert": ("scoring", "training"), "xsmall": ("scoring", "training", "LoRA")}


def products(repeats: int) -> None:
    """Prints the rates of single products in GFLOP/s: the default library, then oneDNN."""
    runs: dict[str, tuple[Callable, Callable]]
    for rows, inner, columns in SIZES:
        x, w, g = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(rows, columns)
        runs = {
            "x Wᵀ": (lambda x=x, w=w: F.linear(x, w), lambda x=x, w=w: linear(x, w)),
            "g W": (lambda g=g, w=w: g @ w, lambda g=g, w=w: linear(g, w.t())),
            "gᵀ x": (lambda g=g, x=x: g.t() @ x, lambda g=g, x=x: linear(g.t(), x.t())),
        }
        print_rates(f"{rows} x {inner} x {columns}", rows * inner * columns, runs, repeats)


def batches(repeats: int) -> None:
    """Prints the rates of x W for each pair of two batches, and of a recurrent step, whose W is packed before."""
    runs: dict[str, tuple[Callable, Callable]]
    for count, rows, inner, columns in BATCHES:
        x, w = torch.randn(count, rows, inner), torch.randn(count, columns, inner)
        runs = {"x Wᵀ": (lambda x=x, w=w: x @ w.mT, lambda x=x, w=w: linear(x, w))}
        print_rates(f"{count} of {rows} x {inner} x {columns}", count * rows * inner * columns, runs, repeats)
    for count, rows, inner, columns in STEPS:
        x, w, y = torch.randn(count, rows, inner), torch.randn(count, inner, columns), torch.zeros(count, rows, columns)
        matrices = [torch.ops.mkldnn._reorder_linear_weight(m, rows) for m in w.mT.contiguous()]

        def step(x: Tensor = x, y: Tensor = y, matrices: list[Tensor] = matrices) -> None:
            for total, x_n, m in zip(y, x, matrices, strict=True):
                total += product(x_n, m)

        runs = {"x W": (lambda x=x, y=y, w=w: y.baddbmm_(x, w), step)}
        print_rates(f"step, {count} of {rows} x {inner} x {columns}", count * rows * inner * columns, runs, repeats)


def print_rates(name: str, multiplications: int, runs: dict[str, tuple[Callable, Callable]], repeats: int) -> None:
    """Prints the rates of both functions of each run in GFLOP/s, and their ratio."""
    line = f"{name}:"
    for run, (default, fast) in runs.items():
        times = [(seconds(default), seconds(fast)) for _ in range(10 * repeats)][repeats:]
        rates = [2e-9 * multiplications / median(column) for column in zip(*times, strict=True)]
        line += f"  {run} {rates[0]:.0f}, {rates[1]:.0f} ({rates[1] / rates[0]:.2f} ×)"
    print(line, flush=True)


def with_library(run: Callable[[], Any], faster: bool) -> Callable[[], None]:
    """Returns `run` with or without oneDNN."""

    def work() -> None:
        onednn.is_faster = lambda: faster
        run()

    return work


def models(folder: str, repeats: int) -> None:
    """Prints seconds of the default library and of oneDNN, for BERT and DeBERTa-v3-xsmall's shape."""
    for shape, works in WORK.items():
        work = prepare(folder, shape, 512, partial(sample_rows, block=16, blocks=3))
        for name in works:
            run = scoring(work, "fp32")
            if name != "scoring":
                run = epoch(training_of(work, "fp32", 16, *(["--peft", "lora"] if name == "LoRA" else [])))
            medians = alternate({"default": with_library(run, False), "oneDNN": with_library(run, True)}, repeats)
            ratio = medians["default"] / medians["oneDNN"]
            times = ", ".join(f"{value:.2f} s" for value in medians.values())
            print(f"{shape}, {name}, 512: {times} ({ratio:.2f} ×)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    print(f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}")
    with torch.no_grad():
        products(given.repeats)
        batches(given.repeats)
    models(given.folder, given.repeats)
