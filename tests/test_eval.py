"""Metrics and scores, and what eval.py prints: comparisons, predictions, answers, refused flags."""

import math
import re
import sys

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, tiny, tiny_weights
from safetensors.torch import load_file, save_file

import train
from data.checked import read_json
from data.corpus import Corpus
from data.files import write_json
from data.hub import CLASSIFIER, LINEAR, WEIGHTS
from data.metrics import auc, metrics, print_metrics, softmax
from data.tokenization import train_tokenizer
from eval import main as evaluate
from nn import runtime
from nn.checkpoint import save_pretrained
from nn.runtime import SCORING_TOKENS, TRAINING_TOKENS, Machine, choose_machine, scoring_tokens, tokens_per_pass
from peft.classifier import Scorer, load_checkpoint
from peft.scoring import score

CPU = Machine(torch.device("cpu"), torch.float32)


def test_metrics_against_hand_numbers():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0], [0.0, 2.0]], np.float32)
    labels = np.array([0, 1, 1, 1, 0])
    found = metrics(logits, labels)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["confusion"] == [[1, 1], [1, 2]]
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["auc"] == pytest.approx(4 / 6)  # of 3 · 2 pairs, positives 1, -0.5, 3 against -2, 2
    torch_loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert found["loss"] == pytest.approx(torch_loss, rel=1e-6)


def test_auc_counts_pairs_and_ties_half():
    stream = np.random.default_rng(0)
    scores, labels = stream.integers(0, 5, 60).astype(float), stream.integers(0, 2, 60)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(scores[labels == 1], labels[labels == 1]))


def test_half_precision_doubles_the_tokens_of_a_pass_and_only_cpus_limit_them():
    model, half = tiny("bert"), torch.bfloat16
    assert tokens_per_pass(model, CPU) == TRAINING_TOKENS
    assert tokens_per_pass(model, CPU._replace(dtype=half)) == 2 * TRAINING_TOKENS
    assert scoring_tokens(model, CPU._replace(dtype=half)) == 2 * SCORING_TOKENS
    assert tokens_per_pass(model, Machine(torch.device("cuda"), half)) == 0
    assert tokens_per_pass(tiny("lstm"), CPU) == 0


def test_metrics_of_three_classes(capsys):
    logits = np.array([[3, 1, 0], [0, 2, 1], [0, 2, 1], [0, 2, 1], [1, 0, 0]], np.float32)
    labels = np.array([0, 1, 1, 0, 0])
    found = metrics(logits, labels)
    assert found["confusion"] == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert found["f1_by_class"] == pytest.approx([4 / 5, 4 / 5, None])
    assert found["macro_f1"] == pytest.approx(4 / 5)
    assert found["recall_by_class"] == pytest.approx([2 / 3, 1, None])
    assert not {"auc", "f1"} & found.keys()
    print_metrics("test", found, ("bad", "good", "mixed"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test: accuracy 0.8000 on 5 reviews, loss 0.7888, macro-F1 0.8000"
    assert lines[1] == "  bad: F1 0.8000, recall 0.6667, predicted as {'bad': 2, 'good': 1}"
    assert lines[3] == "  mixed: F1 –, recall –, predicted as {}"


def test_a_class_that_is_predicted_but_does_not_occur_has_f1_0():
    found = metrics(np.eye(3)[[0, 2]], np.array([0, 0]))
    assert found["f1_by_class"] == [pytest.approx(2 / 3), None, 0.0]
    assert found["recall_by_class"] == [0.5, None, None]
    assert found["macro_f1"] == pytest.approx(1 / 3)


def test_the_line_of_two_classes_is_the_same_in_any_order(capsys):
    logits = np.random.default_rng(0).normal(size=(40, 2))
    truth = (np.arange(40) % 3 == 0).astype(int)
    print_metrics("x", metrics(logits, truth))
    print_metrics("x", metrics(logits[:, ::-1], 1 - truth), ("positive", "negative"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_labels_of_one_class_have_no_auc():
    assert metrics(np.eye(2), np.array([1, 1]))["auc"] is None
    assert str(metrics(2000 * np.eye(2), np.array([0, 1]))["loss"]) == "0.0"  # not -0.0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 2)), [], r"scores \[0, 2\] and labels \[0\] are not \[N, C\] and \[N\]"),
        (np.eye(2), [0, 2], "labels 0 … 2 are outside 0 … 1"),
        (np.eye(2), [-1, 0], "labels -1 … 0 are outside 0 … 1"),
        (np.eye(2), [0, 0.5], "labels are not whole numbers"),
        (np.array([[0, np.inf]]), [0], "scores are not finite"),
    ],
)
def test_scores_and_labels_that_cannot_be_measured_are_refused(scores: np.ndarray, labels: list, message: str):
    with pytest.raises(ValueError, match=message):
        metrics(scores, np.array(labels))


def test_the_auc_of_scores_that_are_not_finite_is_refused():
    with pytest.raises(ValueError, match="scores are not finite"):
        auc(np.array([0.0, np.nan]), np.array([0, 1]))


def test_softmax_is_stable():
    assert softmax(np.zeros((1, 2))).dtype == np.float32
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0]], np.float32)), [[0.5, 0.5]])
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-6)


def test_scores_are_in_the_order_of_the_corpus_and_the_mode_is_restored():
    rows = [np.random.default_rng(n).integers(1, 61, n).tolist() for n in (5, 2, 9, 3)]
    corpus, model = Corpus.from_rows(rows, [0, 1, 1, 0], 0), tiny("bert").train()
    together = score(model, corpus, CPU)
    assert model.training
    assert together.shape == (4, 2)
    for i in range(4):
        alone = score(model, Corpus.from_rows([rows[i]], [0], 0), CPU)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_training_works_after_scoring():
    """Relative positions that scoring caches can be used in a backward pass."""
    corpus, model = Corpus.from_rows([[1, 2, 3, 4, 5, 6, 7]], [0], 0), tiny("deberta")
    score(model, corpus, CPU)
    batch = corpus.batch(np.array([0]))
    model(batch.input_ids, batch.mask).sum().backward()


def test_compare_is_a_table_with_learning_curves(small_run, tmp_path, monkeypatch, capsys):
    train.main(small_run)
    train.main([*small_run[:-1], "other", "--loss", "rdrop", "--epochs", "1"])
    capsys.readouterr()
    evaluate(["--compare", f"{tmp_path}/runs/small {tmp_path}/runs/other"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "model", "peft", "loss"]
    known = [["small", "bert", "lora", "ce"], ["other", "bert", "lora", "rdrop"]]
    assert [row.split()[:4] for row in rows[:2]] == known
    assert not any(row.startswith("note:") for row in rows)
    curve = [event["val_acc"] for event in read_json(tmp_path / "runs/small/result.json")["history"]]
    assert rows[0].split()[-2:] == [f"{value:.4f}" for value in curve]
    evaluate(["--compare", f"{tmp_path}/runs/small {tmp_path}/runs/other", "--plot", "curves.svg"])
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count("<!-- small -->") == drawn.count("<!-- other -->") == 1  # in the legend
    with pytest.raises(ValueError, match=r"--plot curves\.xyz is not a picture"):
        evaluate(["--compare", f"{tmp_path}/runs/small", "--plot", "curves.xyz"])
    with pytest.raises(ValueError, match="--plot needs runs"):
        evaluate(["--plot", "curves.svg"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        evaluate(["--compare", f"{tmp_path}/runs/small", "--plot", "curves.svg"])


def test_rows_of_an_earlier_version_are_compared(capsys):
    """They have options that no longer exist."""
    evaluate(["--compare", "cnn-rdrop", "cnn-average"])
    assert "\ncnn-rdrop - cnn-average: cnn-rdrop kept no predictions of its test reviews\n" in capsys.readouterr().out


def test_a_network_over_words_answers_and_predicts_like_an_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "--model attention_lstm --data demo --train-reviews 400 --epochs 1 --name words"
    text += " --word-vectors none --min-count 1"
    train.main([*text.split(), "--shape", "embedding_size=6 hidden_size=5 attention_size=4"])
    capsys.readouterr()
    evaluate(["--run", "runs/words", "--text", "A wonderful film, I didn't sleep!"])
    assert len(capsys.readouterr().out.splitlines()) == 1
    evaluate(["--run", "runs/words", "--text", "A wonderful film", "--explain"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in shown[3:-1]] == ["highest attention", "because of", "in spite of"]
    evaluate(["--run", "runs/words", "--text", "wonderful", "--explain"])  # one word: the rest is empty
    (tmp_path / "test.tsv").write_text('id\treview\n"3_9"\t"good!"\n"1_2"\t"***"\n')
    evaluate(["--run", "runs/words", "--predict", "test.tsv", "--out", "out.csv"])
    assert [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()] == ["id", "3_9", "1_2"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A wonderful little film.", "positive"),
        ("A complete waste of time.", "negative"),
        ("It was not good.", "negative"),
        ("Not bad at all.", "positive"),
    ],
)
def test_without_a_run_the_built_in_classifier_answers(text, label, capsys):
    evaluate(["--text", text, "--explain"])
    *_, because, in_spite, answer = capsys.readouterr().out.splitlines()
    assert answer.startswith(f"{label} (")
    assert because.startswith("because of: ")
    assert in_spite.startswith("in spite of: ")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("plain_sentences.tsv", 0.95),
        ("plain_sentences_2.tsv", 0.95),
        ("plain_sentences_3.tsv", 0.95),
        ("plain_sentences_4.tsv", 0.89),  # rarer constructions
    ],
)
def test_the_built_in_classifier_labels_plain_sentences(name, least):
    """Its card has the accuracies."""
    _, *lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    labels, texts = zip(*(line.split("\t") for line in lines), strict=True)
    box = load_checkpoint(str(CLASSIFIER), CPU)
    found = [box.labels[number] for number in box.score_texts(list(texts), bar=False).argmax(1)]
    assert np.mean([a == b for a, b in zip(found, labels, strict=True)]) >= least


def test_the_built_in_classifier_labels_a_file(tmp_path, capsys):
    (tmp_path / "reviews.csv").write_text("review,label\nA wonderful little film.,1\nA complete waste of time.,0\n")
    evaluate(["--data", str(tmp_path / "reviews.csv")])
    assert "reviews.csv: accuracy 1.0000 on 2 reviews" in capsys.readouterr().out
    evaluate(["--predict", str(tmp_path / "reviews.csv"), "--out", str(tmp_path / "out.csv")])
    assert [line.split(",")[1] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [
        "positive",
        "negative",
    ]


def test_empty_reviews_of_a_file_without_labels_are_counted(tmp_path, capsys):
    (tmp_path / "reviews.csv").write_text('id,review\n1,A wonderful film.\n2,""\n3,A waste of time.\n')
    evaluate(["--predict", str(tmp_path / "reviews.csv"), "--out", str(tmp_path / "out.csv")])
    assert "note: 1 of these reviews have no text\n" in capsys.readouterr().out
    (tmp_path / "reviews.csv").write_text('id,review\n1,""\n2,""\n')
    evaluate(["--predict", str(tmp_path / "reviews.csv"), "--out", str(tmp_path / "out.csv")])
    assert "unknown" not in capsys.readouterr().out


def test_predictions_need_no_labels_of_the_file(tmp_path, capsys):
    (tmp_path / "reviews.csv").write_text("review,label\nA wonderful film.,1 star\nA waste of time.,3 stars\n")
    command = ["--predict", str(tmp_path / "reviews.csv"), "--out", str(tmp_path / "out.csv")]
    evaluate(command)
    assert "the labels are not read: " in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="1 star"):
        evaluate([*command, "--label-column", "label"])


def test_a_checkpoint_reads_as_many_tokens_as_it_has_positions(tmp_path):
    model = tiny_weights(tmp_path / "bert")
    config = read_json(model / "tokenizer_config.json")
    write_json(model / "tokenizer_config.json", config | {"model_max_length": 512})
    cpu = choose_machine("cpu", "fp32")
    limit = read_json(model / "config.json")["max_position_embeddings"]
    scorer = Scorer.of_checkpoint(str(model), cpu)
    assert scorer.truncation.max_length == limit
    assert np.isfinite(scorer.score_texts(["good " * 600])).all()


def test_a_checkpoint_that_lacks_its_pooler_does_not_answer(tmp_path):
    model = tiny("bert")
    tokenizer = train_tokenizer("wordpiece", ["a good film", "a bad film"], model.config.vocab_size, 1)
    tokenizer.save(tmp_path)
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "pooler" not in name}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"no classifier \(its files lack pooler.dense.bias, pooler.dense.weight\)"):
        evaluate(["--weights", str(tmp_path), "--text", "a good film"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--run R --merge M --precision bf16",
            "--precision has no effect here; it is for --predict, --text, --data, --run",
        ),
        ("--run R --merge M --quantize none", "--quantize has no effect here; it is for"),
        ("--compare A B --device cpu", "--device has no effect here; it is for"),
        ("--text good --submission", "--submission has no effect here; it is for --predict"),
        ("--run R --text good --out F", "--out needs something to write"),
        ("--run R --predict - --out x/z.TSV", "--out x/z.TSV is written as CSV; name it z.csv"),
        ("--run R --predict - --out z.csv.gz", "--out z.csv.gz is written as CSV; name it z.csv"),
        ("--data demo --explain", "--explain needs a review or a file of them"),
        ("--run R S --device cpu:0", "--device does not change the predictions that the runs kept"),
        (
            "--weights data/weights/nb-linear-imdb --text good --base nowhere",
            "--base names the backbone",
        ),
        (
            "--weights data/weights/nb-linear-imdb --text good --precision bf16",
            "--precision has no effect here: nb_linear multiplies no matrices",
        ),
        ("--compare A --dtype fp16", "--dtype has no effect here; it is for --merge"),
    ],
)
def test_a_flag_without_effect_is_refused(flags: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        evaluate(flags.split())


@pytest.mark.parametrize("emulated", [True, False])
def test_a_slow_precision_is_noted_unless_it_is_refused(
    emulated: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runtime.note_emulated.cache_clear()
    monkeypatch.setattr(runtime, "is_emulated", lambda *_: emulated)
    with pytest.raises(ValueError, match="--precision has no effect here"):
        evaluate(["--weights", str(LINEAR), "--text", "good", "--precision", "bf16"])
    assert capsys.readouterr().out == ""
    evaluate(["--weights", str(CLASSIFIER), "--text", "good", "--precision", "bf16"])
    assert ("note: this processor has no products in bf16" in capsys.readouterr().out) == emulated


def test_without_anything_to_score_the_ways_are_named():
    with pytest.raises(ValueError, match="nothing to score: --text REVIEW, --predict FILE or --data FILE uses"):
        evaluate([])
