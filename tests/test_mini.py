"""The built-in checkpoint, data/weights/deberta-mini: its files, its tokenizer and its outputs."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN

import peft
from data.checked import read_json
from data.files import write_json
from data.hub import BUILTIN, BUILTIN_SINCE
from data.options import Tables
from data.resolve import resolve
from data.runs import Run
from data.tokenization import load_tokenizer
from losses import OBJECTIVES
from nn import MODELS
from nn.checkpoint import load_pretrained
from peft import METHODS
from peft.classifier import check_backbone

MIB = 2**20


def test_files_are_the_published_ones_and_smaller_than_20_mib():
    golden = read_json(GOLDEN / "mini.json")
    found = {name: hashlib.sha256((BUILTIN / name).read_bytes()).hexdigest() for name in golden["sha256"]}
    assert found == golden["sha256"]
    assert sum(path.stat().st_size for path in BUILTIN.iterdir()) < 20 * MIB
    assert (BUILTIN / "README.md").is_file()


def test_tokenizer_and_config_agree():
    tokenizer, config = load_tokenizer(BUILTIN), read_json(BUILTIN / "config.json")
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.pad_id == config["pad_token_id"]
    assert tokenizer.id_of("[MASK]") is not None


def test_ids_and_hidden_states_equal_transformers():
    golden, tokenizer = read_json(GOLDEN / "mini.json"), load_tokenizer(BUILTIN)
    assert list(tokenizer.encode(golden["texts"], 64)) == golden["input_ids"]
    model, (ids, mask) = load_pretrained(BUILTIN).eval(), tokenizer.encode_batch(golden["texts"], 64)
    with torch.no_grad():
        h = model.encode(model.embed(ids, mask), mask)[:, 0]
    torch.testing.assert_close(h, torch.tensor(golden["hidden"]), rtol=1e-4, atol=1e-4)


def test_runs_and_adapters_record_the_name_builtin(tmp_path: Path):
    """Checks that they record the name instead of a path, so that they still work after the project is moved."""
    tables = Tables(models=MODELS, methods=METHODS, objectives=OBJECTIVES)
    settings, _ = resolve(["--weights", "builtin", "--peft", "lora"], tables)
    origins = settings.origins
    assert settings.options.weights == "builtin"
    assert (origins["weights"], origins["rank"]) == ("command line", "built-in weights")
    model = peft.apply(load_pretrained("builtin"), "lora", rank=2)
    peft.save_adapter(model, tmp_path, "builtin")
    assert read_json(tmp_path / "adapter_config.json")["base_model_name_or_path"] == "builtin"


@pytest.mark.parametrize("started", ["2026-11-25T09:59:00+00:00", "2026-11-25T10:16:00+00:00"])
def test_adapters_of_earlier_built_in_weights_are_refused(tmp_path: Path, started: str, capsys):
    """Their runs recorded no digests of the weights."""
    model, run = peft.apply(load_pretrained("builtin"), "lora", rank=2), Run(tmp_path)
    write_json(run.config_file, {"started": started})
    if started > BUILTIN_SINCE:
        check_backbone(run, model, base="")
        return
    with pytest.raises(
        ValueError, match=r"model\.safetensors is not as it was when .*; check out the commit .* --base"
    ):
        check_backbone(run, model, base="")
    check_backbone(run, model, base=str(BUILTIN))
    assert "model.safetensors is not as it was" in capsys.readouterr().out


def test_only_the_classifier_and_the_pooler_are_newly_initialized():
    model = load_pretrained(BUILTIN)
    assert {name.split(".")[0] for name in model.newly_initialized} == {"pooler", "classifier"}
