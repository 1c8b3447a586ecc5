"""Tokenizer files with all their settings: equal ids to transformers and sentencepiece, on 1,000 made texts and on
reviews with every character of the test reviews, for each configuration."""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
from conftest import GOLDEN
from tokenizer_cases import CASES, FRAGILE, PUBLISHED, choose_reviews, made_texts, texts_for, write

from data.checked import read_json
from data.imdb import load_reviews
from data.tokenization import Tokenizer, load_tokenizer

EXPECTED = read_json(GOLDEN / "tokenizers.json")
LENGTH = 10**9


def digest(rows: list[list[int]]) -> str:
    """Returns a hash of the ids of texts."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_every_configuration_has_golden_ids():
    assert list(EXPECTED["cases"]) == [*CASES, *PUBLISHED]
    assert len(CASES) >= 40


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer]:
    """Returns the name and the tokenizer of a configuration, which its tests share."""
    return request.param, load_tokenizer(write(request.param, tmp_path_factory.mktemp("files")))


def test_ids_of_made_texts(case: tuple[str, Tokenizer], tmp_path: Path):
    name, tokenizer = case
    expected = EXPECTED["cases"][name]
    texts, fragile = texts_for(name, made_texts(EXPECTED["texts"])), texts_for(name, FRAGILE)
    rows = list(tokenizer.encode(texts, LENGTH))
    assert dict(zip(fragile, rows, strict=False)) == dict(zip(fragile, expected["fragile"], strict=True))
    assert digest(rows) == expected["made"]
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert list(again.encode(texts[:200], LENGTH)) == rows[:200]
    assert (again.special, again.template, again.fingerprint) == (
        tokenizer.special, tokenizer.template, tokenizer.fingerprint
    )  # fmt: skip


@cache
def reviews_of(path: Path) -> list[str]:
    reviews = choose_reviews(load_reviews(path)["review"].tolist())
    assert len(reviews) == EXPECTED["reviews"]
    return reviews


@pytest.mark.slow
def test_ids_of_reviews(case: tuple[str, Tokenizer], imdb: Path):
    name, tokenizer = case
    rows = list(tokenizer.encode(texts_for(name, reviews_of(imdb / "testData.tsv.gz")), LENGTH))
    assert digest(rows) == EXPECTED["cases"][name]["reviews"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_with_the_published_model(name: str, tmp_path: Path, spm: Path, imdb: Path):
    tokenizer, expected = load_tokenizer(write(name, tmp_path, spm)), EXPECTED["cases"][name]
    assert digest(list(tokenizer.encode(made_texts(EXPECTED["texts"]), LENGTH))) == expected["made"]
    assert digest(list(tokenizer.encode(reviews_of(imdb / "testData.tsv.gz"), LENGTH))) == expected["reviews"]
