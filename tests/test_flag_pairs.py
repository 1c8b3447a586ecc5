"""Two flags together, of train.py and eval.py: both are honoured, or one is refused by name."""

import shutil
from pathlib import Path

import pytest
from conftest import tiny_tokenizer
from test_scored_files import outcome
from test_train import resolved

import train
from data import Source, load_table
from data.checked import read_json
from data.demo import reviews
from data.files import in_shell, write_text
from data.flags import check_different
from data.hub import CONFIG, LINEAR, TRUNCATION
from data.labels import SENTIMENT
from data.resolve import resolve
from data.tokenization import load_tokenizer
from data.windows import Truncation, read_truncation
from eval import main as evaluate
from nn.dropout import Dropout
from peft.build import build_model


def table(path: Path, count: int) -> Path:
    """Writes a table of built-in reviews with the columns id, review and sentiment."""
    rows = [f"{key}\t{text}\t{label}" for key, text, label in list(reviews("train"))[:count]]
    write_text(path, "\n".join(["id\treview\tsentiment", *rows]) + "\n")
    return path


def test_reinitialized_layers_under_an_adapter_are_scored_and_resumed(small_run: list[str], tmp_path: Path, capsys):
    """They are trained, so that best/base is not the backbone of --weights."""
    train.main([*small_run, "--reinit-layers", "1", "--epochs", "1"])
    result = read_json(tmp_path / "runs/small/result.json")
    assert "on 600 reviews" in outcome(["--run", "runs/small"], capsys)
    again = outcome(["--weights", "runs/small/best", "--data", "demo"], capsys)
    assert f"accuracy {result['test']['accuracy']:.4f} on 600 reviews" in again
    for flags in (["--run", "runs/small"], ["--weights", "runs/small/best", "--text", "fine"]):
        with pytest.raises(ValueError, match="best contains its backbone, which was trained with it; leave out"):
            evaluate([*flags, "--base", str(tmp_path / "weights")])
    train.main(["--resume", "runs/small"])


@pytest.mark.parametrize(("flags", "message"), [
    ("--peft lora --weights builtin --quantize int8 --reinit-layers 1", "--reinit-layers trains layers that"),
    ("--model nb_linear --word-vectors train", "--word-vectors are for networks; nb_linear has one weight per n-gram"),
    ("--peft lora --no-train-vectors", "--train-vectors has no effect here: --peft lora freezes word embeddings"),
    ("--peft lora --train-vectors", "--train-vectors has no effect here: --peft lora freezes word embeddings"),
    ("--weights builtin --peft head --head-learning-rate .01 --learning-rate .1", "--learning-rate has no effect here"),
    ("--loss mixed --tokens-per-batch 90 --unlabelled-batch 4 --batch-size 2", "--batch-size has no effect here: "),
    ("--peft prompt --layer-decay 0.5", "--layer-decay has no effect here: --peft prompt trains no layers"),
    ("--model cnn --loss tv --dropout 0.4", "--dropout has no effect here: only the regions are trained"),
    ("--model bert --loss tv --weights nowhere", "--loss tv is for --model cnn, not bert"),
    ("--loss mlm --label-column stars", "--label-column has no effect here: pretraining has no labels"),
    ("--peft lora --alpha 0", "--alpha 0 multiplies the update by 0"),
    ("--peft lora --lora-plus 0", "--lora-plus 0 keeps B at 0, where it starts"),
    ("--model nb_linear --precision bf16", "--precision has no effect here: nb_linear multiplies no matrices"),
    ("--model nb_linear --weights nowhere --unfreeze gradual", "--unfreeze has no effect here: nb_linear is one table"),
    ("--peft prompt --virtual-tokens 65537", "65,537 virtual tokens; at most 65,536 are possible"),
    ("--warmup 1.5", r"--warmup 1\.5 is neither a fraction below 1 nor a whole number of steps"),
    ("--peft lora --lora-dropout 1", r"lora_dropout 1.0 is outside \[0, 1\)"),
    ("--peft prefix --prefix-dropout 1", r"prefix_dropout 1.0 is outside \[0, 1\)"),
])  # fmt: skip
def test_flags_of_train_that_do_not_go_together(flags: str, message: str):
    with pytest.raises(ValueError, match=message):
        resolved(flags.split())


@pytest.mark.parametrize(("arguments", "noted"), [
    ("--model nb_linear", True), ("--model cnn", True), ("--model cnn --shape one_hot=false", False),
    ("--model gru", False),
])  # fmt: skip
def test_a_rate_of_dropout_without_effect_is_noted(arguments: str, noted: bool, capsys):
    tokenizer = tiny_tokenizer("wordlevel")
    settings = resolved([*arguments.split(), "--data", "demo", "--dropout", "0.9", "--classifier-dropout", "0.4"])
    rates = {m.p for m in build_model(settings, tokenizer).modules() if isinstance(m, Dropout)}
    assert rates == ({0.4} if noted else {0.4, 0.9})
    note = "note: --dropout has no effect: --classifier-dropout sets the only dropout of this"
    assert (note in capsys.readouterr().out) == noted


def test_a_continued_adapter_keeps_its_own_dropout(small_run: list[str], tmp_path: Path):
    train.main([*small_run, "--epochs", "1", "--lora-dropout", "0.25"])
    again = ["--model", "bert", "--weights", str(tmp_path / "runs/small/best"), "--dropout", "0.5"]
    again += ["--runs", str(tmp_path / "runs"), "--data", "demo", "--train-reviews", "64"]
    settings, _ = resolve(again, train.TABLES)
    model = build_model(settings, load_tokenizer(tmp_path / "weights"), SENTIMENT)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, Dropout)}
    assert {p for name, p in rates.items() if ".query." in name or ".value." in name} == {0.25}
    assert {p for name, p in rates.items() if ".query." not in name and ".value." not in name} == {0.5}


def test_a_shape_does_not_decide_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--shape pad_token_id has no effect: the vocabulary decides it"):
        train.main(["--model", "gru", "--data", "demo", "--shape", "hidden_size=16 pad_token_id=7"])


def test_a_checkpoint_has_no_defaults_of_a_vocabulary():
    options = resolved(["--model", "gru", "--weights", str(LINEAR)]).options
    assert (options.vocab_size, options.word_vectors) == (type(options).vocab_size, type(options).word_vectors)


def test_the_columns_of_a_test_file_beside_the_built_in_reviews(small_run: list[str], tmp_path: Path):
    """--data demo has no columns, but --test FILE has."""
    content = table(tmp_path / "test.tsv", 30).read_text(encoding="utf-8")
    write_text(tmp_path / "test.tsv", content.replace("review", "words", 1))
    train.main([*small_run, "--test", "test.tsv", "--text-column", "words", "--epochs", "1"])
    assert read_json(tmp_path / "runs/small/result.json")["test"]["count"] == 30


@pytest.mark.parametrize(("name", "content", "flags"), [
    ("reviews.jsonl", '{"text": "fine", "label": "positive"}\n', ["--quoting", "literal"]),
    ("reviews.json", '[{"text": "fine", "label": "positive"}]', ["--quoting", "literal"]),
])  # fmt: skip
def test_a_format_without_quotes_takes_no_style_of_quotes(tmp_path: Path, name: str, content: str, flags: list[str]):
    write_text(tmp_path / name, content)
    with pytest.raises(ValueError, match=r"--quoting has no effect on .*, which is JSON; leave it out"):
        evaluate(["--weights", str(LINEAR), "--data", str(tmp_path / name), *flags])
    of_run = Source(quoting="literal", of_run=("quoting",))  # it may have been trained on a table with quotes
    assert load_table(tmp_path / name, of_run)[0]["review"].tolist() == ["fine"]


def test_the_built_in_reviews_have_no_columns_to_score():
    with pytest.raises(ValueError, match="--text-column has no effect here: the built-in reviews are in no file"):
        evaluate(["--weights", str(LINEAR), "--data", "demo", "--text-column", "words"])


# ------------------------------------------------------------------------------------------------------ truncation


@pytest.fixture
def windowed(small_run: list[str], tmp_path: Path) -> list[str]:
    """The folder of a run over windows, the table of its test reviews, and the output of scoring them."""
    path = table(tmp_path / "test.tsv", 60)
    flags = "--max-length 7 --truncate windows --window-pooling max --window-stride 2 --learning-rate 0.05"
    train.main([*small_run, "--test", str(path), *flags.split()])
    return ["--data", str(path), "--precision", "fp32"]  # as the run; a checkpoint takes bf16 where it is fast


def test_a_run_and_its_checkpoints_cut_reviews_alike(windowed: list[str], tmp_path: Path, capsys):
    """best/ and the folder of --merge say how reviews were cut in training; flags replace single values."""
    own = Truncation(7, "windows", 2, "max")
    assert read_truncation(tmp_path / "runs/small/best") == own
    run = outcome(["--run", "runs/small", *windowed], capsys)
    assert outcome(["--weights", "runs/small/best", *windowed], capsys) == run
    assert outcome(["--run", "runs/small", "--truncate", "windows", *windowed], capsys) == run
    evaluate(["--run", "runs/small", "--merge", "merged"])
    assert outcome(["--weights", "merged", *windowed], capsys).split(", confusion")[1] == run.split(", confusion")[1]
    other = outcome(["--run", "runs/small", "--window-stride", "5", *windowed], capsys)
    assert outcome(["--weights", "runs/small/best", "--window-stride", "5", *windowed], capsys) == other != run
    longer = outcome(["--weights", "runs/small/best", "--max-length", "32", "--truncate", "head", *windowed], capsys)
    shutil.copytree("runs/small/best", "plain", ignore=shutil.ignore_patterns("SHA256SUMS", TRUNCATION))
    assert outcome(["--weights", "plain", "--max-length", "32", *windowed], capsys) == longer
    shutil.rmtree("runs/small/best")
    shutil.move("plain", "runs/small/best")  # as an older version left it: the run alone says how
    assert outcome(["--weights", "runs/small/best", *windowed], capsys) == run
    with pytest.raises(ValueError, match="--window-stride and --window-pooling are for --truncate windows"):
        evaluate(["--run", "runs/small", "--truncate", "head", "--window-stride", "5", *windowed])


@pytest.mark.parametrize(("values", "message"), [
    ('{"max_length": 0, "truncate": "head", "stride": 0, "pooling": "mean"}', "max_length 0 or stride 0 is too small"),
    ('{"max_length": 9, "truncate": "head", "stride": -1, "pooling": "mean"}', "max_length 9 or stride -1 is too"),
    ('{"max_length": 9, "truncate": "heed", "stride": 0, "pooling": "mean"}', "unknown truncate 'heed'"),
    ('{"max_length": 9, "truncate": "windows", "stride": 0, "pooling": "men"}', "unknown pooling 'men'"),
    ('{"max_length": "9", "truncate": "head", "stride": 0, "pooling": "mean"}', "max_length = '9' must be"),
    ('{"max_length": 9}', "its keys are max_length, not max_length, truncate, stride, pooling"),
    ("[]", "must be an object"),
])  # fmt: skip
def test_a_damaged_truncation_is_one_line(tmp_path: Path, values: str, message: str):
    write_text(tmp_path / TRUNCATION, values)
    with pytest.raises(ValueError, match=message):
        read_truncation(tmp_path)


# --------------------------------------------------------------------------------------------------------- outputs


def test_an_output_replaces_nothing_that_is_read(small_run: list[str], tmp_path: Path):
    path = table(tmp_path / "data/test.csv", 30)
    train.main([*small_run, "--test", str(path), "--epochs", "1"])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    run, best = ["--run", "runs/small"], ["--weights", "runs/small/best"]
    for flags in (
        [*run, "--errors", "2", "--out", str(path)],
        [*run, "--data", "data", "--errors", "2", "--out", "data/test.csv"],
        [*run, "--predict", str(path), "--out", "runs/small/config.json"],
        [*best, "--predict", str(path), "--out", f"runs/small/best/{CONFIG}"],
        ["--compare", "runs/small", "--out", "runs/small/result.json"],
    ):
        with pytest.raises(ValueError, match=r"--out .* would replace what is read from .*; name another file"):
            evaluate(flags)
    assert {file: file.read_bytes() for file in before} == before
    for _ in range(2):  # a result of eval.py in the folder of the run may be replaced
        evaluate([*run, "--errors", "2", "--out", "runs/small/mistakes.csv"])


def test_two_outputs_have_two_names(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--out and --plot are one file, .*a\.png; name two|--plot and --out are one"):
        evaluate(["--compare", "nb_linear@42", "--plot", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.png")])


@pytest.mark.parametrize("flags", [["--run", "runs/a", "runs/../runs/a"], ["--run", "runs/a", "runs/b", "runs/a/"]])
def test_a_run_is_no_ensemble_with_itself(flags: list[str]):
    with pytest.raises(ValueError, match=r"--run names .*runs/a/? twice; leave one out"):
        evaluate(flags)


def test_a_run_and_its_best_weights_are_one_teacher():
    with pytest.raises(ValueError, match=r"--teacher names runs/a/best twice; leave one out"):
        check_different(["runs/a", "runs/b/best", "runs/a/best"], "--teacher")
    check_different(["runs/a", "best", "runs/b/best"], "--teacher")


def test_a_command_takes_a_path_that_begins_with_a_dash():
    assert in_shell("-x/best") == "./-x/best"
    assert in_shell(Path("a b")) == "'a b'"
