"""Tests of data/check.py: each kind of path is recognised, and a defect is one line."""

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, adapt, tiny, tiny_weights

import train
from data.check import check, check_file, main
from data.checksums import write_checksums
from data.errors import clean_exit
from data.hub import CLASSIFIER
from data.runs import Run
from data.tokenization import train_tokenizer
from data.word_vectors import WordVectors, save_vectors
from eval import main as evaluate
from nn.checkpoint import load_pretrained, save_pretrained
from peft import save_adapter


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Returns one sound path of each kind but a run."""
    tiny_weights(tmp_path / "checkpoint")
    save_adapter(adapt(tiny("bert"), "lora"), tmp_path / "adapter", str(tmp_path / "checkpoint"))
    train_tokenizer("bpe", ["a film", "a play"] * 20, 300).save(tmp_path / "tokenizer")
    (tmp_path / "reviews.csv").write_text("review,label\ngood,up\nbad,down\n")
    (tmp_path / "texts.txt").write_text("good\nbad\n")
    (tmp_path / "glove.txt").write_text("film 1 2 3\nplay 1 2 3\n")
    save_vectors(tmp_path / "vectors.safetensors", WordVectors(["film"], torch.ones(1, 4)))
    (tmp_path / "both").mkdir()
    (tmp_path / "both/members.json").write_text('[{"weights": "checkpoint", "factor": 0.5}]')
    names = ("checkpoint", "tokenizer", "reviews.csv", "texts.txt", "glove.txt", "vectors.safetensors", "both")
    return {name: tmp_path / name for name in names}


DESCRIPTIONS = {
    "checkpoint": "a bert checkpoint with",
    "tokenizer": "a bpe tokenizer with",
    "reviews.csv": "2 reviews, column label: down, up",
    "texts.txt": "2 texts, one a line",
    "glove.txt": "word vectors of 3 numbers",
    "vectors.safetensors": "word vectors of 1 words",
    "both": "0.5 × checkpoint: a bert checkpoint with",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_each_kind_is_recognised(paths: dict[str, Path], name: str):
    assert DESCRIPTIONS[name] in check(paths[name])


def test_a_run_and_its_adapter(small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.main([*small_run, "--epochs", "1"])
    run = tmp_path / "runs/small"
    assert check(run).startswith("a run of bert with --peft lora, finished; best: a lora adapter with")
    capsys.readouterr()
    content = bytearray((run / "state/state.safetensors").read_bytes())
    content[-9] ^= 2
    (run / "state/state.safetensors").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main([str(run), str(tmp_path / "nothing"), str(run / "tokenizer")])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 2
    assert [line.partition(": ")[2].split(":")[0] for line in lines[:2]] == ["not sound", "not sound"]
    assert "does not have its checksum" in lines[0]
    assert lines[2].endswith(": sound")


def test_what_eval_would_refuse_is_not_sound(small_run: list[str], tmp_path: Path):
    """A run that lacks a part or has a damaged one, and members that have other classes."""
    train.main([*small_run, "--epochs", "1"])
    run = tmp_path / "runs/small"
    (run / "best").rename(tmp_path / "best")
    with pytest.raises(FileNotFoundError, match="best is missing; restore it"):
        check(run)
    with pytest.raises(FileNotFoundError, match="best holds no model; restore it"):
        evaluate(["--run", str(run), "--text", "good"])
    (tmp_path / "best").rename(run / "best")
    (run / "tokenizer").rename(tmp_path / "tokenizer")
    for call in (lambda: check(run), lambda: evaluate(["--run", str(run), "--text", "good"])):
        with pytest.raises(FileNotFoundError, match="tokenizer is missing; restore it"):
            call()
    (tmp_path / "tokenizer").rename(run / "tokenizer")
    log = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text("garbage\n")
    with pytest.raises(ValueError, match="is not valid JSON"):
        check(run)
    (run / "log.jsonl").write_text(log)
    (run / "test.probabilities.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="delete it: the run can be scored without it"):
        check(run)


def test_members_with_other_classes_are_not_sound(tmp_path: Path):
    for name in ("two", "three"):
        tiny_weights(tmp_path / name)
    save_pretrained(tiny("bert", labels=("a", "b", "c")), tmp_path / "three")
    (tmp_path / "both").mkdir()
    members = '[{"weights": "two", "factor": 1}, {"weights": "three", "factor": 1}]'
    (tmp_path / "both/members.json").write_text(members)
    with pytest.raises(ValueError, match="the same two classes"):
        check(tmp_path / "both")


def test_a_part_of_a_checkpoint_names_its_folder(tmp_path: Path):
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"):
        with pytest.raises(ValueError, match=rf"{name} is read with its checkpoint: check the folder {tmp_path}$"):
            check_file(tmp_path / name)


def test_an_unknown_home_directory_does_not_end_the_other_checks(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["~nouser/x", str(ROOT / "data/weights/nb-linear-imdb")])
    unknown, sound = capsys.readouterr().out.splitlines()
    assert "not sound: ~nouser/x: no home directory is known for ~" in unknown
    assert sound.endswith(": sound")


def test_a_flag_is_no_path():
    with pytest.raises(ValueError, match="--encoding is no path"):
        main(["reviews.csv", "--encoding", "latin-1"])


def test_the_checksums_of_a_folder(tmp_path: Path):
    folder = tiny_weights(tmp_path / "checkpoint")
    write_checksums(folder)
    assert "a bert checkpoint" in check(folder)
    (folder / ".git").mkdir()
    (folder / ".git/x").write_text("hidden")
    before = (folder / "SHA256SUMS").read_text()
    write_checksums(folder)
    assert (folder / "SHA256SUMS").read_text() == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"config\.json changed since it was written; restore it, or delete"):
        check(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing; SHA256SUMS lists it"):
        check(folder)
    (folder / "SHA256SUMS").write_text("0" * 64 + "  ../secret\n")
    with pytest.raises(ValueError, match="SHA256SUMS is damaged"):
        check(folder)


def test_a_folder_that_was_edited_is_loaded_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A checkpoint of a user may be changed on purpose; only a run's own files must not change."""
    folder = tiny_weights(tmp_path / "checkpoint")
    write_checksums(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    load_pretrained(folder)
    assert "warning: " in (shown := capsys.readouterr().out)
    assert "config.json changed since it was written" in shown


def test_a_run_without_options_is_one_line(tmp_path: Path):
    run = Run.create(tmp_path / "r", {"machine": "cpu"})
    with pytest.raises(ValueError, match=r"options of .*config\.json must be an object"):
        check(run.folder)


def test_a_tokenizer_is_read_without_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As after `2>&-`: Python sets the stream to None, and the next file that is opened gets the number 2."""
    folder = tiny_weights(tmp_path / "checkpoint")
    kept = os.dup(2)
    os.close(2)
    monkeypatch.setattr(sys, "stderr", None)
    try:
        assert check(folder).startswith("a bert checkpoint")
        with pytest.raises(SystemExit) as stop, clean_exit():  # as a program, which replaces the stream
            main([str(folder)])
        sys.stderr.close()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip().endswith(": sound")


def test_the_members_of_the_built_in_classifier_are_named_with_factor_and_power():
    found = check(CLASSIFIER)
    assert found.startswith("3.696 n^-0.25 × nb-linear-imdb: ")
    assert "; 0.365 × deberta-mini-imdb: " in found
