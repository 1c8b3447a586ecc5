"""README tells the truth: its commands run, its paths and equations exist, its table is what the results make."""

import ast
import re
import shlex

import pytest
from conftest import ENCODERS, ROOT, tiny_weights

import train
from data import Splits, load_splits
from data.flags import parse_flags
from data.imdb import UNKNOWN
from data.options import resolve
from data.runs import with_tables
from eval import Options as EvalOptions
from eval import main as evaluate

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)\n```", README, re.DOTALL)
COMMANDS = [c for c in re.findall(r"`(python (?:train|eval)\.py [^`]*)`", README) if " --" in c]
NUMBERS = "epochs|batch-size|accumulation|train-reviews|validation-reviews|test-reviews"
REPLACED = re.compile(rf" --({NUMBERS}|name|seed|data|weights) \S+")  # by test_commands_run, with the same for all
DIFFERENT = {REPLACED.sub("", command): command for command in reversed(COMMANDS)}  # the first of those alike


def definitions(path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_two_commands_are_all_the_set_up():
    assert BLOCKS == [
        "pip install -r requirements.txt && python train.py --model deberta --peft lora",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]
    names = [line.split("==")[0].split(">")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert names == [
        "torch",
        "numpy",
        "pandas",
        "beautifulsoup4",
        "safetensors",
        "tokenizers",
        "huggingface_hub",
        "tqdm",
    ]


def test_every_path_in_the_file_map_is_there_and_none_is_forgotten():
    table = README.split("## Where things are")[1].split("## ")[0]
    named = {path for path in re.findall(r"`([\w./]+)`", table) if "." in path or path.endswith("/")}
    assert all((ROOT / path).exists() for path in named)
    ours = {
        str(path.relative_to(ROOT))
        for folder in ("nn", "peft", "losses", "data")
        for path in (ROOT / folder).glob("*.py")
    }
    assert ours <= named


def test_every_equation_is_where_the_index_says():
    rows = re.findall(r"^\| .* \| `([\w/.]+)` `(\w+)` \| `([\w/.]+)` `(\w+)` \|$", README, re.MULTILINE)
    assert len(rows) == README.split("## Where each equation is")[1].count("\n|") - 2
    for code, name, test, function in rows:
        assert name in definitions(ROOT / code), (code, name)
        assert function in definitions(ROOT / test), (test, function)


def test_the_tables_are_what_the_results_make():
    assert with_tables(README) == README
    openings = re.findall(r"<!-- (?:results|bench)[\w -]* -->\n(.*)", README)
    assert len(openings) > 2
    assert all(line.startswith("| ") for line in openings)


def test_the_main_command(tmp_path, monkeypatch, capsys):
    """The first command itself, with fewer reviews and one epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMDB_DIR", raising=False)
    arguments = shlex.split(BLOCKS[0].split("python train.py ")[1])
    fewer = "--epochs 1 --train-reviews 40 --validation-reviews 40 --test-reviews 40"
    train.main([*arguments, *fewer.split()])
    printed = capsys.readouterr().out
    assert "test: accuracy" in printed
    assert "weights: builtin" in printed


def few_reviews(*arguments, **keywords) -> Splits:
    """What load_splits gives, a few of each; some of the test's stand in for unlabelled ones."""
    splits = load_splits(*arguments, **keywords)
    parts = [frame.groupby("sentiment").head(6).reset_index(drop=True) for frame in splits[:3]]
    return Splits(*parts, splits.test.tail(9).assign(sentiment=UNKNOWN).reset_index(drop=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_and_values_are_known(command):
    script, *arguments = shlex.split(command)[1:]
    if script == "eval.py":
        parse_flags(EvalOptions, arguments, "")
    elif "--help" not in arguments and "--resume" not in arguments:
        resolve(arguments)


@pytest.mark.parametrize("command", DIFFERENT.values())
def test_commands_run(command, tmp_path, monkeypatch, capsys):
    """Each command in README, with its placeholders and hub ids replaced by what is here, for one short epoch; those
    that are the same then, once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "load_splits", few_reviews)
    monkeypatch.setattr("eval.load_splits", few_reviews)
    arguments = shlex.split(command)[1:]
    script, arguments = arguments[0], arguments[1:]
    name = arguments[arguments.index("--model") + 1] if "--model" in arguments else "bert"
    weights = str(tiny_weights(tmp_path / "weights", name)) if name in ENCODERS else "none"
    places = {"DIR": "demo", "FOLDER": weights, "OUT": "out", "runs/NAME": "runs/made", "imdb": "demo"}
    places |= {"runs/NAME runs/OTHER": "runs/made", "glove.txt": "glove.txt"}
    (tmp_path / "glove.txt").write_text("the " + "0.1 " * 299 + "0.2\n")
    arguments = [places.get(argument, argument) for argument in arguments]
    short = ["--epochs", "1", "--train-reviews", "8", "--batch-size", "4", "--accumulation", "1"]
    short += ["--rank", "8"] if "--rank" in arguments else []  # no more than the tiny model is wide
    for part in ("--validation-reviews", "--test-reviews"):
        short += [part, "4"] if part in arguments else []
    if script == "train.py" and "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 0
        return
    if script == "train.py" and "--resume" not in arguments:
        train.main([*arguments, "--weights", weights, *short])
        return
    train.main(["--model", name, "--weights", weights, "--data", "demo", "--name", "made", *short])
    (tmp_path / "testData.tsv").write_text('id\treview\n"1_9"\t"good"\n')
    if script == "train.py":
        (tmp_path / "runs/made/result.json").unlink()
        train.main(arguments)
    else:
        evaluate(arguments)


def test_nothing_outside_ci_names_the_shared_folder():
    shared = "../" + "shared"
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".md", ".txt", ".toml", ".json") and not {".git", "runs", ".venv"} & set(path.parts):
            assert shared not in path.read_text(encoding="utf-8"), path


def test_no_pickle_but_in_the_one_converter():
    for path in [
        *ROOT.glob("*.py"),
        *(p for folder in ("nn", "peft", "losses", "data") for p in (ROOT / folder).glob("*.py")),
    ]:
        text = path.read_text(encoding="utf-8")
        if path.name == "old_pickle.py":  # its unpickler admits data alone: tests/test_word_vectors.py
            continue
        assert "import pickle" not in text, path
        calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text.replace("torch.load(weights_only=True)", ""))
        assert all("weights_only=True" in call for call in calls), path
        assert not calls or path.name == "hub.py"
