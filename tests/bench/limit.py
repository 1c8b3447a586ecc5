"""Measures which share of the machine's own matrix-product rate a step reaches, and what the other time is spent on.

    python tests/bench/limit.py IMDB_FOLDER [STEP …] [--repeats N] [--out tests/bench/limit.json]

STEP, the default is all: score and train (BERT, 6 layers, 384 wide), score-deberta (the shape of DeBERTa-v3-xsmall).
Each is measured in fp32 and, where the hardware multiplies in bf16, in bf16, on reviews of exactly 512 tokens.

    share           = time of the step's products alone / time of the step
    share of linear = rate of the step / rate of the linear layers' products alone

The products are counted from the config, not traced: all linear layers and the products of attention, at the pass size
of the project, and in training their two gradients. The products alone are computed one shape after the other on
tensors in the step's precision; a weight is in that precision from the start. They alternate with the step, and the
times are medians. Rates in GFLOP/s are FLOPs / time, with two FLOPs per multiplication. The classifier's product is
left out. The products of attention alone write all scores to memory, so they are much slower than those of the linear
layers; a step that never stores the scores can have a share above 1. The second share has no such effect.

The breakdown is torch.profiler's self CPU time of one step by operation, in groups; the sum is 1.
"""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as train.py
sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from bench.measure import alternate
from bench.workload import Workload, full_rows, optimizer_step, prepare, scoring, training_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nn.deberta import DebertaConfig, log_bucket
from nn.encoder import Encoder
from nn.runtime import choose_machine, describe_device, keep_freed_memory, scoring_tokens, tokens_per_pass

LENGTH, REVIEWS = 512, 16
STEPS = {"score": ("bert", False), "train": ("bert", True), "score-deberta": ("xsmall", False)}  # shape, training
UNLIMITED = 4_096  # tokens in a pass, if tokens_per_pass sets no limit
GROUPS = {  # group -> the operations in it, as an expression; the first that matches
    "attention kernel": r"scaled_dot_product|flash_attention|attention",
    "products": r"mm|linear|matmul|onednn|dot",
    "softmax": r"softmax",
    "GELU": r"gelu",
    "LayerNorm": r"layer_norm",
    "optimizer": r"adamw|Optimizer|_foreach|vector_norm|clip",
    "copies and casts": r"copy|::to$|clone|contiguous|cat$|gather|view_as|index_select",
    "embeddings": r"embedding|index|masked_fill",
    "sums": r"aten::add|aten::sum|AccumulateGrad",
    "dropout": r"dropout|random_|bernoulli|clamp|aten::mul|aten::sub",
}


class Product(NamedTuple):
    """`count` products [batch, m, k] · [batch, k, n]; batch 0: a linear layer, [m, k] · [n, k]ᵀ."""

    batch: int
    m: int
    k: int
    n: int
    count: int = 1

    @property
    def flops(self) -> int:
        return 2 * max(1, self.batch) * self.m * self.k * self.n * self.count


# ----------------------------------------------------------------------------------------------------- what is counted


def relative_rows(config: DebertaConfig, queries: int, length: int) -> int:
    """Returns the number of rows of the table of relative positions from the smallest to the largest that occurs."""
    ends = torch.tensor([length - 1, queries - 1])
    if config.position_buckets > 0:
        ends = log_bucket(ends, config.position_buckets, config.max_relative_positions)
    return min(int(ends.sum()) + 1, 2 * config.span)


def forward_products(config: Any, batch: int, length: int) -> Iterator[Product]:
    """Yields the products of a classifier's forward pass on [batch, length] tokens. In the last layer the only query is
    [CLS]."""
    c, width = config, config.hidden_size
    for layer in range(c.num_layers):
        queries = 1 if layer == c.num_layers - 1 else length
        yield Product(0, batch * length, width, width, 2)  # key, value
        yield Product(0, batch * queries, width, width, 2)  # query, output
        yield Product(0, batch * queries, width, c.feed_forward_size)
        yield Product(0, batch * queries, c.feed_forward_size, width)
        heads, head_width = batch * c.num_heads, width // c.num_heads
        yield Product(heads, queries, head_width, length)  # scores
        yield Product(heads, queries, length, head_width)  # weighted sum
        if getattr(c, "relative_attention", False):
            rows = relative_rows(c, queries, length)
            yield Product(0, rows, width, width, 2)  # K_r, Q_r
            yield Product(heads, queries, head_width, rows)  # content to position
            yield Product(heads, length, head_width, rows)  # position to content
    yield Product(0, batch, width, width)  # pooler


def gradient_products(product: Product) -> tuple[Product, Product]:
    """Returns the products of the gradients by both factors of a product."""
    batch, m, k, n, count = product
    return Product(batch, m, n, k, count), Product(batch, k, m, n, count)


def products(config: Any, batch: int, length: int, training: bool) -> list[Product]:
    """Returns the products of a pass, equal shapes together, with the backward pass if all weights are trained."""
    forward = list(forward_products(config, batch, length))
    every = forward + [gradient for product in forward if training for gradient in gradient_products(product)]
    counts: dict[Product, int] = {}
    for product in every:
        shape = product._replace(count=1)
        counts[shape] = counts.get(shape, 0) + product.count
    return [shape._replace(count=count) for shape, count in counts.items()]


# ----------------------------------------------------------------------------------------------------- the machine


def product_run(product: Product, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Returns a function that computes one product of this shape."""
    batch, m, k, n, _ = product
    if batch:
        x, y = torch.randn(batch, m, k).to(dtype), torch.randn(batch, k, n).to(dtype)
        return lambda: torch.bmm(x, y)
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    return lambda: F.linear(x, weight)


def flops(found: list[Product]) -> int:
    """Returns the FLOPs of all products."""
    return sum(product.flops for product in found)


def products_run(found: list[Product], dtype: torch.dtype, passes: int) -> Callable[[], None]:
    """Returns a function that computes all products of some passes and nothing else."""
    runs = [(product_run(product, dtype), product.count * passes) for product in found]

    @torch.inference_mode()
    def run() -> None:
        for product, count in runs:
            for _ in range(count):
                product()

    return run


# --------------------------------------------------------------------------------------------------------- the step


def pass_size(model: Encoder, precision: str, training: bool) -> int:
    """Returns the number of reviews in a pass of the project."""
    tokens = tokens_per_pass if training else scoring_tokens
    return (tokens(model, choose_machine("cpu", precision)) or UNLIMITED) // LENGTH


def step_run(work: Workload, precision: str, training: bool) -> Callable[[], Any]:
    """Returns a function that scores all reviews, or makes one optimizer step with them."""
    if not training:
        return scoring(work, precision)
    t = training_of(work, precision, REVIEWS)
    return lambda: optimizer_step(t, [np.arange(REVIEWS)])


def group_of(operation: str) -> str:
    """Returns the group of a profiler's event."""
    return next((group for group, names in GROUPS.items() if re.search(names, operation)), "other")


def breakdown(run: Callable[[], Any]) -> dict[str, float]:
    """Returns the share of each group of operations in the time of run(), largest first.

    The profiler sees this thread only, so that all passes are computed in it.
    """
    one = [mock.patch(name, return_value=1) for name in ("peft.scoring.separate_threads", "train.passes_at_once")]
    with one[0], one[1], profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        group = group_of(event.key)
        spent[group] = spent.get(group, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return {group: round(value / total, 3) for group, value in sorted(spent.items(), key=lambda item: -item[1])}


def measure(work: Workload, title: str, precision: str, training: bool, repeats: int) -> dict[str, Any]:
    """Returns the row of one step in one precision."""
    size, dtype = pass_size(work.model, precision, training), choose_machine("cpu", precision).dtype
    found, passes = products(work.model.config, size, LENGTH, training), max(1, REVIEWS // size)
    linear = [product for product in found if not product.batch]
    run = step_run(work, precision, training)
    runs = {"step": run, "products": products_run(found, dtype, passes), "linear": products_run(linear, dtype, passes)}
    medians = alternate(runs, repeats)
    rate, linear_rate = flops(found) * passes / medians["products"], flops(linear) * passes / medians["linear"]
    reached = flops(found) * REVIEWS / size / medians["step"]
    return {
        "step": f"{title}, {precision}",
        "pass": f"{size} x {LENGTH}",
        "GFLOP per review": round(flops(found) / size / 1e9, 2),
        "reviews/s": round(REVIEWS / medians["step"], 2),
        "GFLOP/s": round(reached / 1e9),
        "products' GFLOP/s": round(rate / 1e9),
        "linear layers' GFLOP/s": round(linear_rate / 1e9),
        "share": round(reached / rate, 3),
        "share of linear": round(reached / linear_rate, 3),
        "breakdown": breakdown(run),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of this machine; those of other machines and other steps are kept."""
    machine, known = describe_device(torch.device("cpu")), json.loads(path.read_text()) if path.exists() else {}
    new = {row["step"] for row in rows}
    kept = [row for row in known.get(machine, {}).get("rows", []) if row["step"] not in new]
    known[machine] = {"torch": torch.__version__, "rows": kept + rows}
    path.write_text(json.dumps(known, indent=1) + "\n")


TITLES = {"score": "scoring, BERT", "train": "fine-tuning, BERT", "score-deberta": "scoring, DeBERTa"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("step", nargs="*", help=", ".join(STEPS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="", help="rows of the same step are replaced")
    given = parser.parse_args()
    if unknown := [step for step in given.step if step not in STEPS]:
        parser.error(f"unknown step {unknown[0]!r}; known: {', '.join(STEPS)}")
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    for step in given.step or STEPS:
        shape, training = STEPS[step]
        work = prepare(given.folder, shape, LENGTH, partial(full_rows, count=REVIEWS))
        for precision in ("fp32", "bf16") if choose_machine("cpu", "auto").dtype == torch.bfloat16 else ("fp32",):
            row = measure(work, TITLES[step], precision, training, given.repeats)
            print(json.dumps(row), flush=True)
            if given.out:
                write_rows(Path(given.out), [row])


if __name__ == "__main__":
    main()
