"""Measures the effect of torch.compile on a CPU: training steps and scoring with plain and with compiled layers.

    python tests/bench/compiled.py IMDB_FOLDER [--repeats N] | tee tests/bench/compiled.txt

Uses the 6-layer BERT of peers.py on reviews of at most 256 tokens, in batches as in train.py and eval.py. Both models
have the same weights and alternate in one process. Prints medians in seconds; the compilation, which takes a minute, is
not included. Needs a C++ compiler.
"""

import argparse
import copy
import functools
import json
import warnings
from collections.abc import Callable

import torch
from peers import BATCH, BERT, Step, alternate, bucketed_steps, of_ours, real_reviews

from data.batches import Batch
from data.orders import sorted_order
from nn import dropout
from nn.bert import Bert, BertConfig
from nn.runtime import CACHED_TOKENS, keep_freed_memory

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


def models() -> dict[str, Bert]:
    """Builds the plain model and a copy with compiled layers."""
    torch.manual_seed(0)
    plain = Bert(BertConfig(**BERT))
    compiled = copy.deepcopy(plain)
    for layer in compiled.layers:
        layer.compile(dynamic=True)
    dropout.keep_mask = lambda shape, threshold: keep_mask(list(shape), threshold)
    return {"plain": plain, "compiled": compiled}


def train(step: Step, steps: list[list[Batch]]) -> None:
    """Runs all training steps."""
    for passes in steps:
        step(*passes)


@torch.inference_mode()
def score(model: Bert, batches: list[Batch]) -> None:
    """Scores all batches."""
    model.eval()
    for batch in batches:
        of_ours(model, batch)


def compare(work: str, runs: dict[str, Callable[[], None]], repeats: int) -> None:
    """Prints the median seconds of both models and the speed of the compiled one, relative to the plain one."""
    medians = alternate(runs, repeats)
    row = {"work": work, "length": LENGTH, **{name: round(value, 2) for name, value in medians.items()}}
    print(json.dumps(row | {"speed": round(medians["plain"] / medians["compiled"], 2)}), flush=True)


def main(folder: str, repeats: int) -> None:
    """Compares fine-tuning, then scoring."""
    both, corpus = models(), real_reviews(folder, LENGTH)
    steps = bucketed_steps(corpus, batch=BATCH, limit=CACHED_TOKENS)
    runs = {name: functools.partial(train, Step(model, of_ours), steps) for name, model in both.items()}
    compare("fine-tuning", runs, repeats=repeats)
    batches = [corpus.batch(rows) for rows in sorted_order(corpus.lengths, CACHED_TOKENS)]
    runs = {name: functools.partial(score, model, batches) for name, model in both.items()}
    compare("scoring", runs, repeats=repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    main(folder=given.folder, repeats=given.repeats)
