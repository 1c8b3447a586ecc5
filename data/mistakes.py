"""Lists the most confident mistakes of a classifier, and its accuracy on groups of reviews.

The groups are quarters by length in tokens, the ratings that the ids of IMDB's reviews end in, and shares of unknown
tokens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from data.checked import show
from data.corpus import Corpus
from data.demo import kind_of
from data.files import csv_text

RATING = re.compile(r"(?:^|/)[0-9]+_(10|[1-9])$")  # of an id such as 12311_10
FIRST_WORDS = 12
UNKNOWN_SHARES = (0.0, 0.01, 0.02, 0.05, 1.0)  # upper ends of the groups
HEADER = ("id", "label", "predicted", "probability", "words")


def most_confident_mistakes(truth: np.ndarray, probabilities: np.ndarray, count: int) -> list[int]:
    """Returns the rows whose predicted label is wrong, the highest probabilities first. [N], [N, C]"""
    wrong = np.flatnonzero(probabilities.argmax(1) != truth)
    return wrong[np.argsort(-probabilities.max(1)[wrong], kind="stable")][:count].tolist()


def mistakes(
    frame: pd.DataFrame, probabilities: np.ndarray, labels: Sequence[str], count: int
) -> list[tuple[str, str, str, float, str]]:
    """Returns (id, label, predicted label, its probability, first words) of the most confident mistakes.

    frame: id, review, sentiment.  probabilities: [N, C].  count: of mistakes, at most.
    """
    truth, predicted, confidence = frame["sentiment"].to_numpy(), probabilities.argmax(1), probabilities.max(1)
    worst = most_confident_mistakes(truth, probabilities, count)
    words = [" ".join(frame["review"].iloc[i].split()[:FIRST_WORDS]) for i in worst]
    ids = [str(frame["id"].iloc[i]) for i in worst]
    rows = zip(ids, worst, words, strict=True)
    return [(key, labels[truth[i]], labels[predicted[i]], float(confidence[i]), text) for key, i, text in rows]


def mistakes_csv(rows: Sequence[tuple[str, str, str, float, str]]) -> str:
    """Returns the mistakes as CSV."""
    return csv_text([HEADER, *((key, label, predicted, f"{p:.6f}", words) for key, label, predicted, p, words in rows)])


def mistake_lines(name: str, rows: Sequence[tuple[str, str, str, float, str]]) -> Iterator[str]:
    """Yields the mistakes as lines for a terminal."""
    yield f"{name}: the {len(rows)} most confident mistakes"
    for key, label, predicted, p, words in rows:
        yield f"  {show(key, 40)}: {label}, predicted {predicted} ({p:.4f}): {show(words)}"


def groups(frame: pd.DataFrame, corpus: Corpus, unk_id: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, bool [N]) of each group of reviews with a member. unk_id: of unknown words; None: there is none."""
    lengths = corpus.sum_by_review(corpus.lengths)  # with windows, tokens that two of them share count twice
    edges = np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf")
    quarter = np.searchsorted(edges, lengths)  # 0 … 3, an edge belongs to the quarter below it
    for q in np.unique(quarter):
        inside = quarter == q
        yield f"{lengths[inside].min():,} to {lengths[inside].max():,} tokens", inside
    found = [RATING.search(str(key)) for key in frame["id"]]
    if all(found):
        ratings = np.array([int(match[1]) for match in found if match])
        yield from ((f"rating {rating}", ratings == rating) for rating in np.unique(ratings))
    if unk_id is not None:
        totals = np.concatenate([[0], np.cumsum(corpus.ids == unk_id)])
        share = corpus.sum_by_review(np.diff(totals[corpus.offsets])) / np.maximum(lengths, 1)
        number = np.searchsorted(UNKNOWN_SHARES, share)
        for n in np.unique(number):
            low = f"above {100 * UNKNOWN_SHARES[n - 1]:g} to " if n else ""
            yield f"{low}{100 * UNKNOWN_SHARES[n]:g} % unknown tokens", number == n


def accuracy_table(correct: np.ndarray, found: Iterator[tuple[str, np.ndarray]]) -> str:
    """Returns a plain text table of the accuracy and the number of reviews of each group. correct: bool [N]"""
    lines = [f"  {name:<32}{correct[inside].mean():.4f}{inside.sum():>9,}" for name, inside in found]
    return "\n".join([f"  {'reviews':<32}accuracy{'number':>7}", *lines])


def accuracy_by_kind(ids: Iterable[str], correct: np.ndarray) -> str:
    """Lists the accuracy on each kind of built-in review, with the number of its reviews. correct: bool [N]"""
    kinds = pd.Series(correct).groupby([kind_of(identifier) for identifier in ids])
    return ", ".join(f"{kind} {found.mean():.3f} ({len(found)})" for kind, found in kinds)
