"""Runs over data with classes of its own, and runs that are scored as they were trained, from any folder."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_weights
from safetensors.torch import load_file

import train
from data.checked import read_json
from data.corpus import Corpus
from data.runs import Run
from eval import main as evaluate
from losses.cross_entropy import cross_entropy
from peft.classifier import load_run

CLASSES = ("bad", "good", "so-so")


def write_csv(path: Path, rows: int = 90, seed: int = 0) -> Path:
    """Writes reviews of three classes, each with a word of its own."""
    words = {"bad": "awful", "good": "superb", "so-so": "average"}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "label"])
        for i in range(rows):
            label = CLASSES[(i * 7 + seed) % 3]
            writer.writerow([f"film {i} was {words[label]}, {words[label]}", label])
    return path


def tiny_run(tmp_path: Path, *extra: str, name: str = "r", epochs: int = 1) -> Path:
    """Trains a tiny BERT on the three classes; returns the run folder."""
    weights = tiny_weights(tmp_path / "weights") if not (tmp_path / "weights").exists() else tmp_path / "weights"
    arguments = ["--model", "bert", "--weights", str(weights), "--head", "new", "--max-length", "16"]
    arguments += [
        "--batch-size",
        "8",
        "--epochs",
        f"{epochs}",
        "--learning-rate",
        "3e-3",
        "--head-learning-rate",
        "1e-2",
    ]
    train.main([*arguments, "--runs", str(tmp_path / "runs"), "--name", name, *extra])
    return tmp_path / "runs" / name


def test_three_classes_train_score_predict_and_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path / "films.csv")
    folder = tiny_run(tmp_path, "--data", str(data))
    shown = capsys.readouterr().out
    assert "labels: bad, good, so-so" in shown
    assert read_json(folder / "config.json")["labels"] == list(CLASSES)
    assert read_json(folder / "best/config.json")["id2label"] == {"0": "bad", "1": "good", "2": "so-so"}
    result = read_json(folder / "result.json")["validation"]
    assert np.array(result["confusion"]).shape == (3, 3)
    evaluate(["--run", str(folder)])
    shown = capsys.readouterr().out
    assert (
        f"validation: accuracy {result['accuracy']:.4f} on {result['count']} reviews, loss {result['loss']:.4f}"
        in shown
    )
    assert "  so-so: F1" in shown
    evaluate(["--run", str(folder), "--text", "superb, superb"])
    label, probabilities = capsys.readouterr().out.split(" ", 1)
    assert label in CLASSES
    assert list(json.loads(probabilities.strip()[1:-1])) == list(CLASSES)
    evaluate(["--run", str(folder), "--predict", str(data), "--out", "out.csv"])
    header, *rows = csv.reader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines())
    assert header == ["id", "label", "p_bad", "p_good", "p_so-so"]
    assert len(rows) == 90
    assert {row[1] for row in rows} <= set(CLASSES)
    assert "films.csv: accuracy" in capsys.readouterr().out
    evaluate(["--run", str(folder), "--predict", str(data), "--submission", "--out", "sub.csv"])
    assert {line.split(",")[1] for line in (tmp_path / "sub.csv").read_text().splitlines()[1:]} <= set(CLASSES)
    evaluate(["--run", str(folder), "--data", str(data)])
    assert "films.csv: accuracy" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--threshold validation needs two classes; this run has 3"):
        evaluate(["--run", str(folder), "--threshold", "validation"])
    assert "accuracy" not in capsys.readouterr().out  # refused before the reviews are scored
    (tmp_path / "other.csv").write_text("review,label\nx,bad\ny,superb\n")
    with pytest.raises(ValueError, match="superb"):
        evaluate(["--run", str(folder), "--data", "other.csv"])


def test_a_run_has_the_class_names_of_its_data(tmp_path, monkeypatch, capsys):
    """The checkpoint from which it starts spells them in another way, which files do not."""
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path / "films.csv")
    config = tiny_weights(tmp_path / "weights", labels=("BAD", "Good", "SO-SO")) / "config.json"
    assert read_json(config)["id2label"]["0"] == "BAD"
    train.main([
        "--model", "bert", "--weights", "weights", "--max-length", "16", "--data", str(data), "--epochs", "1",
        "--runs", "runs", "--name", "r",
    ])  # fmt: skip
    capsys.readouterr()
    evaluate(["--run", "runs/r", "--data", str(data)])
    evaluate(["--run", "runs/r", "--predict", str(data), "--out", "out.csv"])
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").startswith("id,label,p_bad,p_good,p_so-so\n")
    assert capsys.readouterr().out.count("films.csv: accuracy") == 2


def test_a_checkpoint_is_scored_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tiny_run(tmp_path, "--data", str(write_csv(tmp_path / "films.csv")))
    capsys.readouterr()
    evaluate(["--run", str(folder), "--data", "films.csv", "--precision", "fp32"])
    expected = capsys.readouterr().out.splitlines()[-4:]
    evaluate(["--weights", str(folder / "best"), "--data", "films.csv", "--max-length", "16", "--precision", "fp32"])
    assert capsys.readouterr().out.splitlines()[-4:] == expected
    with pytest.raises(ValueError, match="--weights needs reviews"):
        evaluate(["--weights", str(folder / "best")])


def test_standard_input_has_one_review_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tiny_run(tmp_path, "--data", str(write_csv(tmp_path / "films.csv")))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"superb\n\nawful\n")))
    capsys.readouterr()
    evaluate(["--run", str(folder), "--predict", "-"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "id,label,p_bad,p_good,p_so-so"
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]


def test_every_precision_is_scored_as_trained(tmp_path, capsys):
    data = write_csv(tmp_path / "films.csv")
    for precision in ("fp32", "bf16", "auto"):
        folder = tiny_run(
            tmp_path, "--data", str(data), "--precision", precision, "--validation-reviews", "9", name=precision
        )
        result = read_json(folder / "result.json")["validation"]
        kept = load_file(folder / "validation.probabilities.safetensors")["probabilities"]
        capsys.readouterr()
        evaluate(["--run", str(folder)])
        assert f"accuracy {result['accuracy']:.4f} on 9 reviews, loss {result['loss']:.4f}" in capsys.readouterr().out
        assert kept.shape == (9, 3)


def test_a_run_works_from_any_folder_and_notices_changed_data(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    write_csv(Path("films.csv"))
    tiny_weights(Path("ck"))
    arguments = ["--model", "bert", "--weights", "ck", "--head", "new", "--data", "films.csv", "--peft", "lora"]
    train.main([*arguments, "--max-length", "16", "--epochs", "1", "--name", "r"])
    options = read_json(Path("runs/r/config.json"))["options"]
    assert options["data"] == str(tmp_path / "a/films.csv")
    assert options["weights"] == str(tmp_path / "a/ck")
    monkeypatch.chdir(tmp_path)
    evaluate(["--run", "a/runs/r"])
    (tmp_path / "a/runs").rename(tmp_path / "moved")
    evaluate(["--run", "moved/r"])
    write_csv(tmp_path / "a/films.csv", seed=1)
    with pytest.raises(ValueError, match=r"films\.csv changed since"):
        evaluate(["--run", "moved/r"])
    evaluate(["--run", "moved/r", "--data", "a/films.csv"])
    (tmp_path / "moved/r/result.json").unlink()
    with pytest.raises(ValueError, match=r"films\.csv changed since"):
        train.main(["--resume", "moved/r"])
    (tmp_path / "a/ck").rename(tmp_path / "ck2")
    with pytest.raises(FileNotFoundError, match="--base"):
        evaluate(["--run", "moved/r", "--text", "good"])
    evaluate(["--run", "moved/r", "--text", "good", "--base", "ck2"])


def test_an_adapter_is_trained_further(small_run, tmp_path):
    train.main([*small_run, "--epochs", "1"])
    first = load_file(tmp_path / "runs/small/best/adapter_model.safetensors")
    more = [*small_run[:-1], "more", "--weights", str(tmp_path / "runs/small/best")]
    train.main([*more, "--epochs", "1", "--seed", "7"])
    config = read_json(tmp_path / "runs/more/config.json")
    assert (config["options"]["peft"], config["origins"]["learning_rate"]) == ("lora", "method")
    second = load_file(tmp_path / "runs/more/best/adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    adapter = read_json(tmp_path / "runs/more/best/adapter_config.json")
    assert adapter["base_model_name_or_path"] == str(tmp_path / "weights")
    with pytest.raises(ValueError, match="leave out --rank"):
        train.main([*more, "--rank", "4"])
    arguments = [part if part != "lora" else "prefix" for part in more]
    with pytest.raises(ValueError, match="is a lora adapter; leave out --peft prefix"):
        train.main(arguments)


def test_a_run_over_8_bits_is_merged_into_the_unquantized_backbone(small_run, tmp_path):
    train.main([*small_run, "--quantize", "int8", "--epochs", "1"])
    evaluate(["--run", str(tmp_path / "runs/small"), "--merge", str(tmp_path / "plain")])
    tensors = load_file(tmp_path / "plain/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    before = load_file(tmp_path / "weights/model.safetensors")
    key = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(tensors[key], before[key])
    model, _ = load_run(Run.open(tmp_path / "runs/small"), torch.device("cpu"), "int8")
    assert model.layers[0].feed_forward.up.weight.dtype == torch.int8


@pytest.mark.parametrize("classes", [("0", "1", "2"), ("LABEL_0", "LABEL_1"), ("1", "2", "3")])
def test_classes_that_are_numbers_keep_their_names(classes, tmp_path, monkeypatch, capsys):
    """A published config has LABEL_0 for a class without a name; the names of a run are those of its data."""
    monkeypatch.chdir(tmp_path)
    text = write_csv(tmp_path / "named.csv", rows=120).read_text()
    lines = [line for line in text.splitlines() if not line.endswith(",so-so") or len(classes) > 2]
    text = "\n".join(lines) + "\n"
    for name, number in zip(CLASSES, classes, strict=False):
        text = text.replace(f",{name}\n", f",{number}\n")
    Path("films.csv").write_text(text)
    run = tiny_run(tmp_path, "--data", "films.csv", epochs=10)
    capsys.readouterr()
    evaluate(["--run", str(run), "--data", "films.csv"])
    evaluate(["--weights", str(run / "best"), "--data", "films.csv"])
    printed = capsys.readouterr().out.splitlines()
    scores = [line for line in printed if line.startswith("films.csv: accuracy 1.0000 on")]
    assert len(scores) == 2, printed
    evaluate(["--run", str(run), "--text", "film 3 was superb, superb"])
    assert capsys.readouterr().out.startswith(f"{classes[1]} (")


def test_balanced_class_weights():
    corpus = Corpus.from_rows([[1]] * 6, [0, 0, 0, 0, 1, 2], 0).balanced(3)
    np.testing.assert_allclose(corpus.class_weights, [6 / 12, 2, 2])
    assert corpus.class_weights[corpus.labels].mean() == pytest.approx(1)
    batch = corpus.batch(np.arange(6))
    logits = torch.randn(6, 3, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    expected = -sum(batch.class_weights[y] * log_p[i, y] for i, y in enumerate(batch.labels.tolist())) / 6
    torch.testing.assert_close(cross_entropy(logits, batch.labels, 0.0, batch.class_weights), expected)
    with pytest.raises(ValueError, match="class 2 has no training example"):
        Corpus.from_rows([[1]] * 2, [0, 1], 0).balanced(3)


@pytest.mark.parametrize("loss", ["ce", "rdrop", "supcon", "rdrop_supcon", "adversarial"])
def test_losses_train_on_three_classes_with_class_weights(loss, tmp_path):
    data = write_csv(tmp_path / "films.csv", 45)
    folder = tiny_run(tmp_path, "--data", str(data), "--loss", loss, "--class-weights", "balanced")
    assert len(read_json(folder / "result.json")["validation"]["f1_by_class"]) == 3
