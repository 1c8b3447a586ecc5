"""Tests of the READMEs: commands run, code runs, paths and equations exist, generated tables are up to date."""

import ast
import csv
import io
import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ENCODERS, ROOT, quick_splits, tiny_weights

import train
from data import Splits
from data.flags import parse_flags
from data.imdb import UNKNOWN
from data.resolve import resolve
from data.tables import READMES, with_tables
from eval import Options as EvalOptions
from eval import main as evaluate
from losses import OBJECTIVES
from nn import MODELS
from peft import METHODS

SKIPPED = {".git", "runs", ".venv"}
MARKDOWN = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.md"))
    if not SKIPPED & set(path.relative_to(ROOT).parts)
}
# tests/test_contributing.py runs the example of .github/CONTRIBUTING.md
TEXTS = {name: text for name, text in MARKDOWN.items() if not name.startswith(".github/")}
README, MAP = TEXTS["README.md"], TEXTS["tests/README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
SOURCES = [path for folder in ("nn", "peft", "losses", "data") for path in sorted((ROOT / folder).glob("*.py"))]


def blocks(text: str, language: str = "") -> list[str]:
    """Returns the code blocks in a language; "" is a block without one."""
    return [body for name, body in BLOCK.findall(text) if name == language]


def commands(text: str) -> list[str]:
    """Returns the commands with flags in inline code and in code blocks, each on one line."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    inline = re.findall(r"`(python (?:train|eval)\.py [^`]*)`", BLOCK.sub("", text))
    found = [" ".join(command.split()) for command in [*inline, *lines]]
    return [c for c in found if re.match(r"python (?:train|eval)\.py .*--", c)]


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in commands(text)))
NUMBERS = "epochs|batch-size|accumulation|train-reviews|validation-reviews|test-reviews"
CARDS = {command for name, text in TEXTS.items() if "weights/" in name for command in commands(text)}  # take hours
# commands that differ only in these take the same way through the program
TUNED = "max-length|learning-rate|head-learning-rate|layer-decay|warmup|weight-decay|average"
TEACHER = r"teacher( (?!--)\S+)+"  # replaced by the built-in linear model
EQUAL = re.compile(rf" --(({NUMBERS}|{TUNED}|name|seed|data|weights) \S+|{TEACHER}|truncate head\+tail)")
DIFFERENT = {EQUAL.sub("", command): command for command in reversed(COMMANDS) if command not in CARDS}


def definitions(path: Path) -> set[str]:
    """Returns the names of all functions and classes in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_readme_is_one_page():
    assert len(README.encode()) <= 12_288


def test_two_commands_install_and_run():
    assert blocks(README) == [
        "pip install --no-compile -r requirements.txt && python train.py --model deberta --peft lora",
        "pip install --no-compile -r requirements-dev.txt && python -m pytest",
    ]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0].split(">")[0] for line in lines]
    runtime = ["torch", "numpy", "pandas", "beautifulsoup4", "safetensors", "tokenizers"]
    assert names == [*runtime, "huggingface_hub", "tqdm"]


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_and_anchors_exist(name: str):
    text = MARKDOWN[name]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), target
        titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, target


def test_the_table_of_contents_has_every_model_method_and_loss():
    table = README.split("## Contents")[1].split("\n## ")[0]
    for entries in (MODELS, METHODS, OBJECTIVES):
        assert all(f"[`{name}`](" in table for name in entries)
    columns = zip(*[line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")], strict=True)
    for column, entries in zip(columns, (MODELS, METHODS, OBJECTIVES), strict=True):
        named = [name for cell in column for name in re.findall(r"\[`(\w+)`\]", cell)]
        assert sorted(named) == sorted(entries)


def test_the_file_map_lists_every_source_file():
    table = MAP.split("## File map")[1].split("\n## ")[0]
    named = {path for path in re.findall(r"`([\w./-]+)`", table) if "/" in path or path.endswith(".py")}
    assert all((ROOT / path).exists() for path in named)
    assert {str(path.relative_to(ROOT)) for path in SOURCES} <= named


def test_the_equation_index_names_existing_code_and_tests():
    rows = re.findall(r"^\| .* \| `([\w/.]+)` `(\w+)` \| `([\w/.]+)` `(\w+)` \|$", MAP, re.MULTILINE)
    assert len(rows) == MAP.split("## Equation index")[1].count("\n|") - 2
    for code, name, test, function in rows:
        assert name in definitions(ROOT / code), (code, name)
        assert function in definitions(ROOT / test), (test, function)


def test_generated_tables_are_up_to_date():
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        assert with_tables(text) == text, path
        openings = re.findall(r"<!-- (?:results|models|bench)[\w -]* -->\n(.*)", text)
        assert openings
        assert all(line.startswith("| ") for line in openings)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_python_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the code blocks of a README with the built-in weights instead of published ones."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(TEXTS[name], "python"):
        exec(compile(block.replace('"microsoft/deberta-v3-base"', '"builtin"'), name, "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_first_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the first command with fewer reviews and one epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMDB_DIR", raising=False)
    arguments = shlex.split(blocks(README)[0].split("python train.py ")[1])
    fewer = "--epochs 1 --train-reviews 40 --validation-reviews 40 --test-reviews 40"
    train.main([*arguments, *fewer.split()])
    printed = capsys.readouterr().out
    assert "test: accuracy" in printed
    assert "weights: builtin" in printed


def few_reviews(*arguments: Any, split: bool = True) -> Splits:
    """Returns a few reviews of each split of load_splits; some test reviews serve as unlabelled ones."""
    splits = quick_splits(*arguments)
    few = [frame.groupby("sentiment").head(6).reset_index(drop=True) for frame in splits[:3]]
    few[1] = few[1] if split else few[1][:0]
    return Splits(*few, splits.test.tail(9).assign(sentiment=UNKNOWN).reset_index(drop=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_valid_flags_and_values(command: str):
    script, *arguments = shlex.split(command)[1:]
    if script == "eval.py":
        parse_flags({"eval.py": EvalOptions}, arguments, description="")
    elif "--help" not in arguments and "--resume" not in arguments:
        resolve(arguments, train.TABLES)


def shortened(arguments: list[str]) -> list[str]:
    """Returns the flags that make a run of `arguments` short: one epoch of a few reviews."""
    short = ["--epochs", "1", "--train-reviews", "8", "--batch-size", "4", "--accumulation", "1"]
    short += ["--rank", "8"] if "--rank" in arguments else []  # at most the width of the tiny model, which is 12
    short += ["--adapter-size", "8"] if "houlsby" in arguments else []
    short += ["--skipped-words", "0"] if "tv" in arguments else []  # their vocabulary has a few words
    short += ["--min-count", "1"] if "--min-count" in arguments else []
    for flag in ("--validation-reviews", "--test-reviews"):
        short += [flag, "4"] if flag in arguments else []
    return short


@pytest.mark.parametrize("command", DIFFERENT.values())
def test_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs each command, shortened, with tiny weights and built-in reviews; commands that are equal then run once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.options.load_splits", few_reviews)
    script, *arguments = shlex.split(command)[1:]
    name = arguments[arguments.index("--model") + 1] if "--model" in arguments else "bert"
    weights = str(tiny_weights(tmp_path / "weights", name)) if name in ENCODERS else "none"
    replaced = {"DIR": "demo", "imdb": "demo", "FOLDER": weights, "OUT": "out", "runs/NAME": "runs/made"}
    replaced |= {"FILE": "reviews.csv", "DIR_OR_ID": weights}
    (tmp_path / "reviews.csv").write_text("review,label\ngood film,1\nbad film,0\n")
    arguments = [replaced.get(argument, argument) for argument in arguments]
    if "--teacher" in arguments:  # in place of a run, the built-in linear model
        first, *rest = arguments[(place := arguments.index("--teacher")) :]
        names = list(itertools.takewhile(lambda argument: not argument.startswith("--"), rest))
        del arguments[place : place + len([first, *names])]
    place = arguments.index("--word-vectors") + 1 if "--word-vectors" in arguments else 0
    if arguments[place].startswith("runs/"):  # of a published row, whose weights are not here
        arguments[place] = "glove.txt"
    (tmp_path / "glove.txt").write_text("the " + "0.1 " * 299 + "0.2\n")
    (tmp_path / "testData.tsv").write_text('id\treview\n"1_9"\t"good"\n')
    short = shortened(arguments)
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 0
        return
    if script == "train.py" and "--resume" not in arguments:
        train.main([*arguments, "--weights", weights, *short])
        return
    method = "lora" if "--base" in arguments else "none"
    train.main(["--model", name, "--peft", method, "--weights", weights, "--data", "demo", "--name", "made", *short])
    if script == "train.py":
        (tmp_path / "runs/made/result.json").unlink()
        train.main(arguments)
    else:
        if "runs/OTHER" in arguments:
            shutil.copytree("runs/made", "runs/OTHER")
        evaluate(arguments)


def test_no_file_names_the_shared_folder():
    shared = "../" + "shared"
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".md", ".txt", ".toml", ".json") and not SKIPPED & set(path.parts):
            assert shared not in path.read_text(encoding="utf-8"), path


def test_only_the_converter_unpickles():
    for path in [*ROOT.glob("*.py"), *SOURCES]:
        text = path.read_text(encoding="utf-8")
        if path.name == "old_pickle.py":  # its unpickler accepts data only: tests/test_word_vectors.py
            continue
        assert not re.search(r"\bimport pickle\b", text), path
        calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text.replace("torch.load(weights_only=True)", ""))
        assert all("weights_only=True" in call for call in calls), path
        assert not calls or path.name == "weight_files.py"


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
    """One epoch of the three; 2,500 of the 16,000 training reviews and 200 of the 4,000 validation reviews."""
    monkeypatch.delenv("IMDB_DIR", raising=False)
    command = "--model deberta --peft lora --data demo --epochs 1 --train-reviews 2500 --validation-reviews 200"
    train.main([*command.split(), "--test-reviews", "100", "--name", "first", "--runs", str(tmp_path)])
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(QUESTIONS))
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "first"), "--predict", str(questions), "--out", "-"])
    answers = [row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert dict(zip(QUESTIONS, answers, strict=True)) == QUESTIONS
