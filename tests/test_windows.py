"""Windows: long reviews in overlapping windows, and one row of logits for each review."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import rows_of, tiny, tiny_weights

import train
from data import preparation
from data.checked import read_json
from data.corpus import examples_of
from data.errors import NotFinite
from data.imdb import as_frame
from data.runs import Run
from data.tokenization import Tokenizer, train_tokenizer
from data.windows import Truncation, pool, replaced, window_positions, window_starts
from eval import main as evaluate
from eval import settings_of
from nn.attribution import baseline_id, log_odds
from nn.explain import explain
from nn.runtime import Machine
from peft.classifier import Scorer

CPU = Machine(torch.device("cpu"), torch.float32)
TEXTS = ["a b c d e f g h i j k l m", "a", "k a b", "m l k j i h g f e d", ""]
LABELS = [1, 0, 0, 1, 0]


def letters(kind: str = "wordpiece") -> Tokenizer:
    """Returns a tokenizer that has a token for each letter of TEXTS."""
    return train_tokenizer(kind, TEXTS, 60)


def frame():
    return as_frame([(f"id{n}", text, label) for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))])


def test_windows_overlap_by_the_stride_and_cover_every_token():
    assert window_starts(4, limit=4, stride=2) == [0]
    assert window_starts(5, limit=4, stride=2) == [0, 1]  # the last window ends with the review
    assert window_starts(11, limit=4, stride=2) == [0, 2, 4, 6, 7]
    assert window_starts(12, limit=4, stride=4) == [0, 4, 8]
    for length in range(40):
        for limit in range(1, 9):
            for stride in range(1, limit + 1):
                starts = window_starts(length, limit, stride)
                covered = {position for start in starts for position in range(start, min(start + limit, length))}
                assert covered == set(range(length))
                assert np.all(np.diff(starts) <= stride)
                assert starts == sorted(set(starts))
                assert starts[-1] + min(limit, length) == length


@pytest.mark.parametrize("kind", ["wordpiece", "wordlevel"])
def test_each_window_has_special_tokens_and_a_short_review_is_unchanged(kind: str):
    tokenizer = letters(kind)
    special = sum(map(len, tokenizer.template))
    corpus = examples_of(tokenizer, frame(), Truncation(6 + special, "windows", stride=2), None)
    whole = list(tokenizer.encode(TEXTS, 1000))
    before, after = map(len, tokenizer.template)
    expected, review = [], []
    for number, ids in enumerate(whole):
        text = ids[before : len(ids) - after]
        starts = [0, 2, 4, 6, 7] if len(text) == 13 else [0, 2, 4] if len(text) == 10 else [0]
        expected += [ids[:before] + text[s : s + 6] + ids[len(ids) - after :] for s in starts]
        review += [number] * len(starts)
    assert rows_of(corpus) == expected
    assert corpus.review is not None
    assert corpus.review.tolist() == review
    assert [expected[review.index(n)] for n in (1, 2, 4)] == [whole[n] for n in (1, 2, 4)]
    assert corpus.labels.tolist() == LABELS
    batch = corpus.batch(np.arange(len(corpus)))
    assert batch.labels.tolist() == [LABELS[n] for n in review]


def test_the_default_stride_is_half_of_max_length():
    tokenizer = letters()
    for max_length, stride in ((8, 4), (7, 3), (4, 2), (3, 1)):
        first, second, *_ = window_positions(tokenizer, 15, max_length)
        assert second[1] - first[1] == stride  # position 0 is [CLS]
        assert len(first) == len(second) == max_length
    for stride in (7, -1):
        with pytest.raises(ValueError, match=f"--window-stride {stride} must be 1 to 6"):
            window_positions(tokenizer, 15, 8, stride)
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        examples_of(tokenizer, frame(), Truncation(2, "windows"), None)


def test_the_default_stride_is_at_most_a_window_beside_many_special_tokens():
    """Half of max_length, two tokens, would skip one."""
    three = SimpleNamespace(template=([1, 2], [3]), text_limit=lambda max_length: max_length - 3)
    found = window_positions(three, 6, 4)  # three tokens of text
    assert [positions.tolist() for positions in found] == [[0, 1, 2, 5], [0, 1, 3, 5], [0, 1, 4, 5]]


def test_stride_and_pooling_without_windows_are_refused():
    own = Truncation(9)
    for fields in ({"stride": 2}, {"pooling": "max"}):
        with pytest.raises(ValueError, match=r"^--window-stride and --window-pooling are for --truncate windows$"):
            replaced(own, **fields)
        assert replaced(own, truncate="windows", **fields) == own._replace(truncate="windows", **fields)
    assert replaced(own, truncate="tail") == Truncation(9, "tail")


def test_a_cache_gives_the_same_windows(tmp_path: Path):
    tokenizer, truncation = letters(), Truncation(7, "windows", 2, "max")
    made, cached, again = (examples_of(tokenizer, frame(), truncation, path) for path in (None, tmp_path, tmp_path))
    assert rows_of(made) == rows_of(cached) == rows_of(again)
    assert made.review.tolist() == again.review.tolist()  # type: ignore[union-attr]
    assert again.pooling == "max"
    assert len(list(tmp_path.glob("*.npy"))) == 1
    other = examples_of(tokenizer, frame(), truncation._replace(stride=5), tmp_path)  # from the same file
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert len(other) < len(made)


def test_logits_are_pooled_by_review():
    logits = np.array([[1, 4], [3, 0], [5, 6], [0, 0], [0, 3], [3, 0]], np.float32)
    review = np.array([0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(pool(logits, review), np.array([[2, 2], [5, 6], [1, 1]], np.float32))
    np.testing.assert_array_equal(pool(logits, review, "max"), np.array([[3, 4], [5, 6], [3, 3]], np.float32))
    assert pool(logits, review).dtype == np.float32
    assert pool(logits[:0], review[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pool(logits, review, "median")


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_scores_of_windows_are_pooled_and_those_of_one_window_are_those_of_head(pooling: str):
    tokenizer = letters()
    model = tiny("bert", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    windows, head = (
        Scorer(model, tokenizer, CPU, Truncation(8, truncate, pooling=pooling if truncate == "windows" else "mean"))
        for truncate in ("windows", "head")
    )
    found = windows.score_frame(frame())
    assert found.shape == (5, 2)
    short = [1, 2, 4]
    np.testing.assert_allclose(found[short], head.score_frame(frame())[short], rtol=1e-5, atol=1e-6)
    corpus = windows.corpus(frame())
    with torch.inference_mode():
        examples = [corpus.batch(np.array([number])) for number in range(len(corpus))]
        alone = [model(example.input_ids, example.mask)[0].numpy() for example in examples]
    for number in (0, 3):
        mine = np.array([x for x, n in zip(alone, corpus.review, strict=True) if n == number])  # type: ignore[arg-type]
        assert len(mine) > 1
        expected = mine.mean(0) if pooling == "mean" else mine.max(0)
        np.testing.assert_allclose(found[number], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(windows.score_texts([TEXTS[0]])[0], found[0], rtol=1e-5, atol=1e-6)


def test_class_weights_count_windows_as_training_does():
    tokenizer = letters()
    balanced = examples_of(tokenizer, frame(), Truncation(8, "windows", 2), None).balanced(2)
    counts = np.bincount(balanced.batch(np.arange(len(balanced))).labels, minlength=2)
    assert counts.tolist() == [3, 8]
    np.testing.assert_allclose(balanced.class_weights, 11 / (2 * counts), rtol=1e-6)


def test_a_word_without_a_token_is_not_a_truncated_one():
    tokenizer = letters("wordlevel")
    model = tiny("gru", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    found = Scorer(model, tokenizer, CPU, Truncation(3, "head")).explain("a - b - - c d")
    assert found.read.tolist() == [True, False, True, False, False, True, False]
    assert found.truncated.tolist() == [False] * 6 + [True]
    alone = [found.gradients[found.read], found.without[found.read]]  # the words that were read, without the dashes
    assert found.agreement == pytest.approx(pd.DataFrame(alone).T.corr("spearman").iloc[0, 1])


@pytest.mark.parametrize("name", ["bert", "attention_lstm", "nb_linear"])
def test_an_explanation_covers_all_windows(name: str):
    tokenizer = letters("wordpiece" if name == "bert" else "wordlevel")
    model = tiny(name, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    truncation = Truncation(8, "windows", 3)
    scorer = Scorer(model, tokenizer, CPU, truncation)
    found = scorer.explain(TEXTS[0])
    assert found.read.all()
    assert len(found.words) == len(found.gradients) == len(found.without) == 13
    assert abs(found.gradients.sum() - found.difference) <= 0.01 * abs(found.difference) + 1e-4
    logits = torch.from_numpy(scorer.score_texts([TEXTS[0]]))
    label = int(logits.argmax())
    assert found.label == model.config.labels[label]
    assert not found.weights
    if name == "nb_linear":
        names, gains = zip(*found.phrases, strict=True)
        assert len({*names}) == len(names)  # an n-gram in two windows is one phrase
        assert min(gains) < 0 < max(gains)
        assert sum(gains) == pytest.approx(found.difference, rel=1e-4)
    if name != "nb_linear":  # its baseline is a text without n-grams
        corpus = scorer.corpus(as_frame([("x", TEXTS[0], -1)]))
        special = np.isin(corpus.ids, [tokenizer.vocabulary[token] for part in tokenizer.template for token in part])
        blank = replace(corpus, ids=np.where(special, corpus.ids, baseline_id(tokenizer)))
        effect = log_odds(logits, label) - log_odds(torch.from_numpy(scorer.logits(blank)), label)
        assert found.difference == pytest.approx(effect.item(), rel=1e-3, abs=1e-5)
    with pytest.raises(ValueError, match="--explain of several windows"):
        explain(model, tokenizer, TEXTS[0], truncation._replace(pooling="max"), scorer.score_texts)
    assert explain(model, tokenizer, "a b", truncation._replace(pooling="max"), scorer.score_texts).read.all()


def test_the_temperature_is_fitted_to_windows_that_the_command_line_changes(small_run, monkeypatch, capsys):
    """Also to the default pooling and stride, which are not those of the run."""
    flags = ["--max-length", "7", "--truncate", "windows", "--window-stride", "2", "--window-pooling", "max"]
    train.main([*small_run, *flags, "--epochs", "1", "--test-reviews", "50"])
    monkeypatch.setattr("eval.fit_temperature", lambda *_: 7.0)
    capsys.readouterr()
    for changes in ("", "--window-pooling mean", "--window-stride 0", "--window-pooling mean --window-stride 0"):
        evaluate(["--run", "runs/small", *changes.split()])
        assert ("test: temperature 7.000" in capsys.readouterr().out) == bool(changes), changes


def test_several_windows_of_three_classes_have_no_explanation():
    tokenizer = letters()
    model = tiny("bert", vocab_size=tokenizer.vocab_size, labels=("a", "b", "c")).eval()
    scorer = Scorer(model, tokenizer, CPU, Truncation(8, "windows"))
    with pytest.raises(ValueError, match="--explain of several windows needs two classes"):
        scorer.explain(TEXTS[0])
    assert scorer.explain("a b").read.all()


def test_the_last_words_are_those_with_an_effect_if_the_tail_is_read():
    tokenizer = letters()
    model = tiny("bert", vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id).eval()
    found = Scorer(model, tokenizer, CPU, Truncation(8, "tail")).explain(TEXTS[0], key="7_1", truth="positive")
    assert (found.key, found.truth, found.baseline) == ("7_1", "positive", "the text with each token as [MASK]")
    for values in (found.read, found.gradients, found.without):
        assert np.flatnonzero(values).tolist() == [7, 8, 9, 10, 11, 12]
    assert found.truncated.tolist() == [True] * 7 + [False] * 6


def test_a_run_remembers_its_windows_and_counts_each_review_once(small_run, capsys):
    flags = ["--max-length", "8", "--truncate", "windows", "--window-stride", "3", "--window-pooling", "max"]
    train.main([*small_run, *flags, "--epochs", "1", "--validation-reviews", "40", "--test-reviews", "30"])
    run = Run.open("runs/small")
    options = settings_of(run).options
    assert (options.truncate, options.window_stride, options.window_pooling) == ("windows", 3, "max")
    scorer = Scorer.of_run(run, options, CPU)
    assert scorer.truncation == Truncation(8, "windows", 3, "max")
    result = read_json(run.folder / "result.json")
    assert (result["validation"]["count"], result["test"]["count"]) == (40, 30)
    assert len(run.predictions("test").probabilities) == 30  # type: ignore[union-attr]
    capsys.readouterr()
    evaluate(["--run", "runs/small", "--precision", "fp32", "--errors", "3"])
    shown = capsys.readouterr().out
    assert f"test: accuracy {result['test']['accuracy']:.4f} on 30 reviews" in shown
    Path("r.csv").write_text("id,review,label\n" + "".join(f'r{n},"{"good film " * (9 * n)}",1\n' for n in range(1, 4)))
    evaluate(["--run", "runs/small", "--predict", "r.csv", "--out", "p.csv", "--truncate", "windows"])
    assert [line.split(",")[0] for line in Path("p.csv").read_text().splitlines()] == ["id", "r1", "r2", "r3"]
    evaluate(["--run", "runs/small", "--text", "good film " * 20])
    evaluate(["--weights", "weights", "--data", "r.csv", "--max-length", "8", "--truncate", "windows"])
    assert "on 3 reviews" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_reviews(small_run, monkeypatch):
    def fail(t, batches, size):
        raise NotFinite(float("nan"), batches[0].rows.tolist())

    seen = []
    monkeypatch.setattr(train, "gradient", fail)
    examples = preparation.examples_of
    monkeypatch.setattr(preparation, "examples_of", lambda *a: seen.append((a[1], examples(*a))) or seen[-1][1])
    flags = ["--max-length", "8", "--truncate", "windows", "--window-stride", "2", "--batch-size", "1"]
    with pytest.raises(ValueError, match="the loss is nan at epoch 1/2, step 1") as error:
        train.main([*small_run, *flags])
    texts, corpus = seen[0]
    row = train.epoch_order(corpus, settings_of(Run.open("runs/small")).options, 0)[0][0]
    assert len(corpus) > 2 * len(texts)
    assert str(error.value).endswith(f"batch: {texts['id'].iloc[corpus.review[row]]}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--loss mlm --truncate windows", "--truncate windows reads tokens twice; --loss mlm takes --truncate chunks"),
        ("--window-stride 3", "are for --truncate windows"),
        ("--truncate head+tail --window-pooling max", "are for --truncate windows"),
        ("--truncate windows --max-length 8 --window-stride 7", "--window-stride 7 must be 1 to 6"),
        ("--truncate window", "known: head, tail, head+tail, chunks, windows"),
    ],
)
def test_wrong_windows_are_refused(small_run, flags: str, message: str):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        train.main([*small_run, *flags.split()])


def test_wrong_flags_of_eval_are_refused(tmp_path: Path):
    weights = str(tiny_weights(tmp_path / "weights"))
    for flags, message in (
        (["--window-stride", "3"], "are for --truncate windows"),
        (["--truncate", "chunks"], "unknown truncation 'chunks'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(["--weights", weights, "--text", "good", *flags])
