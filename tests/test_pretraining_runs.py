"""Corpora without labels, and pretraining runs."""

import json

import pytest
import torch

import train
from data import Source, load_texts
from data.files import open_tensors
from data.imdb import UNKNOWN
from data.tokenization import train_tokenizer
from eval import main as evaluate


def test_long_texts_become_chunks_of_similar_length():
    tokenizer = train_tokenizer("wordpiece", ["a b c d e f g h"] * 9, 100)
    (whole,) = tokenizer.subword_ids(["a b c d e f g h"])
    rows = list(tokenizer.encode(["a b c d e f g h", "a"], 5, "chunks"))
    assert [len(row) for row in rows] == [4, 5, 5, 3]
    assert [subword for row in rows[:3] for subword in row[1:-1]] == whole


def test_a_text_file_and_a_table_are_corpora(tmp_path):
    lines = [f"line number {n}" for n in range(60)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    (tmp_path / "b.tsv").write_text("id\treview\n" + "".join(f'"{n}"\t"{line}"\n' for n, line in enumerate(lines)))
    for name in ("a.txt", "b.tsv"):
        splits = load_texts(Source(str(tmp_path / name)))
        assert sorted([*splits.train["review"], *splits.validation["review"]]) == sorted(lines)
        assert len(splits.validation) == 3
        assert set(splits.train["sentiment"]) == {UNKNOWN}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        load_texts(Source(str(tmp_path / "empty.txt")))


def test_a_folder_gives_training_and_unlabelled_reviews_only(tmp_path):
    rows = [f'"{n}_{1 if n % 2 else 9}"\t{n % 2}\t"labelled {n}"\n' for n in range(20)]
    (tmp_path / "labeledTrainData.tsv").write_text("id\tsentiment\treview\n" + "".join(rows))
    (tmp_path / "unlabeledTrainData.tsv").write_text('id\treview\n"5_0"\t"unlabelled"\n')
    (tmp_path / "testData.tsv").write_text('id\treview\n"6_9"\t"of the test"\n')
    splits = load_texts(Source(str(tmp_path)))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (17, 4, 0)
    assert "unlabelled" in set(splits.train["review"])
    assert not {"of the test"} & {*splits.train["review"], *splits.validation["review"]}


TINY_RUN = "--shape hidden_size=32␣num_layers=2␣num_heads=2␣feed_forward_size=64 --vocab-size 500 --max-length 24"


def pretrain(folder, name: str, text: str) -> list[dict]:
    argv = [part.replace("␣", " ") for part in f"{TINY_RUN} {text}".split()]
    train.main([*argv, "--runs", str(folder), "--name", name, "--precision", "fp32"])
    events = map(json.loads, (folder / name / "log.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "epoch"]


@pytest.mark.parametrize(("model", "objective"), [("deberta", "rtd"), ("bert", "mlm"), ("roberta", "rtd")])
def test_loss_falls_and_a_classifier_starts_from_it(model, objective, tmp_path, capsys):
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(300)))
    text = f"--model {model} --loss {objective} --data {tmp_path / 'toy.txt'} --epochs 4 --learning-rate 3e-3"
    epochs = pretrain(tmp_path, "pre", text)
    assert epochs[-1]["val_loss"] < 0.7 * epochs[0]["val_loss"]
    assert {"val_acc", "train_acc"} <= epochs[0].keys()
    best = tmp_path / "pre" / "best"
    assert f"--weights {best} starts from it" in capsys.readouterr().out
    small = f"--model {model} --data demo --train-reviews 20 --epochs 1 --max-length 24 --runs {tmp_path} --name fine"
    train.main([*small.split(), "--weights", str(best)])
    assert "newly initialized: classifier" in capsys.readouterr().out


def test_a_pretrained_model_is_exported_without_a_classifier_and_not_scored(tmp_path):
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(60)))
    text = f"--model deberta --loss rtd --data {tmp_path / 'toy.txt'} --epochs 1 --word-vectors train"
    pretrain(tmp_path, "pre", text)
    run, out = str(tmp_path / "pre"), tmp_path / "out"
    evaluate(["--run", run, "--merge", str(out), "--dtype", "fp16"])
    with open_tensors(out / "model.safetensors") as file:
        names = list(file.keys())
        assert not [name for name in names if "pooler" in name or "classifier" in name]
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    with pytest.raises(ValueError, match="has no classifier"):
        evaluate(["--run", run, "--text", "good"])


def test_pretraining_is_reproducible(tmp_path):
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(60)))
    text = f"--model deberta --loss rtd --data {tmp_path / 'toy.txt'} --epochs 1"
    first, second = (pretrain(tmp_path, name, text)[0] for name in "ab")
    assert first["train_loss"] == second["train_loss"]
    assert first["val_loss"] == second["val_loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--model lstm --loss mlm", "pretrain encoders over subwords, not lstm"),
        ("--model bert --loss rtd --peft lora", "leave out --peft lora"),
        ("--model bert --loss ce --truncate chunks", "separates a review from its label"),
    ],
)
def test_models_and_methods_that_cannot_be_pretrained_are_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        train.main(["--data", "demo", "--weights", "none", "--word-vectors", "none", *text.split()])
