"""Cuts long reviews into overlapping windows, and pools their logits to one row of logits for each review.

    w_k = tokens [k·s, k·s + L)   for k = 0, 1, …;  the last window is [N - L, N)
    mean: z_c = 1/K Σ_k z_kc                 max: z_c = max_k z_kc

N: tokens of the review without special tokens;  L: `max_length` minus the special tokens;  s: stride, by default half
of max_length;  K: windows of the review, 1 if N ≤ L;  z_kc: logit of class c in window k.

Each window has the special tokens of a review of its own. The last one is moved back to the end of the review, so that
each window of a long review is full. Two neighbours share L - s tokens, the last two at least as many. In training each
window is an example with the label of its review. With `max` the classes may take their logits from different windows.

Pappagari et al. 2019, arXiv 1910.10781, cut documents in the same way, but learn the pooling.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.checked import about, check_types, listed, read_object
from data.files import write_json
from data.flags import check_choice
from data.hub import TRUNCATION
from data.tokenization import Tokenizer

WHOLE = sys.maxsize  # max_length of reviews that are not truncated
POOLING = ("mean", "max")
PARTS = ("head", "tail", "head+tail", "windows")  # kept of a longer review that is scored


class Truncation(NamedTuple):
    """How reviews become examples: `--max-length`, `--truncate`, `--window-stride` (0: half) and `--window-pooling`."""

    max_length: int
    truncate: str = "head"
    stride: int = 0
    pooling: str = "mean"


def write_truncation(folder: Path, truncation: Truncation) -> None:
    """Writes how reviews were cut in training into a checkpoint."""
    write_json(folder / TRUNCATION, truncation._asdict())


def read_truncation(folder: Path) -> Truncation | None:
    """Returns how reviews were cut in the training of a checkpoint, if it says so. Raises ValueError."""
    path = folder / TRUNCATION
    if not path.is_file():
        return None
    found, names = read_object(path), Truncation._fields
    with about(path):
        if found.keys() != set(names):
            raise ValueError(f"its keys are {listed(found)}, not {listed(names)}")
        return checked_truncation(found)


def checked_truncation(values: dict[str, Any]) -> Truncation:
    """Returns the truncation with these fields. Raises ValueError for a value of another type or out of range."""
    check_types(values, Truncation.__annotations__)
    truncation = Truncation(**values)
    check_choice("truncate", truncation.truncate, dict.fromkeys(PARTS))
    check_choice("pooling", truncation.pooling, dict.fromkeys(POOLING))
    if truncation.max_length < 1 or truncation.stride < 0:
        raise ValueError(f"max_length {truncation.max_length} or stride {truncation.stride} is too small")
    return truncation


def replaced(own: Truncation, **fields: Any) -> Truncation:
    """Replaces fields of a truncation. Raises ValueError for stride or pooling without windows."""
    truncation = own._replace(**fields)
    if truncation.truncate != "windows" and not fields.keys().isdisjoint(("stride", "pooling")):
        raise ValueError("--window-stride and --window-pooling are for --truncate windows")
    return truncation


def window_starts(length: int, limit: int, stride: int) -> list[int]:
    """Returns where the windows of `length` tokens start. limit: tokens of a window"""
    last = max(0, length - limit)
    return [*range(0, last, stride), last]


def window_positions(tokenizer: Tokenizer, length: int, max_length: int, stride: int = 0) -> list[np.ndarray]:
    """Returns the positions of each window in an example of `length` tokens that holds the whole review.

    max_length: tokens of a window;  length and max_length include the special tokens. stride: 0: half of max_length.
    Raises ValueError for a stride that skips tokens, and for a max_length without room for text.
    """
    before, after = map(len, tokenizer.template)
    limit = tokenizer.text_limit(max_length)
    stride = stride or min(max_length // 2, limit)
    if not 0 < stride <= limit:
        raise ValueError(f"--window-stride {stride} must be 1 to {limit}, the tokens of a window; more skips tokens")
    starts = window_starts(length - before - after, limit, stride)
    inside = [np.arange(start, min(start + limit, length - before - after)) for start in starts]
    first, last = np.arange(before), np.arange(length - after, length)
    return [np.concatenate([first, before + positions, last]) for positions in inside]


def first_windows(review: np.ndarray) -> np.ndarray:
    """Returns the first window of each review: int64 [R]. review: of each window, ascending, int64 [N]"""
    return np.flatnonzero(np.diff(review, prepend=-1))


def pool(logits: np.ndarray, review: np.ndarray, pooling: str = "mean") -> np.ndarray:
    """Pools the logits of windows, [N, C], to those of reviews, [R, C].

    review: of each window, ascending, int64 [N].  pooling: mean or max. Raises ValueError for another one.
    """
    check_choice("pooling", pooling, dict.fromkeys(POOLING))
    if not len(logits):
        return logits
    starts = first_windows(review)
    if pooling == "max":
        return np.maximum.reduceat(logits, starts)
    return np.add.reduceat(logits, starts) / np.bincount(review)[:, None].astype(logits.dtype)
