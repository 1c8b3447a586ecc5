"""Runs of train.py: the files that they write, options, defaults, and errors of a user in one line."""

import dataclasses
import json
import re
from contextlib import nullcontext
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fail_at, final_weights, same, tiny_weights
from safetensors.torch import load_file, save_file

import train
from data import runs
from data.batches import Batch
from data.checked import read_json
from data.corpus import Corpus
from data.errors import NotFinite, clean_exit
from data.flags import field_names
from data.hub import LINEAR
from data.meter import Meter, step_loss
from data.options import Options, Settings
from data.resolve import absolute_paths, find_data, repeats_batches, resolve
from data.runs import Run
from data.tokenization import load_tokenizer
from eval import main as evaluate
from nn import MODELS
from nn.checkpoint import load_pretrained
from nn.dropout import Dropout
from nn.optim import parameter_groups, schedule
from peft.classifier import load_run


def resolved(arguments: list[str]) -> Settings:
    return resolve(arguments, train.TABLES)[0]


def changed(settings: Settings, **values) -> Settings:
    """Returns the settings with other general options."""
    return settings._replace(options=dataclasses.replace(settings.options, **values))


def test_large_numbers_are_printed_in_full(small_run, monkeypatch, capsys):
    monkeypatch.setattr(Meter, "record", lambda _: {"train_loss": 0.123456, "tokens_per_second": 1_513_743})
    train.main([*small_run, "--epochs", "1"])
    assert "train_loss 0.1235, tokens_per_second 1,513,743, val_loss" in capsys.readouterr().out


def test_pretraining_from_the_built_in_weights_does_not_use_the_rates_of_fine_tuning():
    for objective in ("mlm", "rtd"):
        settings = resolved(["--model", "deberta", "--loss", objective, "--weights", "builtin"])
        assert (settings.options.learning_rate, settings.options.warmup) == (1e-4, 0.02)
        assert "built-in weights" not in settings.origins.values()


def test_the_logged_loss_of_a_step_is_the_mean_over_its_passes():
    passes = []
    for count, loss in ((3, 1.0), (1, 5.0)):
        ids, rows = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        passes.append((Batch(ids, ids == 0, rows, rows), torch.tensor(loss), {}))
    assert step_loss(passes) == 2.0


def test_a_run_writes_its_documented_files(small_run, tmp_path, capsys):
    train.main(small_run)
    folder = tmp_path / "runs" / "small"
    shown = capsys.readouterr().out
    assert "trained: 950 of" in shown
    assert "test: accuracy" in shown
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "log.jsonl", "tokenizer", "best", "state", "result.json", ".lock",
        "validation.probabilities.safetensors", "test.probabilities.safetensors",
    }  # fmt: skip
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    assert config["machine"].endswith("float32")  # of --precision fp32
    kept = load_file(folder / "test.probabilities.safetensors")
    assert kept["probabilities"].shape == (600, 2)
    hits = kept["probabilities"].argmax(1) == kept["labels"]
    assert hits.double().mean().item() == pytest.approx(result["test"]["accuracy"], abs=1e-12)
    assert config["origins"]["batch_size"] == "command line"
    assert config["origins"]["learning_rate"] == "method"
    assert config["origins"]["seed"] == "default"
    assert config["versions"]["torch"] == version("torch")
    assert {"command", "commit", "dirty", "machine", "started"} < config.keys()
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert {"train_loss", "train_acc", "val_loss", "val_acc", "tokens_per_second"} < epochs[0].keys()
    assert result["validation"]["count"] == 100
    assert result["test"]["count"] == 600
    assert result["validation"]["accuracy"] == max(event["val_acc"] for event in epochs)
    assert sorted(path.name for path in (folder / "best").iterdir()) == [
        "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "truncation.json",
    ]  # fmt: skip


def test_validation_and_test_reviews_can_be_fewer(small_run, tmp_path):
    counts = ["--epochs", "1", "--train-reviews", "20", "--validation-reviews", "30", "--test-reviews", "50"]
    found = []
    for seed in ("1", "2"):
        train.main([*small_run, *counts, "--name", seed, "--seed", seed])
        found.append(read_json(tmp_path / "runs" / seed / "result.json"))
        assert (found[-1]["validation"]["count"], found[-1]["test"]["count"]) == (30, 50)
        assert sum(found[-1]["test"]["confusion"][0]) == 25  # half of each label


def test_starting_from_a_run_with_the_same_seed_gives_a_warning(small_run, tmp_path, capsys):
    first = [*small_run, "--peft", "none", "--epochs", "1", "--validation-reviews", "20", "--test-reviews", "20"]
    train.main([*first, "--name", "first"])
    again = [*first, "--weights", str(tmp_path / "runs" / "first" / "best"), "--name"]
    for seed, warned in (("42", True), ("43", False)):
        capsys.readouterr()
        train.main([*again, seed, "--seed", seed])
        assert ("saw the same batches under the same dropout masks" in capsys.readouterr().out) == warned
    for further, repeated in (([], True), (["--train-reviews", "32"], False), (["--max-length", "9"], False)):
        assert repeats_batches(resolved([*again, "third", *further]).options) == repeated


@pytest.mark.parametrize(("counts", "ways"), [((8, 8), "or more --epochs"), ((8, 2), "--class-weights balanced")])
def test_labels_that_are_never_predicted_are_warned_of_once(counts, ways, capsys):
    labels = np.repeat([0, 1], counts)
    splits = SimpleNamespace(labels=("bad", "good"), train=pd.DataFrame({"sentiment": labels}))
    options = SimpleNamespace(class_weights="none")
    t = SimpleNamespace(
        entry=SimpleNamespace(pretraining=False), model=None, machine=None, interrupt=SimpleNamespace(check=None),
        held_out=Corpus.from_rows([[1]] * len(labels), labels=labels, pad_id=0), splits=splits,
        settings=SimpleNamespace(options=options), never=[],
    )  # fmt: skip
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        for predicted in (0, 0, 1, 0):
            patch.setattr(train, "score", lambda *_, c=predicted: np.eye(2)[np.full(len(labels), c)])
            train.validate(t)
            shown.append(capsys.readouterr().out)
    assert "no validation review gets the label good; try another --learning-rate" in shown[0]
    assert shown[0].endswith(f"{ways}\n")
    assert shown[1] == ""
    assert "the label bad;" in shown[2]
    assert shown[3] == shown[0]


def test_the_seed_determines_the_weights(small_run, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train.main([*small_run, "--epochs", "1", "--name", name, "--seed", seed])
    a, b, c = (final_weights(tmp_path / "runs" / name) for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_random_weights_are_all_trained_and_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    entry = train.MODELS["deberta"]
    shape = entry.shape | {"hidden_size": 12, "num_layers": 1, "feed_forward_size": 17}
    monkeypatch.setitem(train.MODELS, "deberta", entry._replace(shape=shape))
    arguments = "--weights none --peft lora --data demo --train-reviews 64 --epochs 1 --vocab-size 300 --name r"
    train.main(arguments.split())
    assert "warning: random weights are all trained" in capsys.readouterr().out
    run = Run.open("runs/r")
    assert read_json(run.best / "adapter_config.json")["base_model_name_or_path"] == "base"
    model, _ = load_run(run, torch.device("cpu"), "none")
    state = load_file(run.state_file)
    assert torch.equal(model.embeddings.word.weight, state["model.embeddings.word.weight"])
    assert torch.equal(model.layers[0].attention.query.A, state["model.layers.0.attention.query.A"])


def test_full_fine_tuning_saves_a_model_directory(small_run, tmp_path):
    train.main([*small_run, "--peft", "none", "--epochs", "1"])
    assert sorted(path.name for path in (tmp_path / "runs/small/best").iterdir()) == [
        "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "truncation.json",
    ]  # fmt: skip


def test_eval_scores_predicts_and_answers(small_run, tmp_path, capsys):
    train.main(small_run)
    result = read_json(tmp_path / "runs/small/result.json")
    capsys.readouterr()
    evaluate(["--run", "runs/small", "--precision", "fp32"])
    assert f"test: accuracy {result['test']['accuracy']:.4f} on 600 reviews" in capsys.readouterr().out
    rows = [f'"{i}_{rating}"\t"review number {i}"' for i, rating in enumerate((9, 2, 10, 1))]
    (tmp_path / "testData.tsv").write_text("\n".join(["id\treview", *rows]) + "\n")
    evaluate(["--run", "runs/small", "--predict", "testData.tsv", "--out", "out/predictions.csv"])
    header, *rows = (line.split(",") for line in (tmp_path / "out/predictions.csv").read_text().splitlines())
    assert header == ["id", "label", "p_negative", "p_positive"]
    for _, label, negative, positive in rows:
        assert float(negative) + float(positive) == pytest.approx(1, abs=2e-6)
        assert label == ("positive" if float(positive) > float(negative) else "negative")
    evaluate(["--run", "runs/small", "--predict", "testData.tsv", "--submission", "--out", "out/submission.csv"])
    lines = (tmp_path / "out/submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", "0_9", "1_2", "2_10", "3_1"]
    assert {line.split(",")[1] for line in lines[1:]} <= {"0", "1"}
    assert "testData.tsv: accuracy" in capsys.readouterr().out
    evaluate(["--run", "runs/small", "--text", "A wonderful <b>little</b> film."])
    assert capsys.readouterr().out.startswith(("positive (", "negative ("))


def test_an_adapter_is_merged_into_a_plain_checkpoint(small_run, tmp_path):
    train.main([*small_run, "--epochs", "1"])
    evaluate(["--run", "runs/small", "--merge", "plain"])
    whole = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "truncation.json"}
    assert {path.name for path in (tmp_path / "plain").iterdir()} == whole
    ids = torch.arange(1, 9)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    adapted, _ = load_run(Run.open("runs/small"), torch.device("cpu"), "none")
    torch.testing.assert_close(load_pretrained("plain").eval()(ids, mask), adapted(ids, mask), rtol=1e-5, atol=1e-6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--merge mine exists and contains .*; name a new folder"):
        evaluate(["--run", "runs/small", "--merge", "mine"])
    with pytest.raises(ValueError, match=r"--merge plain exists and contains config\.json"):
        evaluate(["--run", "runs/small", "--merge", "plain"])
    for path in (tmp_path / "plain").iterdir():
        path.unlink()
    evaluate(["--run", "runs/small", "--merge", "plain"])
    assert {path.name for path in (tmp_path / "plain").iterdir()} == whole


def test_patience_stops_early(small_run, tmp_path):
    train.main(
        [*small_run, "--epochs", "9", "--patience", "1", "--learning-rate", "1e-9", "--head-learning-rate", "1e-9"]
    )
    assert len(read_json(tmp_path / "runs/small/result.json")["history"]) == 2


def test_rates_groups_and_schedule(small_run):
    settings = resolved([*small_run, "--head-learning-rate", "7e-3"])
    model = train.build_model(settings, load_tokenizer(settings.options.weights))
    groups = parameter_groups(model, settings.options, train.peft.is_adapter_parameter)
    assert [group["part"] for group in groups] == ["adapter", "head", "head"]
    assert {(group["peak"], group["weight_decay"]) for group in groups} == {(5e-4, 0.01), (7e-3, 0.01), (7e-3, 0.0)}
    assert settings.origins["head_learning_rate"] == "command line"
    factors = [schedule(step, 10, 0.2) for step in range(10)]
    assert factors == [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert schedule(0, 1, 0.0) == 1.0


def test_the_built_in_reviews_are_too_short_for_bf16(monkeypatch, tmp_path):
    monkeypatch.delenv("IMDB_DIR", raising=False)
    for given, found in (
        (["--data", "demo"], ("fp32", "built-in reviews")),
        (["--data", "demo", "--precision", "auto"], ("auto", "command line")),
        (["--data", str(tmp_path)], ("auto", "default")),
    ):
        settings, _ = find_data(resolved(given), train.TABLES)
        assert (settings.options.precision, settings.origins["precision"]) == found


def test_word_networks_have_defaults_for_the_built_in_reviews(monkeypatch, tmp_path):
    monkeypatch.delenv("IMDB_DIR", raising=False)
    for name, entry in ((name, entry) for name, entry in MODELS.items() if entry.tokenizer == "wordlevel"):
        settings, _ = find_data(resolved(["--model", name, "--epochs", "3"]), train.TABLES)
        assert settings.options.epochs == 3
        assert settings.options.min_count == entry.demo["min_count"] < entry.training["min_count"]
        assert settings.origins["min_count"] == "built-in reviews"
        settings, _ = find_data(resolved(["--model", name, "--data", str(tmp_path)]), train.TABLES)
        assert settings.options.min_count == entry.training["min_count"]
        assert settings.origins["min_count"] == "model"


@pytest.mark.parametrize(
    "flags",
    [
        "--clip -1",
        "--weight-decay -100",
        "--patience -1",
        "--peft lora --lora-plus -1",
        "--loss mixed --vat-weight -1",
        "--loss rtd --rtd-weight -1",
    ],
)
def test_a_negative_number_is_refused(flags: str):
    with pytest.raises(ValueError, match=r"^--[a-z-]+ -[0-9.]+ is negative$"):
        resolved(flags.split())


def test_layers_of_a_frozen_backbone_are_not_initialized_again():
    """Only the adapter is saved: the model that is validated would not be the one in best/."""
    adapter = str(LINEAR.parent / "deberta-mini-imdb")
    with pytest.raises(ValueError, match=r"--reinit-layers changes a backbone, which the adapter .* leaves frozen"):
        resolved(["--weights", adapter, "--reinit-layers", "1"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model gru --weights W --min-count 3", "--min-count has no effect here: W has a vocabulary of its own"),
        ("--model bert --weights W --vocab-size 9", "--vocab-size has no effect here: W has a vocabulary"),
        ("--model gru --weights W --word-vectors glove.txt", "--word-vectors has no effect here: W has word vectors"),
        ("--model cnn --no-whiten-vectors", "--whiten-vectors has no effect here: it is for --word-vectors"),
        ("--model gru --weights W --min-count 1", "--min-count has no effect here: W has a vocabulary of its own"),
        ("--model bert --weights none --min-count 3", "--min-count has no effect here: bert reads subwords"),
        ("--loss mlm --classifier-dropout 0.5", "--classifier-dropout has no effect here: pretraining has no labels"),
        (
            "--loss tv --model cnn --no-train-vectors",
            "--train-vectors has no effect here: only the regions",
        ),
        ("--batch-size 7 --tokens-per-batch 500", "--batch-size has no effect here: --tokens-per-batch replaces it"),
        ("--peft prefix --prefix-init random --prompt-text x", "--prompt-text has no effect on virtual tokens that"),
        (
            "--peft prompt --prompt-init vocabulary --prompt-text x",
            "--prompt-text has no effect on virtual tokens that",
        ),
        (
            "--loss distill --distill-alpha 1 --label-smoothing 0.1",
            "--label-smoothing has no effect with",
        ),
        ("--model bert --weights none --head new", "--head has no effect here: it is for --weights"),
        ("--model bert --weights none --tokenizer hf5", "--tokenizer has no effect here: it is for --weights"),
        ("--loss mlm --patience 2", "--patience has no effect here: pretraining keeps the last epoch"),
        ("--loss mlm --class-weights balanced", "--class-weights has no effect here: pretraining has no labels"),
        (
            "--model gru --loss distill --distill-alpha 1 --class-weights balanced",
            "--class-weights has no effect here: --distill-alpha 1 leaves out the labels",
        ),
        ("--loss distill --distill-alpha 0 --teacher T", "--teacher has no effect here: --distill-alpha 0 leaves out"),
        ("--loss supcon --supcon-weight 0 --temperature 0.3", "--temperature has no effect here: --supcon-weight 0"),
        ("--loss rdrop_supcon --supcon-weight 1 --label-smoothing 0.1", "--label-smoothing has no effect here: --supc"),
        ("--loss adversarial --adversarial-weight 0 --radius 3", "--radius has no effect here: no loss of perturbed"),
        (
            "--loss mixed --vat-weight 0 --entropy-weight 0 --unlabelled-batch 8",
            "--unlabelled-batch has no effect here: no loss of unlabelled reviews",
        ),
        ("--loss mlm --test-reviews 5", "--test-reviews has no effect here: pretraining has no test score"),
    ],
)
def test_a_flag_without_effect_is_refused(flags: str, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        resolved(flags.split())


def test_flags_of_a_loss_that_has_a_weight_are_accepted():
    for flags in ("distill --distill-alpha 0 --teacher T --distill-unlabelled", "mixed --vat-weight 0 --radius 3"):
        resolved(f"--loss {flags}".split())
    for flags in ("supcon --supcon-weight 0 --projection 0", "supcon --supcon-weight 1 --label-smoothing 0"):
        resolved(f"--loss {flags}".split())
    for flags in ("--loss mixed --tokens-per-batch 90 --batch-size 2", "--peft head --learning-rate .1"):
        resolved(flags.split())
    for flags in ("--head-learning-rate .01 --reinit-layers 1", "--head-learning-rate .01 --weights none"):
        resolved(f"--peft head --learning-rate .1 {flags}".split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--peft prefix --prefix-hidden 0", "--prefix-hidden 0 must be at least 1"),
        ("--peft p_tuning --prompt-hidden 0", "--prompt-hidden 0 must be at least 1"),
        ("--peft lora --alpha 2e6", "LoRA alpha 2000000.0 is outside -1,000,000.0 … 1,000,000.0"),
        (
            "--peft lora --targets re:(",
            "LoRA target 're:(' is not a regular expression: missing ), unterminated subpattern",
        ),
    ],
)
def test_settings_that_no_file_could_have_are_refused(small_run, flags: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        train.main([*small_run, *flags.split()])


def test_columns_of_the_built_in_reviews_are_refused(monkeypatch):
    monkeypatch.delenv("IMDB_DIR", raising=False)
    with pytest.raises(ValueError, match="--text-column has no effect here: the built-in reviews are in no file"):
        find_data(resolved(["--data", "demo", "--text-column", "x"]), train.TABLES)


def test_other_frozen_weights_under_an_adapter_are_noticed(small_run, tmp_path, monkeypatch, capsys):
    """Neither a score nor a resumed training continues with them; --base uses them on purpose."""
    with monkeypatch.context() as patch:
        fail_at(7, patch)
        with pytest.raises(SystemExit):
            train.main(small_run)
    evaluate(["--run", "runs/small", "--text", "good"])
    path = tmp_path / "weights/model.safetensors"
    tensors = load_file(path)
    save_file({name: -x if "word_embeddings" in name else x for name, x in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model\.safetensors is not as it was when runs/small was trained; .* --base "
    ):
        evaluate(["--run", "runs/small", "--text", "good"])
    with pytest.raises(ValueError, match=r"model\.safetensors, of the frozen weights, changed since runs/small was"):
        train.main(["--resume", "runs/small"])
    with pytest.raises(ValueError, match=r"model\.safetensors is not as it was when runs/small was trained"):
        evaluate(["--weights", "runs/small/best", "--text", "good"])
    with pytest.raises(ValueError, match=r"model\.safetensors is not as it was when .*runs/small was trained"):
        train.main(["--model", "bert", "--weights", "runs/small/best", *small_run[6:], "--name", "again"])
    capsys.readouterr()
    evaluate(["--run", "runs/small", "--text", "good", "--base", "weights"])
    assert "warning: weights/model.safetensors is not as it was" in capsys.readouterr().out.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("content", ["[]", '{"options": []}'])
def test_a_config_in_the_working_directory_is_no_run(content: str, tmp_path, monkeypatch):
    """`none` and `builtin` name no folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(content)
    for weights in ("none", "builtin"):
        assert not repeats_batches(resolved(["--weights", weights]).options)


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_pretraining_continues_with_a_smaller_rate_than_it_starts_with(objective: str, tmp_path):
    given = ["--model", "bert", "--loss", objective]
    rates = [resolved([*given, *more]).options.learning_rate for more in ([], ["--weights", str(tmp_path)])]
    assert rates == [5e-4, 1e-4]
    own = [*given, "--weights", str(tmp_path), "--learning-rate", "2e-4"]
    assert resolved(own).options.learning_rate == 2e-4


def test_no_decay_on_biases_and_norms(small_run):
    settings = resolved([*small_run, "--peft", "none"])
    options, model = settings.options, train.build_model(settings, load_tokenizer(settings.options.weights))
    plain = {id(p) for group in parameter_groups(model, options) if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in plain) == (name.endswith("bias") or "norm" in name), name


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(small_run, tmp_path, monkeypatch):
    loss = train.OBJECTIVES["ce"].objective

    def poisoned(model, batch, options, calls=iter(range(99))):  # noqa: B008
        value, logits = loss(model, batch, options)
        return value * (float("nan") if next(calls) == 3 else 1), logits

    states, attempt = [], train.attempt_step
    monkeypatch.setattr(
        train, "attempt_step", lambda *a, **k: (states.append(torch.get_rng_state()), attempt(*a, **k))[1]
    )
    monkeypatch.setitem(train.OBJECTIVES, "ce", train.OBJECTIVES["ce"]._replace(objective=poisoned))
    message = r"the loss is nan at epoch 1/2, step 4; the state before it is saved; batch: [a-z]+_train_\d{4}"
    with pytest.raises(ValueError, match=message):
        train.main(small_run)
    saved = load_file(tmp_path / "runs/small/state/state.safetensors")
    assert torch.equal(saved["random.cpu"], states[-1])  # that before the step
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "runs/small"])
    assert (tmp_path / "runs/small/result.json").exists()


WRONG = {
    "unknown model 'debert'; known: cnn, lstm, gru, cnn_lstm": ["--model", "debert"],
    "unknown method 'lorra'; known: none, head, ": ["--peft", "lorra"],
    "unknown objective 'mse'; known: ce": ["--loss", "mse"],
    "LoRA target 'qurey' matches no linear layer": ["--targets", "qurey"],
    "LoRA rank 99 is outside": ["--rank", "99"],
    "--data names /nowhere, which does not exist": ["--data", "/nowhere"],
    "holds neither labeledTrainData.tsv": ["--data", "."],
    "is not a directory and does not look like a hub id": ["--weights", "/nowhere"],
    "unknown precision 'fp8'; known: auto, fp32": ["--precision", "fp8"],
    "device 'cuda:7' is not available": ["--device", "cuda:7"],
    "--epochs 0 must be at least 1": ["--epochs", "0"],
    "--epochs 100,000,000,000 is above 1,000,000": ["--epochs", "100000000000"],
    "--train-reviews 99999 is outside": ["--train-reviews", "99999"],
    "--test-reviews 1 is outside": ["--test-reviews", "1"],
    "max_length 2 leaves no room": ["--max-length", "2"],
    "unknown truncation 'middle'; known: head, tail, head+tail": ["--truncate", "middle"],
    "unknown tokenizer 'hf4'; known: published, hf5": ["--tokenizer", "hf4"],
    "--bag-weight has no effect here; it is for --loss mlm": ["--loss", "rtd", "--bag-weight", "1"],
    "--rank has no effect here; it is for --peft lora": ["--peft", "prompt", "--rank", "4"],
    "--lora-plus has no effect here; it is for --peft lora": ["--peft", "prefix", "--lora-plus", "16"],
    "--prompt-text has no effect here; it is for --peft prefix": ["--peft", "lora", "--prompt-text", "good"],
}


@pytest.mark.parametrize("message", WRONG)
def test_user_errors_are_one_line_with_exit_code_2_and_leave_no_run(small_run, message, tmp_path, capsys):
    if WRONG[message][0] == "--data":  # which is refused if it is given twice
        place = small_run.index("--data")
        small_run = small_run[:place] + small_run[place + 2 :]
    with pytest.raises(SystemExit) as stop, clean_exit():
        train.main([*small_run, *WRONG[message]])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs/small").exists()  # the corrected command has the same --name


def test_a_run_that_fails_by_a_defect_can_be_resumed(small_run, tmp_path, monkeypatch):
    fail_at(2, monkeypatch, RuntimeError)
    with pytest.raises(RuntimeError):
        train.main(small_run)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "runs/small"])
    assert (tmp_path / "runs/small/result.json").exists()


def test_a_start_that_fails_leaves_its_name_free(small_run, tmp_path, monkeypatch, capsys):
    """Unless the folder holds more than a minute's work."""
    folder = tmp_path / "runs/small"
    with pytest.raises(ValueError, match="LoRA rank 99"):  # after the tokenizer was saved
        train.main([*small_run, "--rank", "99"])
    assert not folder.exists()
    monkeypatch.setattr(runs, "LONG", 0.0)
    with pytest.raises(ValueError, match="LoRA rank 99"):
        train.main([*small_run, "--rank", "99"])
    printed = capsys.readouterr().out
    assert f"{folder} keeps what was done; --resume {folder} continues the run, another --name" in printed
    assert (folder / "tokenizer/tokenizer.json").exists()
    with pytest.raises(ValueError, match="LoRA rank 99"):  # a run that is resumed is never removed
        train.main(["--resume", str(folder)])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="LoRA rank 99"):
        train.main(["--resume", str(folder)])
    assert (folder / "config.json").exists()


def test_unknown_flags_and_values(capsys):
    for arguments, message in (
        (["--modle", "bert"], "unknown flag --modle; did you mean --model?"),
        (["--epochs", "two"], "--epochs: 'two' is not a whole number"),
    ):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_folder_that_exists_is_not_overwritten(small_run, tmp_path, capsys):
    train.main([*small_run, "--epochs", "1"])
    *_, validation, test, _ = capsys.readouterr().out.splitlines()
    before = (tmp_path / "runs/small/result.json").read_bytes()
    with pytest.raises(ValueError, match="small exists; continue with --resume"):
        train.main(small_run)
    capsys.readouterr()
    train.main(["--resume", "runs/small"])  # ends well, so that a job that starts itself again ends
    assert capsys.readouterr().out.splitlines()[:2] == [validation, test]
    with pytest.raises(ValueError, match="leave out --epochs"):
        train.main(["--resume", "runs/small", "--epochs", "3"])
    with pytest.raises(FileNotFoundError, match="nothing is not a run folder"):
        train.main(["--resume", "runs/nothing"])
    assert (tmp_path / "runs/small/result.json").read_bytes() == before


def test_another_architecture_is_named(small_run, tmp_path):
    tiny_weights(tmp_path / "deberta", "deberta")
    with pytest.raises(ValueError, match="holds a deberta-v2 model, which --model bert is not"):
        train.main([*small_run, "--weights", str(tmp_path / "deberta")])


def test_help_groups_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    explained = set(re.findall(r"^  (--[\w-]+)", shown, re.MULTILINE))
    for cls in train.TABLES.option_classes().values():
        assert {"--" + field.replace("_", "-") for field in field_names(cls)} <= explained
    assert "architecture: cnn, lstm" in shown
    for group in ("what:", "data:", "training:", "objective:", "LoRA:", "virtual tokens:", "machine:", "run:"):
        assert f"\n{group}" in shown


def test_layer_decay_dropout_and_reinitialized_layers(small_run):
    extra = ["--peft", "none", "--layer-decay", "0.5", "--learning-rate", "1e-3", "--classifier-dropout", "0.4"]
    settings = resolved([*small_run, *extra, "--reinit-layers", "1"])
    options = settings.options
    tokenizer, before = load_tokenizer(options.weights), load_pretrained(options.weights)
    model = train.build_model(settings, tokenizer)
    assert model.dropout.p == 0.4
    without = train.build_model(changed(settings, dropout=0.0), tokenizer)
    rates = {name: module.p for name, module in without.named_modules() if isinstance(module, Dropout)}
    assert rates.pop("dropout") == 0.4
    assert {*rates.values()} == {0.0}
    with pytest.raises(ValueError, match=r"dropout 1\.0 is outside \[0, 1\)"):
        train.build_model(changed(settings, dropout=1.0), tokenizer)
    assert torch.equal(model.layers[0].attention.query.weight, before.layers[0].attention.query.weight)
    assert not torch.equal(model.layers[1].attention.query.weight, before.layers[1].attention.query.weight)
    assert all(name.startswith("layers.1.") for name in model.newly_initialized)
    rate = {id(p): group["peak"] for group in parameter_groups(model, options) for p in group["params"]}
    assert rate[id(model.classifier.weight)] == 1e-3
    assert rate[id(model.layers[1].feed_forward.up.weight)] == 1e-3
    assert rate[id(model.layers[0].feed_forward.up.weight)] == 5e-4
    assert rate[id(model.embeddings.word.weight)] == 2.5e-4
    with pytest.raises(ValueError, match=r"--reinit-layers 3 is outside 0 … 2"):
        train.build_model(changed(settings, reinit_layers=3), tokenizer)


def test_token_ids_are_cached_for_each_setting(small_run, tmp_path):
    train.main([*small_run, "--epochs", "1", "--max-length", "20", "--name", "a"])
    first = {path.name for path in (tmp_path / "runs/.cache").glob("*.npy")}
    assert len(first) == 3  # training, validation, test
    train.main([*small_run, "--epochs", "1", "--max-length", "20", "--name", "b"])
    assert {path.name for path in (tmp_path / "runs/.cache").glob("*.npy")} == first
    train.main([*small_run, "--epochs", "1", "--max-length", "20", "--truncate", "tail", "--name", "c"])
    assert len(list((tmp_path / "runs/.cache").glob("*.npy"))) == 6
    a, b = (final_weights(tmp_path / "runs" / name) for name in "ab")
    assert same(a, b)


def test_the_precision_of_the_built_in_reviews_is_that_of_the_machine(small_run, tmp_path):
    train.main([argument for argument in small_run if argument not in ("--precision", "fp32")])
    config = read_json(tmp_path / "runs/small/config.json")
    assert config["options"]["precision"] == "fp32"
    assert config["machine"].endswith("float32")


def test_a_run_records_files_and_folders_by_absolute_paths(tmp_path, monkeypatch):
    """Hub ids stay as they are, and so do the words that name no folder, also beside a folder of that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("here", "none", "builtin"):
        (tmp_path / name).mkdir()
    names = ("weights", "base", "word_vectors", "train", "validation", "test")
    found = absolute_paths(dataclasses.replace(Options(), **dict.fromkeys(names, "here")))
    assert {getattr(found, name) for name in names} == {str(tmp_path / "here")}
    for words in ({"weights": "none"}, {"weights": "builtin"}, {"weights": "name/model"}, {"word_vectors": "none"}):
        assert absolute_paths(options := dataclasses.replace(Options(), **words)) == options


def test_of_several_losses_that_are_not_finite_the_first_is_named():
    """All passes are computed before."""
    w, computed = torch.ones((), requires_grad=True), []

    def batch(row: int) -> SimpleNamespace:
        made = SimpleNamespace(rows=torch.tensor([row]), total=1, counted=False)
        made.to = lambda device: made
        return made

    def objective(model, batch, options):
        computed.append(batch.rows.item())
        return w * (float("nan") if computed[-1] % 2 else 1.0), {}

    t = SimpleNamespace(
        entry=SimpleNamespace(additive=False, objective=objective),
        model=SimpleNamespace(),
        trainable=[w],
        settings=SimpleNamespace(objective=None),
        machine=SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext),
        scaler=SimpleNamespace(scale=lambda loss: loss),
        interrupt=SimpleNamespace(check=lambda: None),
    )
    with pytest.raises(NotFinite) as found:
        train.gradient(t, [batch(row) for row in range(4)], 4)
    assert found.value.rows == [1]
    assert computed == [0, 1, 2, 3]
