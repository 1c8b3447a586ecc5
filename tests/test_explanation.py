"""The terminal, the HTML page, and the words of tokens."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, tiny, tiny_weights

from data.alignment import NO_WORD, align, words_of_tokens
from data.demo import reviews
from data.explanation import (
    Explanation,
    agreement_text,
    as_page,
    as_text,
    columns_of,
    has_colours,
    marked,
    sentences,
    strengths,
    table_html,
    weighted_sum,
    word_html,
    wrapped,
)
from data.tokenization import Tokenizer, train_tokenizer
from data.windows import Truncation
from eval import main as evaluate
from nn import MODELS
from nn.explain import explain, score_without, sum_by_word

KINDS = ("wordlevel", "wordpiece", "bpe", "unigram")
NASTY = '<script>alert("1")</script>&amp;\' http://example.org/x.png <img src=x onerror=alert(1)> \x1b[31mred'


def made(text: str, **changes) -> Explanation:
    """Returns an explanation whose effects are fixed numbers."""
    words = text.split()
    gradients = np.resize([0.1, -1.0, 2.0, 0.0, -1.9, 0.9], len(words))
    values = {
        "words": words,
        "read": np.arange(len(words)) != 3,
        "truncated": np.arange(len(words)) == 3,
        "label": "positive",
        "probabilities": {"negative": 0.1, "positive": 0.9},
        "gradients": gradients,
        "without": gradients**3,
        "difference": gradients.sum(),
        "phrases": list(zip(words, gradients, strict=True)),
        "weights": [("attention", np.abs(gradients))],
        "baseline": "the text with each token as <unk>",
    }
    return Explanation(**values | changes)


def test_the_terminal_is_as_in_the_golden_file():
    text = 'He said: "A truly superb little film!" Nothing in it is slow, and nobody is bored. See it twice'
    shown = made(text, key="7_1", truth="negative")
    found = "\n\n".join([as_text(shown, colours=False, width=60), as_text(shown, colours=True, width=60)]) + "\n"
    assert found == (GOLDEN / "explanation.txt").read_text(encoding="utf-8")


def test_the_terminal_obeys_no_control_character():
    assert "\x1b" not in as_text(made(NASTY, key="\x1b[2J", label="\x07", probabilities={"\x07": 1.0}), colours=False)


class Tags(HTMLParser):
    """Collects the tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_every_text_and_requests_nothing():
    shown = made(NASTY, key=NASTY, truth=NASTY, label=NASTY, probabilities={NASTY: 1.0}, weights=[(NASTY, np.ones(99))])
    page = as_page([shown, made("one two")], NASTY)
    found, plain = Tags(page), Tags(as_page([made("one two")], "run"))
    assert found.tags == plain.tags
    assert not found.tags & {"script", "img", "link", "iframe", "a", "object"}
    assert found.attributes == plain.attributes | {"class", "title"}
    assert not found.attributes & {"src", "href", "onerror"}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert '<script>alert("1")</script>' in found.text
    assert "\x1b" not in page


def test_agreement_is_the_rank_correlation():
    shown = made("a b c d e f")
    assert shown.agreement == pytest.approx(1)  # the cube keeps the ranks
    assert "agree: rank correlation 1.00, strongest word the same" in agreement_text(shown)
    assert "do not agree: rank correlation -1.00" in agreement_text(made("a b c d e f", without=-shown.gradients))
    assert "no rank correlation" in agreement_text(made("a"))
    shown = made("a b c d", without=np.array([0.1, -5.0, 0.2, 0.15]))
    against = replace(shown, gradients=np.array([0.2, -4.0, 0.1, 0.15]))
    assert "strongest word the same" in agreement_text(against)


def test_sentences():
    words = made('It was "good!" Really... no. 10 of 10? (Yes.) And').words
    assert [" ".join(words[i] for i in part) for part in sentences(words)] == [
        'It was "good!"', "Really... no.", "10 of 10?", "(Yes.)", "And",
    ]  # fmt: skip
    assert sentences([]) == []


@cache
def trained(kind: str) -> tuple[list[str], Tokenizer]:
    """Returns 100 built-in reviews and a tokenizer that is trained on them."""
    texts = [text for _, text, _ in reviews("train")[:100]]
    return texts, train_tokenizer(kind, texts, 300)


@pytest.mark.parametrize("truncate", ["head", "tail", "head+tail"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_belong_to_the_word_that_they_are_a_part_of(kind, truncate):
    texts, tokenizer = trained(kind)
    for text in [*texts[:8], "Unübertroffen (really), it's 10/10 !?"]:
        words, ids, word_of = align(tokenizer, text, 5_000, truncate)
        assert ids == next(tokenizer.encode([text], 5_000))
        for number, word in enumerate(words):
            expected = next(tokenizer.subword_ids([f" {word}" if number else word]))
            assert [ids[t] for t in np.flatnonzero(word_of == number)] == expected
        doubled = text.replace(" ", "  ")
        assert align(tokenizer, doubled, 5_000, truncate)[1] == next(tokenizer.encode([doubled], 5_000))
        short_words, short, short_of = align(tokenizer, text, 9, truncate)
        assert short == next(tokenizer.encode([text], 9, truncate))
        assert short_words == words
        assert (np.diff(short_of[short_of != NO_WORD]) >= 0).all()


def test_tokens_across_a_space_belong_to_a_word_near_them():
    assert words_of_tokens([1, 2, 9, 4], [[1], [2, 3], [4]]).tolist() == [0, 1, 1, 2]
    assert words_of_tokens([9, 9, 1, 4, 9], [[1], [2, 3], [4], [5]]).tolist() == [0, 0, 0, 2, 2]
    rows = [[number] for number in range(1_000)]
    ids = [5_000, *range(400), 5_000, *range(400, 900), 5_000, 5_000, *range(903, 1_000)]
    found = words_of_tokens(ids, rows).tolist()
    assert found == [0, *range(400), 399, *range(400, 900), 899, 899, *range(903, 1_000)]
    assert words_of_tokens([5_000] * 500, rows).tolist() == [0] * 500
    assert sum_by_word(np.array([5.0, 1, 2, 3]), np.array([NO_WORD, 0, 0, 2]), 3).tolist() == [3, 0, 3]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_explained_word_by_word(name):
    texts, tokenizer = trained(MODELS[name].tokenizer)
    model = tiny(name, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()

    def score(texts: list[str]) -> np.ndarray:
        ids, mask = tokenizer.encode_batch(texts, 16, "head")
        return model(ids, mask).detach().numpy()

    found = explain(model, tokenizer, texts[0], Truncation(16), score)
    assert len(found.words) == len(found.gradients) == len(found.without) == len(texts[0].split())
    assert abs(found.gradients.sum() - found.difference) <= 0.01 * abs(found.difference) + 1e-4
    assert not found.gradients[~found.read].any()
    assert not found.without[~found.read].any()
    assert len(found.weights) == {"attention_lstm": 1, "capsule_lstm": 3}.get(name, 0)
    assert as_text(found, colours=True)


def test_a_long_text_is_scored_in_parts(monkeypatch: pytest.MonkeyPatch):
    """So that not all copies of it are in memory at once."""
    texts, calls = [f"film {'bad ' * 20}good"], []

    def score(texts: list[str]) -> np.ndarray:
        calls.append(sum(map(len, texts)))
        return np.array([[len(text), text.count("good")] for text in texts], dtype=np.float32)

    words, read = texts[0].split(), np.array([0, 2, 5, 21])
    whole = score_without(texts[0], words, read, score)
    assert whole.tolist() == [[89, 1], [84, 1], [85, 1], [85, 1], [84, 0]]
    monkeypatch.setattr("nn.explain.PART", 200)
    assert (score_without(texts[0], words, read, score) == whole).all()
    assert calls == [427, 258, 169]
    assert score_without(texts[0], words, read[:0], score).tolist() == [[89, 1]]


def test_wide_characters_and_marks_are_counted_by_their_columns():
    assert [columns_of(text) for text in ("film", "영화", "e\u0301", "\uff21", "\u200bה")] == [4, 4, 1, 2, 1]
    shown = as_text(made(" ".join(["아주좋은", "영화"] * 40)), colours=False, width=60).splitlines()
    assert max(map(columns_of, shown[:8])) <= 60
    assert max(map(len, shown[:8])) < 50


def test_words_after_other_blanks_have_effects():
    texts, tokenizer = trained("bpe")
    model = tiny("roberta", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    text = f"{texts[0]}\u00a0wonderful \u2028bad good"

    def score(texts: list[str]) -> np.ndarray:
        return model(*tokenizer.encode_batch(texts, 99, "head")).detach().numpy()

    found = explain(model, tokenizer, text, Truncation(99), score, label=1)
    assert found.words == text.split(" ")
    assert found.read.all()
    whole, *others = score(
        [text, *(" ".join(text.split(" ")[:i] + text.split(" ")[len(text.split(" ")) + i + 1 :]) for i in (-1, -2))]
    )
    odds = [float(z[1] - z[0]) for z in (whole, *others)]
    np.testing.assert_allclose(found.without[[-1, -2]], [odds[0] - odds[1], odds[0] - odds[2]], atol=1e-5)


@pytest.mark.parametrize("truncate", ["head", "tail", "head+tail"])
def test_words_that_are_not_read_take_no_pass(truncate: str):
    texts, tokenizer = trained("wordpiece")
    model = tiny("bert", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    text, counts = " ".join(texts[:3]), []

    def score(texts: list[str]) -> np.ndarray:
        counts.append(len(texts))
        return model(*tokenizer.encode_batch(texts, 9, truncate)).detach().numpy()

    found = explain(model, tokenizer, text, Truncation(9, truncate), score)
    assert counts == [1 + found.read.sum()]
    assert counts[0] < 10
    words = text.split()
    unread = int(np.flatnonzero(~found.read)[3])
    texts = [text, " ".join(words[:unread] + words[unread + 1 :])]
    ids, _ = tokenizer.encode_batch(texts, 9, truncate)
    assert torch.equal(*ids)


def test_the_worst_mistakes_of_a_file_on_a_page(tmp_path: Path, capsys):
    weights = str(tiny_weights(tmp_path / "weights"))
    texts = [text for _, text, _ in reviews("test")[:6]]
    (tmp_path / "r.csv").write_text("review,label\n" + "".join(f'"{text}",{n % 2}\n' for n, text in enumerate(texts)))
    evaluate(["--weights", weights, "--data", str(tmp_path / "r.csv"), "--explain", str(tmp_path / "why.html")])
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert 0 < page.count("<h2>") < 6
    assert f": {page.count('<h2>')} explained\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the page's name must end in \.html"):
        evaluate(["--text", "good", "--explain", "x.csv"])
    with pytest.raises(ValueError, match="--explain needs a review or a file"):
        evaluate(["--explain"])
    (tmp_path / "right.csv").write_text("review,label\nA wonderful little film.,1\n")
    evaluate(["--data", str(tmp_path / "right.csv"), "--explain"])
    assert capsys.readouterr().out.endswith("no mistake to explain\n")


def test_a_weighted_sum_adds_effects_and_joins_what_was_read():
    """A word is read if one model reads it, and truncated if it is for all of them."""
    first = made("a b c d e f", truncated=np.arange(6) >= 3)
    second = made("a b c d e f", read=np.arange(6) == 3, truncated=np.arange(6) == 5, gradients=np.ones(6))
    found = weighted_sum([first, second], [2.0, 0.5], {"positive": 1.0})
    np.testing.assert_allclose(found.gradients, 2 * first.gradients + 0.5)
    np.testing.assert_allclose(found.without, 2 * first.without + 0.5 * second.without)
    assert found.difference == pytest.approx(2 * first.difference + 0.5 * second.difference)
    assert found.read.tolist() == [True] * 6
    assert found.truncated.tolist() == [False] * 5 + [True]
    assert found.baseline == "the text with each token as <unk>"  # of both, named once
    other = weighted_sum([first, replace(second, baseline="no n-gram")], [1, 1], {})
    assert other.baseline == "the text with each token as <unk> and no n-gram"


def test_a_weighted_sum_has_the_weights_of_every_model():
    second = made("a b", weights=[("routing", np.ones(2))])
    assert [title for title, _ in weighted_sum([made("a b"), second], [1, 1], {}).weights] == ["attention", "routing"]


def test_words_that_were_not_read_do_not_count_in_the_rank_correlation():
    effects = {"gradients": np.array([1.0, 2.0, 3.0, 9.0]), "without": np.array([1.0, 2.0, 3.0, -9.0])}
    explanation = made("a b c d", **effects, read=np.array([True, True, True, False]))
    assert explanation.agreement == pytest.approx(1)


@pytest.mark.parametrize("constant", ["gradients", "without"])
def test_equal_effects_have_no_rank_correlation(constant: str):
    assert np.isnan(made("a b c d", **{constant: np.ones(4)}).agreement)


def test_a_rank_correlation_of_a_seventh_is_no_agreement():
    """Six words: 1 - 6 (3 · 2² + 2 · 3²) / (6 (6² - 1)) = 1/7."""
    effects = {"gradients": np.arange(6.0), "without": np.array([0.0, 3.0, 4.0, 5.0, 1.0, 2.0])}
    shown = made("a b c d e f", read=np.ones(6, bool), **effects)
    assert "do not agree" in agreement_text(shown)


def test_colours_need_a_terminal_that_has_them(monkeypatch: pytest.MonkeyPatch):
    for terminal, no_color, term, found in (
        (True, "", "xterm", True),
        (False, "", "xterm", False),
        (True, "1", "xterm", False),
        (True, "", "dumb", False),
    ):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", term)
        assert has_colours() == found


def test_a_line_has_at_most_the_width():
    parts = [("aaa", 3), ("bbb", 3), ("cc", 2)]
    assert list(wrapped(parts, "+1", 10)) == ["+1 aaa bbb", "   cc"]
    assert list(wrapped(parts, "+1", 9)) == ["+1 aaa", "   bbb cc"]
    assert list(wrapped(parts, "+1", 4)) == ["+1 aaa", "   bbb", "   cc"]  # a longer word is a line of its own


def test_two_words_have_no_rank_correlation():
    assert "no rank correlation of fewer than three words" in agreement_text(made("a b"))


def test_a_rank_correlation_of_two_fifths_is_agreement_in_part():
    """Four words: 1 - 6 (1² + 1² + 2² + 0²) / (4 (4² - 1)) = 0.4."""
    effects = {"gradients": np.array([1.0, 2.0, 3.0, 4.0]), "without": np.array([2.0, 3.0, 1.0, 4.0])}
    shown = made("a b c d", read=np.ones(4, bool), **effects)
    assert shown.agreement == pytest.approx(0.4)
    assert "agree in part" in agreement_text(shown)


def test_small_effects_are_relative_to_the_strongest_and_zeros_stay_zero():
    np.testing.assert_allclose(strengths(np.array([1e-3, -5e-4])), [1, -0.5])
    np.testing.assert_allclose(strengths(np.array([0.5, -2.0])), [0.25, -1])
    np.testing.assert_array_equal(strengths(np.zeros(2)), [0, 0])


@pytest.mark.parametrize(
    ("strength", "signed", "opening"),
    [
        (0.4, True, '<span class="for" style="background: rgb(0 114 178 / 0.26)" title="+2.500">'),
        (-0.4, True, '<span class="against" style="background: rgb(213 94 0 / 0.26)" title="-2.500">'),
        (0.04, True, '<span style="background: rgb(0 114 178 / 0.03)" title="+2.500">'),
        (0.4, False, '<span style="background: rgb(0 158 115 / 0.26)" title="+2.500">'),
    ],
)
def test_the_background_of_a_word_shows_sign_and_strength(strength: float, signed: bool, opening: str):
    found = word_html("film", np.copysign(2.5, strength), strength, truncated=False, signed=signed)
    assert found == f"{opening}film</span>"


def test_the_table_has_the_words_that_are_strong_by_either_method():
    """Each method is relative to its own strongest word."""
    effects = {"gradients": np.array([0.1, -2.0, 0.4, 1.4]), "without": np.array([-10.0, 1.0, 3.0, 0.0])}
    table = table_html(made("a b c d", **effects))
    cells = re.findall(r"<tr><td>(\w)</td><td>([-+.\d]+)</td><td>([-+.\d]+)</td></tr>", table)
    assert cells == [
        ("a", "+0.10", "-10.00"), ("b", "-2.00", "+1.00"), ("d", "+1.40", "+0.00"), ("c", "+0.40", "+3.00"),
    ]  # fmt: skip


def test_the_page_has_the_words_for_and_against_the_label_and_its_weights_in_green():
    page = as_page([made("a b c d e f", key="7_1", truth="negative")], "run")
    assert "<p>because of: c 2.00, f 0.90, a 0.10</p><p>in spite of: e 1.90, b 1.00</p>" in page
    assert "<h2>7_1: positive (0.9000), labelled negative</h2>" in page
    weights = page.partition("Highest attention")[2]
    assert "rgb(0 158 115" in weights
    assert "rgb(0 158 115" not in page.partition("Highest attention")[0]
    assert 'class="for"' not in weights


def test_the_terminal_has_a_title_for_the_review_of_a_file_and_counts_truncated_words():
    assert as_text(made("a b c d", key="7_1"), colours=False).startswith("7_1: positive (0.9000)\n")
    shown = as_text(made("a b c d"), colours=False)
    assert "positive (0.9000)" not in shown
    assert "\n1 of 4 words were not read: the review is truncated\n" in shown
    without_token = made("a b c d", truncated=np.zeros(4, bool))  # word 3 has no token
    assert "not read" not in as_text(without_token, colours=False)


def test_a_tenth_of_the_strongest_effect_is_marked_in_the_terminal_and_on_the_page():
    for strength, sign, kind in ((0.1, "+", "for"), (-0.1, "-", "against")):
        assert marked("film", strength, colours=False)[0] == f"film({sign})"
        assert f'class="{kind}"' in word_html("film", strength, strength, truncated=False, signed=True)
