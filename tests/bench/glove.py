"""Measures the value of GloVe's settings by the accuracy of a linear classifier on the mean word vector of each review.

    python tests/bench/films.py IMDB_FOLDER FILMS
    python tests/bench/glove.py IMDB_FOLDER FILMS [WINDOW,X_MAX,RATE,EPOCHS …]

Trains GloVe on the unlabelled reviews and on the reviews of FILMS/labeledTrainData.tsv, with the words that occur at
least 15 times in the latter. Fits a logistic regression by L-BFGS on the means, and prints its accuracy on those
labelled reviews ("trained on") and on the reviews of FILMS/testData.tsv ("other films"). A setting takes two minutes on
one core.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import UNLABELED, Source, find_file, load_splits
from data.glove import count_pairs, train_glove
from data.imdb import load_reviews
from data.tokenization import train_tokenizer

SETTINGS = ("10,100,0.07,25", "10,10,0.07,25", "10,1,0.07,25", "10,0.1,0.07,25", "20,3,0.07,25")
MIN_COUNT, DECAY = 15, 1e-5


def means(rows: list[list[int]], vectors: Tensor) -> Tensor:
    """Computes the mean word vector of each review: [N, D]. rows: word ids;  vectors: [V, D]"""
    return torch.stack([vectors[torch.tensor(row)].mean(0) for row in rows])


def accuracies(x: Tensor, y: Tensor, *, other_x: Tensor, other_y: Tensor) -> tuple[float, float]:
    """Fits a logistic regression on x [N, D], y [N] and returns its accuracy on (x, y) and on (other_x, other_y).

    Features are standardized by the mean and standard deviation of x. The loss is the mean cross-entropy and L2 decay.
    """
    mean, std = x.mean(0), x.std(0)
    x, other_x = (x - mean) / std, (other_x - mean) / std
    w, b = torch.zeros(x.size(1), requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ w + b, y.float()) + DECAY * w.square().sum()
        value.backward()
        return value

    def accuracy(features: Tensor, labels: Tensor) -> float:
        return round(float(((features @ w + b > 0) == (labels == 1)).float().mean()), 4)

    optimizer.step(loss)
    with torch.no_grad():
        return accuracy(x, y), accuracy(other_x, other_y)


def main(folder: str, films: str, settings: list[str]) -> None:
    """Prints one row for each setting."""
    splits = load_splits(Source(films))
    labelled, other = pd.concat([splits.train, splits.validation]), splits.test
    unlabelled = load_reviews(find_file(Path(folder), UNLABELED)[0])["review"]
    tokenizer = train_tokenizer("wordlevel", splits.train["review"], vocab_size=40_000, min_count=MIN_COUNT)
    labelled_rows, other_rows = (list(tokenizer.subword_ids(frame["review"])) for frame in (labelled, other))
    rows = [*tokenizer.subword_ids(unlabelled), *labelled_rows]
    y, other_y = (torch.from_numpy(frame["sentiment"].to_numpy(np.int64)) for frame in (labelled, other))
    for setting in settings:
        window, x_max, rate, epochs = map(float, setting.split(","))
        begin = time.perf_counter()
        pairs = count_pairs(rows, tokenizer.vocab_size, window=int(window))
        vectors = train_glove(pairs, tokenizer.vocab_size, rate=rate, x_max=x_max, epochs=int(epochs))
        x, other_x = means(labelled_rows, vectors), means(other_rows, vectors)
        trained_on, other_films = accuracies(x, y, other_x=other_x, other_y=other_y)
        row = {"window": int(window), "x_max": x_max, "rate": rate, "epochs": int(epochs)}
        row |= {"trained on": trained_on, "other films": other_films, "s": round(time.perf_counter() - begin)}
        print(json.dumps(row))


if __name__ == "__main__":
    main(folder=sys.argv[1], films=sys.argv[2], settings=sys.argv[3:] or list(SETTINGS))
