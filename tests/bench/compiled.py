"""What torch.compile would bring on a CPU: the same steps and the same scoring, plain and with compiled layers,
alternating, medians. Needs a C++ compiler; compiling takes a minute and is not counted.

    python tests/bench/compiled.py IMDB_FOLDER [--repeats N] | tee tests/bench/compiled.txt

The 6-layer BERT of peers.py, fine-tuning and scoring, at most 256 tokens; batches as train.py and eval.py cut them.
"""

import argparse
import copy
import functools
import json
import statistics
import warnings

import torch
from peers import BATCH, BERT, Step, of_ours, orders, real_reviews, seconds

from data.batches import sorted_order
from eval import CACHED_TOKENS
from nn import dropout
from nn.bert import Bert, BertConfig
from nn.runtime import keep_freed_memory

LENGTH = 256
plain_mask = dropout.keep_mask


@torch.library.custom_op("bench::keep_mask", mutates_args=(), tags=torch.Tag.nondeterministic_seeded)
def keep_mask(shape: list[int], threshold: int) -> torch.Tensor:
    """Dropout's random bytes as one operation that the compiler leaves alone: it cannot trace them."""
    return plain_mask(torch.Size(shape), threshold)


@keep_mask.register_fake
def _(shape, threshold):
    return torch.empty(shape, dtype=torch.uint8)


def main(folder: str, repeats: int) -> None:
    torch.manual_seed(0)
    model, corpus = Bert(BertConfig(**BERT)), real_reviews(folder, LENGTH)
    compiled = copy.deepcopy(model)
    for layer in compiled.layers:
        layer.compile(dynamic=True)
    dropout.keep_mask = lambda shape, threshold: keep_mask(list(shape), threshold)
    _, steps = orders(corpus, BATCH)
    ranked = [corpus.batch(rows) for rows in sorted_order(corpus.lengths, CACHED_TOKENS)]

    def train(step: Step) -> None:
        for passes in steps:
            step(*passes)

    @torch.inference_mode()
    def score(model: torch.nn.Module) -> None:
        for batch in ranked:
            of_ours(model.eval(), batch)

    for work, run, sides in (
        ("fine-tuning", train, {"plain": Step(model, of_ours), "compiled": Step(compiled, of_ours)}),
        ("scoring", score, {"plain": model, "compiled": compiled}),
    ):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats + 1):
            for name, side in sides.items():
                times[name].append(seconds(functools.partial(run, side)))
        medians = {name: round(statistics.median(values[1:]), 2) for name, values in times.items()}  # first: warm-up
        ratio = round(medians["compiled"] / medians["plain"], 2)
        print(json.dumps({"work": work, "length": LENGTH, **medians, "of the time": ratio}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    main(given.folder, given.repeats)
