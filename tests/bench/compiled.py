"""Measures the effect of torch.compile on a CPU: training steps and scoring with plain and with compiled layers.

    python tests/bench/compiled.py IMDB_FOLDER [--precision bf16] [--repeats N] | tee tests/bench/compiled.txt

Uses the 6-layer BERT of peers.py on reviews of at most 256 tokens, in batches as in train.py and eval.py. Both models
have the same weights and alternate in one process. Prints medians in seconds; the compilation, which takes a minute, is
not included. Needs a C++ compiler.
"""

import argparse
import json
import sys
import warnings
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from bench.measure import Run, alternate
from bench.workload import epoch, prepare, sample_rows, training_of

from nn import dropout
from nn.encoder import Encoder
from nn.runtime import keep_freed_memory
from peft.scoring import score
from train import Training

LENGTH = 256
plain_mask = dropout.keep_mask


@torch.library.custom_op("bench::keep_mask", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def keep_mask(shape: list[int], threshold: int) -> torch.Tensor:
    """Draws dropout's random bytes as one operation, since the compiler cannot trace them."""
    return plain_mask(torch.Size(shape), threshold)


@keep_mask.register_fake
def fake_keep_mask(shape: list[int], threshold: int) -> torch.Tensor:
    """Returns an empty tensor of the result's shape for the compiler."""
    return torch.empty(shape, dtype=torch.uint8)


def compile_layers(model: Encoder) -> None:
    """Compiles the layers of a model in place."""
    for layer in model.layers:
        layer.compile(dynamic=True)
    dropout.keep_mask = lambda shape, threshold: keep_mask(list(shape), threshold)


def compare(work: str, runs: dict[str, Run], repeats: int) -> None:
    """Prints the median seconds of both models and the speed of the compiled one, relative to the plain one."""
    medians = alternate(runs, repeats)
    row = {"work": work, "length": LENGTH, **{name: round(value, 2) for name, value in medians.items()}}
    print(json.dumps(row | {"speed": round(medians["plain"] / medians["compiled"], 2)}), flush=True)


def scored(t: Training) -> Run:
    """Returns a function that scores the reviews of a run."""
    return lambda: score(t.model.eval(), t.corpus, t.machine, bar=False)


def main(folder: str, precision: str, repeats: int) -> None:
    """Compares fine-tuning, then scoring."""
    work = prepare(folder, "bert", LENGTH, partial(sample_rows, block=16, blocks=8))
    both = {name: training_of(work, precision, batch=16) for name in ("plain", "compiled")}
    model = both["compiled"].model
    assert isinstance(model, Encoder)
    compile_layers(model)
    compare("fine-tuning", {name: epoch(t) for name, t in both.items()}, repeats)
    compare("scoring", {name: scored(t) for name, t in both.items()}, repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.precision}")
    main(given.folder, given.precision, given.repeats)
