"""Writes the reviews that the classifier in the box is trained and chosen on.

    python tests/bench/box.py IMDB_FOLDER OUT_FOLDER

train.tsv: the 20,000 training reviews of the usual split and the 20,000 built-in reviews for training and validation;
validation.tsv and test.tsv: IMDB's alone. data/weights/nb-linear-imdb/README.md has the commands that follow.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import pandas as pd

from data import Source, load_splits
from data.demo import reviews

if __name__ == "__main__":
    source, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(Source(data=source))
    built_in = pd.DataFrame(reviews("train"), columns=["id", "review", "sentiment"])
    frames = {
        "train": pd.concat([splits.train, built_in]),
        "validation": splits.validation,
        "test": splits.test,
    }
    for name, frame in frames.items():
        labelled = frame.assign(sentiment=[splits.labels[label] for label in frame["sentiment"]])
        labelled.to_csv(out / f"{name}.tsv", sep="\t", index=False)
        print(f"{out / name}.tsv: {len(frame):,} reviews")
