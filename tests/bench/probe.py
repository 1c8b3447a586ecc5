"""Measures what the features of a frozen encoder contain: the accuracy of a linear classifier on [CLS] and on the mean
over all tokens.

    python tests/bench/probe.py IMDB_FOLDER [WEIGHTS …]

WEIGHTS: folders or hub ids; default: builtin. Fits a logistic regression (`accuracies` of glove.py) on 3,000 training
reviews, truncated to 256 tokens (head+tail), and prints its accuracy on 2,000 validation reviews. A model takes two
minutes on one core.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.glove import accuracies

from data import Source, load_splits
from data.corpus import Corpus
from data.orders import sorted_order
from data.splitting import subset
from data.tokenization import Tokenizer, load_tokenizer
from nn.checkpoint import load_pretrained
from nn.encoder import Encoder
from nn.runtime import SCORING_TOKENS
from nn.words import masked_mean

TRAIN_REVIEWS, VALIDATION_REVIEWS, LENGTH = 3000, 2000, 256


@torch.inference_mode()
def states(model: Encoder, tokenizer: Tokenizer, frame: pd.DataFrame) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the last hidden state of [CLS] and the mean over all tokens, both [N, D], and returns the labels [N]."""
    rows = tokenizer.encode(frame["review"], max_length=LENGTH, truncate="head+tail")
    corpus = Corpus.from_rows(rows, labels=frame["sentiment"], pad_id=tokenizer.pad_id)
    first, mean = torch.empty(2, len(corpus), model.config.hidden_size)
    for order in sorted_order(corpus.lengths, SCORING_TOKENS):
        batch = corpus.batch(order)
        h = model.encode(model.embed(batch.input_ids, batch.mask), batch.mask)  # [B, T, D]
        first[order] = h[:, 0]
        mean[order] = masked_mean(h, batch.mask)
    return first, mean, torch.from_numpy(corpus.labels)


def main(folder: str, weights: list[str]) -> None:
    """Prints one row for each of `weights`."""
    splits = load_splits(Source(folder))
    train = subset(splits.train, count=TRAIN_REVIEWS, seed=42)
    validation = subset(splits.validation, count=VALIDATION_REVIEWS, seed=42)
    for name in weights:
        model, tokenizer = load_pretrained(name).eval(), load_tokenizer(name)
        if not isinstance(model, Encoder):
            raise ValueError(f"{name} is a network over words, without hidden states of [CLS]")
        first, mean, y = states(model, tokenizer, frame=train)
        other_first, other_mean, other_y = states(model, tokenizer, frame=validation)
        row = {"weights": name}
        for feature, x, other_x in (("[CLS]", first, other_first), ("mean", mean, other_mean)):
            row[feature] = accuracies(x.clone(), y, other_x=other_x.clone(), other_y=other_y)[1]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(folder=sys.argv[1], weights=sys.argv[2:] or ["builtin"])
