"""The built-in reviews: balance, kinds, the split of the opinion words, and what the words alone can tell."""

import re

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data import demo
from data.demo import ORDERED, PLAIN, SIZES, SLOT, kind_of, reviews
from data.demo_words import GRAMMAR, NEUTRAL, Words
from data.mistakes import accuracy_by_kind

Rows = list[tuple[str, str, int]]


def entries() -> list[tuple[str, Words]]:
    """Returns (name, options) of the grammar; a pair counts as two."""
    return [
        (name, words) for name, entry in GRAMMAR.items() for words in ([entry] if isinstance(entry, Words) else entry)
    ]


def split_words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def test_balanced_distinct_and_deterministic():
    train, test = reviews("train"), reviews("test")
    assert (len(train), len(test)) == (SIZES["train"], SIZES["test"])
    for rows in (train, test):
        assert sum(label for *_, label in rows) == len(rows) // 2
    texts = [text for _, text, _ in train + test]
    assert len(set(texts)) == len(texts)
    assert len({identifier for identifier, *_ in train + test}) == len(texts)
    assert reviews.__wrapped__("train") == train
    assert reviews.__wrapped__("test") == test


def test_positive_and_negative_reviews_have_the_same_kinds():
    for split in ("train", "test"):
        kinds = [kind_of(identifier) for identifier, *_ in reviews(split)]
        assert kinds[::2] == kinds[1::2]
        assert set(kinds) == set(PLAIN) | set(ORDERED)
        assert sum(kind in ORDERED for kind in kinds) >= len(kinds) / 3


def test_plain_reviews_have_one_word_to_ten_sentences():
    plain = [text for identifier, text, _ in reviews("train") if kind_of(identifier) in PLAIN]
    assert min(len(text.split()) for text in plain) == 1
    sentences = [len(re.findall(r"[.!?](?= [A-Z])", text)) + 1 for text in plain]
    assert set(range(1, 11)) <= set(sentences)


def test_the_grammar_is_complete():
    """Every slot names an entry, every entry is used, and no option is listed as common and as rare."""
    options = [option for _, words in entries() for option in words.common + words.rare]
    slots = {slot[2] for option in options for slot in SLOT.finditer(option)}
    assert slots | set(PLAIN) | set(ORDERED) | {"opening", "lead", "trail"} == set(GRAMMAR) | {"several"}
    for name, words in entries():
        assert not set(words.common) & set(words.rare), name
        assert all(option == option.strip() and "//" not in option for option in words.common + words.rare), name


def test_opinion_words_have_one_polarity():
    for name in ("adj", "adverb", "noun", "mass", "works", "quality", "statement", "reaction", "advice"):
        negative, positive = (words.common + words.rare for words in GRAMMAR[name])
        shared = {option for option in set(negative) & set(positive) if not SLOT.search(option)}
        assert not shared, name


def test_common_opinion_words_are_in_both_splits_and_rare_ones_in_test_reviews_only():
    seen = {split: {word for _, text, _ in reviews(split) for word in split_words(text)} for split in SIZES}
    for words in GRAMMAR["adj"]:
        assert set(words.common) <= seen["train"]
        assert len(set(words.common) & seen["test"]) > 0.7 * len(set(words.common))
        assert not set(words.rare) & seen["train"]
        assert len(set(words.rare) & seen["test"]) > 0.3 * len(words.rare)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("it is not good", "it isn't good."),
        ("nothing about it is good", "nothing about it is good."),
        (
            "a awful film, a union, a uninspired, a ugly, a honest one",
            "an awful film, a union, an uninspired, an ugly, an honest one.",
        ),
        ("why?", "why?"),
    ],
)
def test_short_forms_articles_and_ends(written, found, monkeypatch):
    monkeypatch.setattr(demo.Writer, "chance", lambda self, probability: True)
    monkeypatch.setattr(demo.Writer, "draw", lambda self, name, good: written)
    assert demo.Writer(demo.random.Random(0), 0.0).sentence("contrast", True, ".") == found


def count_words(rows: Rows, vocabulary: dict[str, int]) -> torch.Tensor:
    """Counts the words of each review: float32 [N, V]."""
    counts = np.zeros((len(rows), len(vocabulary)), np.float32)
    for line, (_, text, _) in zip(counts, rows, strict=True):
        for word in re.findall(r"[\w']+|[.!?,;:]", text.lower()):
            if word in vocabulary:
                line[vocabulary[word]] += 1
    return torch.from_numpy(counts)


def fit_logistic_regression(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns bias and weights, float32 [V + 1], with L2 regularisation."""
    weight = torch.zeros(x.size(1) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight[1:] + weight[0], y)
        value = value + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


def bag_accuracy(train: Rows, test: Rows, words: list[str]) -> float:
    """Returns the test accuracy of logistic regression on the counts of `words`."""
    vocabulary = {word: number for number, word in enumerate(sorted(set(words)))}
    labels = [torch.tensor([label for *_, label in rows]).float() for rows in (train, test)]
    weight = fit_logistic_regression(count_words(train, vocabulary), labels[0])
    predicted = count_words(test, vocabulary) @ weight[1:] + weight[0] > 0
    return (predicted == labels[1].bool()).float().mean().item()


def of_kinds(split: str, kinds: dict[str, int]) -> Rows:
    return [row for row in reviews(split) if kind_of(row[0]) in kinds]


def test_counts_of_words_solve_plain_reviews_only():
    """In the other kinds, logistic regression on word counts stays below 75 %: the verdict depends on word order."""
    plain, ordered = (
        bag_accuracy(rows, of_kinds("test", kinds), [word for _, text, _ in rows for word in split_words(text)])
        for kinds in (PLAIN, ORDERED)
        for rows in [of_kinds("train", kinds)]
    )
    assert plain > 0.8
    assert 0.4 < ordered < 0.75


def test_neutral_words_punctuation_and_length_do_not_give_the_label_away():
    neutral = [word for entry in NEUTRAL.values() for option in entry.common for word in split_words(option)]
    assert bag_accuracy(reviews("train"), reviews("test"), [*neutral, *".!?,;:"]) < 0.65
    lengths = [[len(text.split()) for _, text, label in reviews("train") if label == value] for value in (0, 1)]
    assert np.mean(lengths[0]) == pytest.approx(np.mean(lengths[1]), rel=0.05)


def test_accuracy_by_kind():
    ids = ["word_test_0000", "word_test_0001", "list_test_0002", "word_test_0003"]
    correct = np.array([True, False, True, True])
    assert accuracy_by_kind(ids, correct) == "list 1.000 (1), word 0.667 (3)"
