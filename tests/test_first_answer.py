"""After a third of the first command, the model answers README's question and other plain sentences rightly."""

import csv
import io
from pathlib import Path

import pytest

import train
from eval import main as evaluate

QUESTIONS = {
    "A wonderful little film.": "positive",
    "Boring and predictable.": "negative",
    "The best movie I have ever seen": "positive",
    "I loved every minute of it.": "positive",
    "A complete waste of time.": "negative",
    "Not worth seeing.": "negative",
    "The acting is superb and the story is moving.": "positive",
    "One of the worst films of the year.": "negative",
}


def test_the_first_command_teaches_plain_english(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One epoch of the three; 500 of the 4,000 validation reviews. Takes a minute of a core."""
    monkeypatch.delenv("IMDB_DIR", raising=False)
    command = "--model deberta --peft lora --data demo --epochs 1 --validation-reviews 500 --name first"
    train.main([*command.split(), "--runs", str(tmp_path)])
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(QUESTIONS))
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "first"), "--predict", str(questions), "--out", "-"])
    answers = [row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert dict(zip(QUESTIONS, answers, strict=True)) == QUESTIONS
