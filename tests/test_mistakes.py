"""The most confident mistakes, the groups of reviews, and the flags of eval.py that show them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train
from data.checked import read_json
from data.corpus import Corpus
from data.eval_options import DESCRIPTION, EXAMPLES, Options, check_flags, check_replaces, names_folder
from data.flags import parse_flags
from data.imdb import as_frame
from data.metrics import softmax
from data.mistakes import RATING, accuracy_table, groups, mistake_lines, mistakes, mistakes_csv, most_confident_mistakes
from data.options import read_splits
from data.runs import Run
from eval import main as evaluate
from eval import settings_of
from nn.runtime import Machine
from peft.classifier import Scorer


def example() -> tuple[pd.DataFrame, Corpus]:
    """Returns five reviews with 1, 2, 4, 8 and 100 tokens; token 0 is unknown: 1, 0, 0, 1 and 1 times."""
    rows = [[0], [5, 5], [5] * 4, [0] + [5] * 7, [0] + [5] * 99]
    frame = as_frame(
        [(f"{i}_{r}", f"text {i}", y) for i, (r, y) in enumerate(((10, 1), (1, 0), (1, 0), (2, 0), (9, 1)))]
    )
    return frame, Corpus.from_rows(rows, frame["sentiment"], 1)


def test_mistakes_are_sorted_by_confidence():
    frame, _ = example()
    p1 = np.array([0.3, 0.6, 0.1, 0.9, 0.8])  # wrong: 0 (.7 for class 0), 1 (.6), 3 (.9)
    rows = mistakes(frame, np.stack([1 - p1, p1], 1), ("bad", "good"), 2)
    assert rows == [
        ("3_2", "bad", "good", pytest.approx(0.9), "text 3"),
        ("0_10", "good", "bad", pytest.approx(0.7), "text 0"),
    ]
    assert mistakes_csv(rows).splitlines()[1] == "3_2,bad,good,0.900000,text 3"
    assert mistakes(frame, np.eye(2)[frame["sentiment"]], ("bad", "good"), 2) == []


def test_the_first_words_of_a_mistake_are_shown_without_control_characters():
    frame = as_frame([("\x1b" + "7" * 60, "\x1b[2J " + " ".join(map(str, range(20))), 1)])
    rows = mistakes(frame, np.array([[0.9, 0.1]]), ("bad", "good"), 2)
    title, line = mistake_lines("x.csv", rows)
    assert title == "x.csv: the 1 most confident mistakes"
    assert line.endswith(": good, predicted bad (0.9000): \\x1b[2J 0 1 2 3 4 5 6 7 8 9 10")
    assert "\x1b" not in line
    assert "7" * 30 in line
    assert "7" * 50 not in line


def test_a_review_without_a_token_has_no_unknown_ones():
    frame, corpus = as_frame([("a", "", 0), ("b", "x", 1)]), Corpus.from_rows([[], [5]], [0, 1], 1)
    found = {name: inside.tolist() for name, inside in groups(frame, corpus, unk_id=0)}
    assert found["0 % unknown tokens"] == [True, True]


def test_groups_by_length_rating_and_unknown_words():
    frame, corpus = example()
    found = {name: np.flatnonzero(inside).tolist() for name, inside in groups(frame, corpus, unk_id=0)}
    assert found == {
        "1 to 2 tokens": [0, 1], "4 to 4 tokens": [2], "8 to 8 tokens": [3], "100 to 100 tokens": [4],
        "rating 1": [1, 2], "rating 2": [3], "rating 9": [4], "rating 10": [0],
        "0 % unknown tokens": [1, 2], "above 0 to 1 % unknown tokens": [4], "above 5 to 100 % unknown tokens": [0, 3],
    }  # fmt: skip
    unrated = frame.assign(id=["1", "2", "3", "4", "5_7"])
    assert not [name for name, _ in groups(unrated, corpus, None) if "rating" in name or "unknown" in name]
    lines = accuracy_table(np.array([1, 0, 1, 1, 1], bool), groups(frame, corpus, 0)).splitlines()
    assert lines[1].split() == ["1", "to", "2", "tokens", "0.5000", "2"]


def test_equally_confident_mistakes_are_in_the_order_of_the_reviews():
    p1 = np.where(np.arange(99) % 3 == 0, 0.9, 0.75)
    wrong = most_confident_mistakes(np.zeros(99, int), np.stack([1 - p1, p1], 1), 40)
    assert wrong == [*range(0, 99, 3), 1, 2, 4, 5, 7, 8, 10]


def test_a_quarter_ends_at_the_length_of_a_review():
    """A quarter of six reviews is one and a half: the edges are those of the second, third and fifth."""
    frame = as_frame([(str(n), "x", 0) for n in range(1, 7)])
    corpus = Corpus.from_rows([[5] * n for n in range(1, 7)], frame["sentiment"], 1)
    names = [name for name, _ in groups(frame, corpus, None)]
    assert names == ["1 to 2 tokens", "3 to 3 tokens", "4 to 5 tokens", "6 to 6 tokens"]


@pytest.mark.parametrize("key", ["1_0", "x1_7", "1_11", "1_7x"])
def test_an_id_that_does_not_end_in_a_rating_of_imdb_has_none(key: str):
    assert RATING.search("1_7")[1] == RATING.search("pos/1_7")[1] == "7"
    assert RATING.search(key) is None


def test_a_run_shows_mistakes_calibration_and_threshold(small_run, tmp_path, capsys):
    train.main(small_run)
    run = str(tmp_path / "runs/small")
    capsys.readouterr()
    evaluate(["--run", run, "--errors", "3", "--out", "errors.csv", "--threshold", "validation", "--plot", "r.svg"])
    shown = capsys.readouterr().out
    temperature = read_json(tmp_path / "runs/small/calibration.json")["temperature"]
    assert f"test: temperature {temperature:.3f}; ECE (15 bins of equal width) " in shown
    assert "with the threshold 0." in shown
    assert "test: the 3 most confident mistakes" in shown
    assert "tokens " in shown
    assert len((tmp_path / "errors.csv").read_text().splitlines()) == 4
    assert "before scaling" in (tmp_path / "r.svg").read_text()
    (tmp_path / "two.csv").write_text("id,review,label\n0_1,good film,0\n1_9,bad film,1\n2_9,good film,1\n3_1,bad,0\n")
    evaluate(["--data", "two.csv", "--errors", "9"])
    assert "rating 9" in capsys.readouterr().out
    for flags in (
        ["--threshold", "validation"],
        ["--run", run, "--text", "x", "--errors", "3"],
        ["--run", run, f"{run}2", "--errors", "2"],
    ):
        with pytest.raises(ValueError, match=r"--threshold validation needs|--errors"):
            evaluate(flags)


def test_a_threshold_needs_no_kept_probabilities(small_run, tmp_path, capsys):
    train.main([*small_run, "--validation-reviews", "60"])
    outputs = []
    for _ in range(2):
        capsys.readouterr()
        evaluate(["--run", str(tmp_path / "runs/small"), "--threshold", "validation"])
        outputs.append(re.findall(r"^\w+: accuracy .* chosen on validation$", capsys.readouterr().out, re.M))
        (tmp_path / "runs/small/validation.probabilities.safetensors").unlink(missing_ok=True)
    assert outputs[0] == outputs[1] != []


def test_the_temperature_fits_the_reviews_as_they_are_scored(small_run, tmp_path, capsys):
    """Also the picture needs no kept probabilities of reviews that are scored here."""
    train.main([*small_run, "--validation-reviews", "60"])
    run = Run.open(tmp_path / "runs/small")
    evaluate(["--run", str(run.folder)])
    plain = re.findall(r"temperature ([.\d]+)", capsys.readouterr().out)
    evaluate(["--run", str(run.folder), "--truncate", "tail"])
    changed = re.findall(r"temperature ([.\d]+)", capsys.readouterr().out)
    assert len(set(plain)) == len(set(changed)) == 1
    for split in ("validation", "test"):
        (run.folder / f"{split}.probabilities.safetensors").unlink()
    evaluate(["--run", str(run.folder), "--plot", str(tmp_path / "r.svg")])
    assert re.findall(r"temperature ([.\d]+)", capsys.readouterr().out) == plain
    assert (tmp_path / "r.svg").exists()


def test_the_default_output_is_checked_before_reviews_are_scored(tmp_path, monkeypatch):
    monkeypatch.setattr("data.eval_options.write_problem", lambda path: f"no place for {path.name}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^--out submission\.csv cannot be written \(no place for submission\.csv\)"):
        evaluate(["--predict", "x.csv"])


def test_the_threshold_is_chosen_for_the_reviews_as_they_are_scored(small_run, tmp_path, capsys):
    train.main([*small_run, "--validation-reviews", "60", "--max-length", "5"])
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "runs/small"), "--threshold", "validation", "--truncate", "tail"])
    plain, best = [float(x) for x in re.findall(r"^validation: accuracy ([.\d]+)", capsys.readouterr().out, re.M)]
    run = Run.open(tmp_path / "runs/small")
    options = settings_of(run).options
    scorer = Scorer.of_run(run, options, Machine(torch.device("cpu"), torch.float32), truncate="tail")
    frame = read_splits(options, None).validation
    p = softmax(scorer.score_frame(frame))
    correct = [((p[:, 1] > t) == frame["sentiment"]).mean() for t in (0.0, *p[:, 1])]
    assert plain <= best == pytest.approx(max(correct), abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data a.csv --predict b.csv", "--predict and --data are two tasks; give one of them"),
        ("--text good --predict b.csv", "--predict and --text are two tasks"),
        ("--text good --data b.csv", "--text and --data are two tasks"),
        ("--compare a b --merge out", "--compare and --merge are two tasks"),
        ("--compare a b --run c", "--compare takes the runs as its own values; leave out --run"),
        ("--run a --max-length 9 --text good", "--max-length is for --weights"),
        ("--text good --dtype fp16", "--dtype has no effect here; it is for --merge"),
        ("--run a --plot curves", "--plot curves is not a picture: its name ends in .png, .svg, .pdf"),
        ("--compare a b --plot curves.txt", "--plot curves.txt is not a picture"),
        ("--compare a b --weights c", "--compare takes the runs as its own values; leave out --run and --weights"),
        ("--merge out", "--merge needs a run: --run runs/NAME --merge DIR"),
        ("--run a --errors -1", "--errors needs a number above 0 and scored reviews"),
        ("--run a --weights b --text good", "--run and --weights both name a model; leave one out"),
        ("--run a b --threshold validation", "--threshold takes one run; --run names several"),
        ("--run a b --text good --explain", "--explain takes one run; --run names several"),
    ],
)
def test_a_flag_without_effect_is_refused(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        "--weights w --text good --max-length 9",
        "--run a --merge m --base b --device cpu",
        "--run a --plot R.PNG",
        "--data x.csv --explain",
        "--data x.csv --explain WHY.HTML",
        "--text good --explain why.htm",
        "--predict -",  # writes no submission.csv
        "--run a b --data x.csv --truncate tail",
        "--run a --data x.csv --errors 3 --out mistakes.csv",
        "--weights w --predict x.csv --out p.csv",
    ],
)
def test_flags_with_an_effect_are_taken(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submission.csv").touch()
    given = parse_flags({"eval.py": Options}, flags.split(), DESCRIPTION, examples=EXAMPLES, once=True)
    check_flags(Options(**given), given)


def test_a_file_with_the_name_of_the_data_set_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert names_folder("imdb")
    (tmp_path / "imdb").touch()
    assert not names_folder("imdb")


def test_an_output_may_be_new_beside_the_reviews_and_no_part_of_a_backbone(tmp_path: Path):
    (tmp_path / "old.csv").touch()
    check_replaces(Options(out=str(tmp_path / "new.csv")), [tmp_path])
    with pytest.raises(ValueError, match=r"--out .*old\.csv would replace what is read from "):
        check_replaces(Options(out=str(tmp_path / "old.csv")), [tmp_path])
    with pytest.raises(ValueError, match=r"--out .*config\.json would replace what is read from "):
        check_replaces(Options(base=str(tmp_path), out=str(tmp_path / "config.json")), [])
