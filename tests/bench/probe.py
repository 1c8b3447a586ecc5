"""What stands in a frozen encoder: a linear classifier on [CLS], and on the mean of all tokens.

    python tests/bench/probe.py IMDB_FOLDER [WEIGHTS …]

WEIGHTS: folders or hub ids; default: builtin. Fits a logistic regression (`accuracies` of glove.py) on 3,000 training
reviews, the first 128 and the last of at most 256 pieces each, and prints its accuracy on 2,000 validation reviews. Two
minutes a model on one core.
"""

import json
import sys
from pathlib import Path

import torch
from glove import accuracies
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import load_splits
from data.batches import Corpus, sorted_order
from data.imdb import subset
from data.tokenization import Tokenizer, load_tokenizer
from eval import CACHED_TOKENS
from nn.checkpoint import load_pretrained
from nn.words import masked_mean

TRAINED, JUDGED, LENGTH = 3000, 2000, 256


@torch.inference_mode()
def states(model: torch.nn.Module, tokenizer: Tokenizer, frame) -> tuple[Tensor, Tensor, Tensor]:
    """[CLS] and the mean of each review, [N, D] both, and the labels."""
    rows = tokenizer.encode(frame["review"], LENGTH, "head+tail")
    corpus = Corpus.from_rows(rows, frame["sentiment"], tokenizer.pad_id)
    first, mean = torch.empty(2, len(corpus), model.config.hidden_size)
    for some in sorted_order(corpus.lengths, CACHED_TOKENS):
        batch = corpus.batch(some)
        h = model.encode(model.embed(batch.input_ids, batch.mask), batch.mask)
        first[some] = h[:, 0]
        mean[some] = masked_mean(h, batch.mask)
    return first, mean, torch.from_numpy(corpus.labels)


def main(folder: str, *weights: str) -> None:
    splits = load_splits(folder)
    frames = [subset(splits.train, TRAINED, 42, "train"), subset(splits.validation, JUDGED, 42, "validation")]
    for name in weights or ["builtin"]:
        model, tokenizer = load_pretrained(name).eval(), load_tokenizer(name)
        (first, mean, y), (other_first, other_mean, other_y) = (states(model, tokenizer, frame) for frame in frames)
        found = {"[CLS]": (first, other_first), "mean": (mean, other_mean)}
        row = {part: accuracies(x.clone(), y, other_x.clone(), other_y)[1] for part, (x, other_x) in found.items()}
        print(json.dumps({"weights": name} | row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
