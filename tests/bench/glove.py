"""What GloVe's settings are worth: a linear classifier on the mean word vector of each review.

    python tests/bench/films.py IMDB_FOLDER FILMS
    python tests/bench/glove.py IMDB_FOLDER FILMS [WINDOW,X_MAX,RATE,EPOCHS …]

Trains GloVe on the unlabelled reviews and those of FILMS/labeledTrainData.tsv, words that occur 15 times there, fits a
logistic regression by L-BFGS on the means, and prints its accuracy on those reviews and on the other films of
FILMS/testData.tsv. Two minutes a setting on one core.
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

from data import UNLABELED, find_file, load_splits
from data.glove import count_pairs, train_glove
from data.imdb import load_reviews
from data.tokenization import train_tokenizer

SETTINGS = ("10,100,0.07,25", "10,10,0.07,25", "10,1,0.07,25", "10,0.1,0.07,25", "20,3,0.07,25")
MIN_COUNT, DECAY = 15, 1e-5


def means(rows: list[list[int]], vectors: Tensor) -> Tensor:
    return torch.stack([vectors[torch.tensor(row)].mean(0) for row in rows])


def accuracies(x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> tuple[float, float]:
    mean, spread = x.mean(0), x.std(0)
    x, other_x = (x - mean) / spread, (other_x - mean) / spread
    w, b = torch.zeros(x.size(1), requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ w + b, y.float()) + DECAY * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        pairs = ((x, y), (other_x, other_y))
        return tuple(round(float(((a @ w + b > 0) == (c == 1)).float().mean()), 4) for a, c in pairs)


def main(folder: str, films: str, settings: list[str]) -> None:
    splits = load_splits(films)
    known, other = pd.concat([splits.train, splits.validation]), splits.test
    unlabelled = load_reviews(find_file(Path(folder), UNLABELED))["review"]
    tokenizer = train_tokenizer("wordlevel", splits.train["review"], 40_000, MIN_COUNT)
    known_rows, other_rows = (list(tokenizer.pieces(frame["review"])) for frame in (known, other))
    rows = [*tokenizer.pieces(unlabelled), *known_rows]
    y, other_y = (torch.from_numpy(frame["sentiment"].to_numpy(np.int64)) for frame in (known, other))
    for setting in settings:
        window, x_max, rate, epochs = map(float, setting.split(","))
        begin = time.perf_counter()
        pairs = count_pairs(rows, tokenizer.vocab_size, int(window))
        vectors = train_glove(pairs, tokenizer.vocab_size, rate=rate, x_max=x_max, epochs=int(epochs))
        here, there = accuracies(means(known_rows, vectors), y, means(other_rows, vectors), other_y)
        row = {"window": int(window), "x_max": x_max, "rate": rate, "epochs": int(epochs)}
        print(json.dumps(row | {"trained on": here, "other films": there, "s": round(time.perf_counter() - begin)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or list(SETTINGS))
