"""Counts test reviews that are also labelled or unlabelled reviews, and scores published rows without them.

    python tests/bench/duplicates.py IMDB_FOLDER ROW [ROW ...]

Texts are compared without case, quotes, backslashes and white space. A ROW with several seeds is named ROW@SEED.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data import LABELED, TEST, UNLABELED, find_file
from data.held_out import bare
from data.imdb import load_reviews
from data.rows import open_runs


def main(folder: str, *rows: str) -> None:
    """Prints the counts, and the accuracy of each row on all test reviews and on the others."""
    test, labelled, unlabelled = (
        bare(load_reviews(find_file(Path(folder), name)[0])) for name in (TEST, LABELED, UNLABELED)
    )
    for name, texts in (("labelled", labelled), ("unlabelled", unlabelled)):
        print(f"{len(set(texts) & set(test)):,} texts of {name} reviews are texts of the test reviews")
    others = ~test.isin({*labelled, *unlabelled}).to_numpy()
    print(f"{(~others).sum():,} of {len(test):,} test reviews are among them")
    for row in rows:
        kept = open_runs(row)[0].predictions("test")
        if kept is None:
            print(f"{row}: no predictions were kept")
            continue
        right = kept.probabilities.argmax(1) == kept.labels
        print(f"{row}: accuracy {right.mean():.5f}, without them {right[others].mean():.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
