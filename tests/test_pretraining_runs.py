"""Corpora without labels, and pretraining runs."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny, tiny_weights
from safetensors.torch import load_file

import train
from data import Source
from data.batches import Batch
from data.corpus import Corpus
from data.files import open_tensors
from data.imdb import UNKNOWN
from data.pretraining_texts import load_texts
from data.tokenization import train_tokenizer
from eval import main as evaluate
from nn.runtime import choose_machine
from peft.scoring import held_out_loss


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


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_frozen_word_vectors_stay_as_they_are(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("\n".join(f"a line of {n} words" for n in range(60)))
    tables = []
    for name, rate in (("still", "1e-9"), ("trained", "0.1")):
        options = f"--model bert --loss {objective} --data words.txt --epochs 1 --no-train-vectors"
        pretrain(tmp_path, name, f"{options} --learning-rate {rate}")
        tables.append(
            load_file(tmp_path / name / "best" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
        )
    assert torch.equal(*tables)


@pytest.mark.parametrize("options", ["--model bert --loss mlm", "--model lstm --loss lm --min-count 1"])
def test_texts_without_a_token_to_predict_are_refused(options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "words.txt").write_text("good\nbad\n" * 9)
    (tmp_path / "shards/words.txt").write_text("good\n\nbad\n\n" * 99)
    (tmp_path / "texts.txt").write_text("a good film\na bad film\n" * 9)
    for data, name in (
        ("--train words.txt --validation texts.txt", "training"),
        ("--train texts.txt --validation words.txt", "held-out"),
        ("--data shards --validation texts.txt", "training"),
    ):
        with pytest.raises(ValueError, match=f"the {name} texts are too short for pretraining: each is a single token"):
            train.main([*options.split(), *data.split(), "--name", "r"])
        assert not (tmp_path / "runs/r").exists()


def test_a_loss_without_predictions_is_a_warning(capsys: pytest.CaptureFixture[str]):
    def objective(model: torch.nn.Module, batch: Batch, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.zeros(()), {"acc": torch.ones(count, dtype=torch.bool)}

    corpus, machine = Corpus.from_rows([[1, 2]], [-1], pad_id=0), choose_machine("cpu", "fp32")
    for count in (0, 2):
        held_out_loss(tiny("bert"), corpus, objective, count, machine, seed=0)
    assert capsys.readouterr().out.count("warning: no token of the held-out texts was predicted") == 1


@pytest.mark.parametrize(("model", "objective"), [("deberta", "rtd"), ("bert", "mlm"), ("roberta", "rtd")])
def test_loss_falls_and_a_classifier_starts_from_it(model, objective, tmp_path, capsys):
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(300)))
    text = f"--model {model} --loss {objective} --data {tmp_path / 'toy.txt'} --epochs 4 --learning-rate 3e-3"
    epochs = pretrain(tmp_path, "pre", text)
    assert epochs[-1]["val_loss"] < 0.7 * epochs[0]["val_loss"]
    assert {"val_acc", "train_acc"} <= epochs[0].keys()
    best = tmp_path / "pre" / "best"
    printed = capsys.readouterr().out
    assert f"--weights {best} starts from it" in printed
    assert ", saved\n" in printed
    assert ", best\n" not in printed
    small = f"--model {model} --data demo --train-reviews 20 --epochs 1 --max-length 24 --runs {tmp_path} --name fine"
    train.main([*small.split(), "--weights", str(best)])
    assert "newly initialized: classifier" in capsys.readouterr().out
    evaluate(["--compare", f"{tmp_path}/pre {tmp_path}/fine"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert notes == ["note: pre was pretraining: its accuracies are those of its own task, not of reviews"]


def test_pretraining_continues_from_a_classifier_of_any_classes(tmp_path):
    """Its texts have no labels, so that no class is missing."""
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(60)))
    weights = tiny_weights(tmp_path / "weights")
    config = json.loads((weights / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "gut", "1": "schlecht"}, {"gut": 0, "schlecht": 1}
    (weights / "config.json").write_text(json.dumps(config))
    text = f"--model bert --loss mlm --data {tmp_path / 'toy.txt'} --weights {weights} --max-length 16 --epochs 1"
    train.main([*text.split(), "--runs", str(tmp_path), "--name", "pre", "--precision", "fp32"])
    assert (tmp_path / "pre/best/model.safetensors").is_file()


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
