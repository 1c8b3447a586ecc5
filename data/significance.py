"""Compares the accuracies of two classifiers on the same reviews: McNemar's test and a paired bootstrap.

    p = min(1, 2 Σ_{k ≤ min(b, c)} C(b + c, k) / 2^(b + c))      McNemar 1947; exact, by the binomial distribution

b reviews are labelled correctly by the first classifier alone, c by the second alone. If both are equally accurate, b
is Binomial(b + c, 1/2); p is the probability of a difference at least as large.

The bootstrap (Efron 1979; Efron & Tibshirani 1993, §13.3) draws N reviews with replacement and computes the difference
of the accuracies on them, many times. The interval is between the percentiles 2.5 and 97.5. Of several seeds, the
accuracy is their mean: the interval measures the choice of the reviews, not of the seeds.
"""

import numpy as np

SAMPLES = 10_000  # of the bootstrap


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Returns (b, c, p). first, second: whether each review is labelled correctly, bool [N]"""
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    tail = term = 1  # C(b + c, 0)
    for k in range(min(b, c)):
        term = term * (b + c - k) // (k + 1)  # C(b + c, k + 1)
        tail += term
    return b, c, min(1.0, 2 * tail / 2 ** (b + c))


def bootstrap_interval(difference: np.ndarray, samples: int = SAMPLES, level: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval of a mean over reviews. difference: of each review, [N]

    Only how often each distinct value is drawn matters, so a sample is one multinomial draw and not N draws.
    """
    values, counts = np.unique(difference, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(difference), counts / len(difference), size=samples)  # [S, values]
    low, high = np.quantile(drawn @ values / len(difference), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
