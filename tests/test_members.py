"""A checkpoint of several members: the sum of their logits, its explanation, and its file."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import adapt, tiny, tiny_weights

from data.ensemble import Blend, Part
from data.explanation import Explanation
from data.tokenization import train_tokenizer
from eval import main as evaluate
from nn.checkpoint import load_pretrained, save_pretrained
from nn.runtime import Machine
from peft import save_adapter
from peft.classifier import load_checkpoint

FACTORS = {"encoder": 0.75, "words": 1.5}
TEXTS = ["a good film, never boring", "bad", "it is not a good film at all"]


def word_network(folder: Path, labels: tuple[str, ...] = ("negative", "positive")) -> None:
    """Writes a tiny linear model over n-grams."""
    tokenizer = train_tokenizer("wordlevel", TEXTS, 60, 1)
    save_pretrained(tiny("nb_linear", vocab_size=tokenizer.vocab_size, labels=labels), folder)
    tokenizer.save(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Returns a checkpoint of two members, a tiny BERT and a linear model, with FACTORS."""
    tiny_weights(tmp_path / "encoder")
    word_network(tmp_path / "words")
    (tmp_path / "both").mkdir()
    members = [{"weights": name, "factor": factor} for name, factor in FACTORS.items()]
    (tmp_path / "both" / "members.json").write_text(json.dumps(members))
    return tmp_path / "both"


def load(folder: Path):
    return load_checkpoint(str(folder), Machine(torch.device("cpu"), torch.float32))


def test_the_logits_are_the_sum_of_the_members_logits(checkpoint: Path):
    wanted = sum(factor * load(checkpoint.parent / name).score_texts(TEXTS) for name, factor in FACTORS.items())
    np.testing.assert_allclose(load(checkpoint).score_texts(TEXTS), wanted, rtol=1e-5, atol=1e-6)


def test_a_power_of_the_number_of_words(checkpoint: Path):
    texts, words = [*TEXTS, ""], np.array([[5], [1], [8], [1]])  # an empty text counts as one word
    members = [{"weights": name, "factor": factor, "power": -0.3} for name, factor in FACTORS.items()]
    members[0]["power"] = 1
    (checkpoint / "members.json").write_text(json.dumps(members))
    encoder, linear = (load(checkpoint.parent / name).score_texts(texts) for name in FACTORS)
    both, wanted = load(checkpoint), 0.75 * words * encoder + 1.5 * words**-0.3 * linear
    np.testing.assert_allclose(both.score_texts(texts), wanted, rtol=1e-5, atol=1e-6)
    frame = pd.DataFrame({"id": "1", "review": texts, "sentiment": 0})
    np.testing.assert_allclose(both.score_frame(frame), wanted, rtol=1e-5, atol=1e-6)
    assert both.score_texts(texts).dtype == np.float32
    found, (first, second) = both.explain(texts[0]), (part.scorer.explain(texts[0], label=0) for part in both.parts)
    sign = 1 if found.label == "negative" else -1
    for name in ("gradients", "without", "difference"):  # leaving out a word does not change the factors
        wanted = sign * (3.75 * getattr(first, name) + 1.5 * 5**-0.3 * getattr(second, name))
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=1e-4, atol=1e-6)


def test_the_members_of_a_link_and_of_the_working_directory(checkpoint: Path, tmp_path: Path, monkeypatch):
    wanted = load(checkpoint).score_texts(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/link"
    try:
        link.symlink_to(checkpoint, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    monkeypatch.chdir(checkpoint)
    for name in (link, Path()):
        np.testing.assert_array_equal(load(name).score_texts(TEXTS), wanted)


def test_a_member_may_be_an_adapter_of_weights_without_a_classifier(checkpoint: Path):
    """The adapter's file has the classifier and the pooler; alone it scores as in memory."""
    folder = checkpoint.parent / "adapter"
    save_pretrained(tiny("bert", vocab_size=300), checkpoint.parent / "backbone", heads=False)
    train_tokenizer("wordpiece", TEXTS, 300, 1).save(checkpoint.parent / "backbone")
    model = adapt(load_pretrained(checkpoint.parent / "backbone"), "lora").eval()
    save_adapter(model, folder, str(checkpoint.parent / "backbone"))
    alone = load(folder)
    assert alone.model.newly_initialized
    ids, mask = alone.tokenizer.encode_batch(TEXTS, max_length=64)
    np.testing.assert_allclose(alone.score_texts(TEXTS), model(ids, mask).detach(), rtol=1e-4, atol=1e-5)
    (checkpoint / "members.json").write_text('[{"weights": "adapter", "factor": 0.5}]')
    np.testing.assert_allclose(load(checkpoint).score_texts(TEXTS), 0.5 * alone.score_texts(TEXTS), rtol=1e-6)


def test_the_members_take_the_arguments_of_their_sum():
    """`key` and `truth` are the first member's."""
    taken, effects = [], Explanation(
        ["a"], np.ones(1, bool), np.zeros(1, bool), "bad", {}, np.ones(1), np.ones(1), 1.0, [], [], "nothing"
    )  # fmt: skip

    def record(*arguments):
        taken.append(arguments)
        return np.zeros((1, 2), np.float32)

    def explain(text: str, key: str, truth: str, label: int) -> Explanation:
        return replace(effects, key=key, truth=truth)

    members = [
        SimpleNamespace(
            labels=("bad", "good"), kind="x", tokenizer=n, corpus=n, score_frame=record, score_texts=record,
            explain=explain,
        )
        for n in range(2)
    ]  # fmt: skip
    both = Blend([Part(str(n), 1.0, member) for n, member in enumerate(members)])
    both.score_frame(frame := pd.DataFrame({"review": ["a"]}), print)
    both.score_texts(TEXTS, False)
    assert [arguments[1] for arguments in taken] == [print, print, False, False]
    assert all(arguments[0] is frame for arguments in taken[:2])
    assert (both.tokenizer, both.corpus) == (0, 0)
    found = both.explain("a", key="7_1", truth="good")
    assert (found.key, found.truth) == ("7_1", "good")


def test_members_of_three_classes_are_refused():
    scorer = SimpleNamespace(labels=("bad", "good", "mixed"), kind="x", tokenizer=None, corpus=None)
    with pytest.raises(ValueError, match="the same two classes; a has bad, good, mixed, a bad, good, mixed"):
        Blend([Part("a", 1.0, scorer)])


def test_an_explanation_is_of_the_sum(checkpoint: Path):
    """Leaving out equals the definition for the sum; integrated gradients are complete, within their tolerance."""
    both = load(checkpoint)
    for text in TEXTS:
        found, logits = both.explain(text), both.score_texts([text])[0]
        label = int(logits.argmax())
        assert found.label == both.labels[label]
        assert found.probabilities[found.label] == pytest.approx(np.exp(logits)[label] / np.exp(logits).sum(), rel=1e-5)
        words = text.split()
        for i, effect in enumerate(found.without):
            rest = both.score_texts([" ".join(words[:i] + words[i + 1 :])])[0]
            wanted = (logits[label] - logits[1 - label]) - (rest[label] - rest[1 - label])
            assert effect == pytest.approx(wanted, abs=1e-5)
        assert found.gradients.sum() == pytest.approx(found.difference, abs=0.02 * abs(found.difference) + 1e-3)


def test_it_labels_files_and_explains_mistakes(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    (checkpoint / "two.csv").write_text("review,label\na good film,1\na good film,0\n")
    evaluate(["--weights", str(checkpoint), "--data", str(checkpoint / "two.csv"), "--errors", "5", "--explain"])
    shown = capsys.readouterr().out
    assert "two.csv: accuracy 0.5000 on 2 reviews" in shown
    assert "the text with no n-gram" in shown
    page = checkpoint / "page.html"
    evaluate(["--weights", str(checkpoint), "--text", "a good film", "--explain", str(page)])
    assert "(bert + nb_linear)" in page.read_text()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("[]", "must be a list of members, each with weights and factor"),
        ('{"weights": "encoder"}', "must be a list of members"),
        ('["encoder"]', "must be a list of members"),
        ('[{"weights": "encoder"}]', "it differs in factor"),
        ('[{"weights": "encoder", "factor": 1, "bias": 2}]', "it differs in bias"),
        ('[{"weights": "encoder", "factor": 1, "power": 1.1}]', "power 1.1 must be from -1 to 1"),
        ('[{"weights": "encoder", "factor": 1, "power": -2}]', "power -2 must be from -1 to 1"),
        ('[{"weights": "encoder", "factor": 1, "power": null}]', "power = None must be a finite number"),
        ('[{"weights": 3, "factor": 1}]', r"members\.json: weights = 3 must be text"),
        ('[{"weights": "encoder", "factor": "1"}]', "factor = '1' must be a finite number"),
        ('[{"weights": "encoder", "factor": 0}]', "factor 0 must be above 0"),
        ('[{"weights": "encoder", "factor": NaN}]', "factor = nan must be a finite number"),
        ('[{"weights": "../encoder", "factor": 1}]', "must be the name of a folder next to"),
        ('[{"weights": "/etc", "factor": 1}]', "must be the name of a folder next to"),
        ('[{"weights": "", "factor": 1}]', "must be the name of a folder next to"),
        ('[{"weights": "..", "factor": 1}]', "must be the name of a folder next to"),
        ('[{"weights": "nothing", "factor": 1}]', "the member nothing is not a folder in "),
        ('[{"weights": "encoder", "factor": 1}, {"weights": "turned", "factor": 1}]', "have the same two classes"),
        ('[{"weights": "both", "factor": 1}]', "the member both is a sum of classifiers itself"),
        ("[", "is not valid JSON"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(checkpoint: Path, members: str, message: str):
    word_network(checkpoint.parent / "turned", ("positive", "negative"))
    (checkpoint / "members.json").write_text(members)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)
