"""Reads reviews from standard input, and writes the predictions of a classifier."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pandas as pd

from data.checked import reading, show
from data.cleaning import clean_line
from data.delimited import FIELD_LIMIT
from data.files import csv_text
from data.imdb import as_frame
from data.labels import SENTIMENT, UNKNOWN, canonical
from data.metrics import softmax
from data.readers import MARK, check_encoding
from data.text_lines import check_not_json, header_titles


def bounded_lines(file: io.TextIOBase) -> Iterator[str]:
    """Yields the lines of a stream. Raises ValueError for a line of more than FIELD_LIMIT characters."""
    while line := file.readline(FIELD_LIMIT + 1):
        if len(line.rstrip("\n")) > FIELD_LIMIT:
            raise ValueError(f"a line of standard input has more than {FIELD_LIMIT:,} characters; split it")
        yield line


def read_lines(file: BinaryIO, encoding: str = "") -> pd.DataFrame:
    """Reads one review a line from standard input; ids are line numbers from 1. encoding: default UTF-8"""
    check_encoding("standard input", encoding or "utf-8-sig", "")
    lines = io.TextIOWrapper(file, encoding=encoding or "utf-8-sig")
    with reading("standard input", "text", "name its encoding with --encoding"):
        found = [line.removeprefix(MARK) for line in bounded_lines(lines)]
    first = next((line.rstrip("\r\n") for line in found if line.strip()), "")
    check_not_json(None, first)
    if len(titles := header_titles(first)) > 1:
        raise ValueError(
            f"standard input is a table ({show(', '.join(titles), 60)}), not one review a line; --predict FILE reads it"
        )
    return as_frame((str(n), clean_line(line, n, "standard input"), UNKNOWN) for n, line in enumerate(found, 1))


def predictions_csv(ids: Iterable[str], logits: np.ndarray, labels: tuple[str, ...], submission: bool = False) -> str:
    """Returns a table of id, label and the probability of each class. logits: [N, C]

    submission: Kaggle's columns id and sentiment: 0 for the class that means negative and 1 for positive; other classes
    have their names.
    """
    if submission:
        meanings = [canonical(label) for label in labels]
        names = [str(SENTIMENT.index(m)) for m in meanings] if sorted(meanings) == sorted(SENTIMENT) else labels
        return csv_text([("id", "sentiment"), *zip(ids, (names[c] for c in logits.argmax(1)), strict=True)])
    header = ("id", "label", *(f"p_{label}" for label in labels))
    rows = zip(ids, logits.argmax(1), softmax(logits), strict=True)
    return csv_text([header, *((key, labels[c], *(f"{p:.6f}" for p in ps)) for key, c, ps in rows)])


def print_answer(labels: tuple[str, ...], logits: np.ndarray) -> None:
    """Prints the label of one review with the probability of each class. logits: [1, C]"""
    shown = {label: round(float(p), 4) for label, p in zip(labels, softmax(logits)[0], strict=True)}
    print(f"{labels[int(logits[0].argmax())]} ({json.dumps(shown, ensure_ascii=False)})")
