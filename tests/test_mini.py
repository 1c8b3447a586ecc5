"""The built-in checkpoint, data/weights/deberta-mini."""

import hashlib

import torch
from conftest import GOLDEN

import peft
from data.options import resolve
from data.tokenization import load_tokenizer
from nn.checkpoint import load_pretrained
from nn.files import read_json
from nn.hub import BUILTIN

MIB = 2**20


def test_its_files_are_the_published_ones_and_small():
    golden = read_json(GOLDEN / "mini.json")
    found = {name: hashlib.sha256((BUILTIN / name).read_bytes()).hexdigest() for name in golden["sha256"]}
    assert found == golden["sha256"]
    assert sum(path.stat().st_size for path in BUILTIN.iterdir()) < 20 * MIB
    assert (BUILTIN / "README.md").is_file()


def test_tokenizer_and_config_fit():
    tokenizer, config = load_tokenizer(BUILTIN), read_json(BUILTIN / "config.json")
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.pad_id == config["pad_token_id"]
    assert tokenizer.id_of("[MASK]") is not None


def test_it_gives_what_transformers_gives():
    golden, tokenizer = read_json(GOLDEN / "mini.json"), load_tokenizer(BUILTIN)
    assert list(tokenizer.encode(golden["texts"], 64)) == golden["input_ids"]
    model, (ids, mask) = load_pretrained(BUILTIN).eval(), tokenizer.encode_batch(golden["texts"], 64)
    with torch.no_grad():
        h = model.encode(model.embed(ids, mask), mask)[:, 0]
    torch.testing.assert_close(h, torch.tensor(golden["hidden"]), rtol=1e-4, atol=1e-4)


def test_it_goes_by_its_name(tmp_path):
    """So that an adapter on it, and a run, find it in whatever place the project lies."""
    options, origins, _ = resolve(["--weights", "builtin", "--peft", "lora"])
    assert (options.weights, origins["weights"], origins["rank"]) == ("builtin", "command line", "built-in weights")
    peft.save_adapter(peft.apply(load_pretrained("builtin"), "lora", rank=2), tmp_path, "builtin")
    assert read_json(tmp_path / "adapter_config.json")["base_model_name_or_path"] == "builtin"


def test_only_the_classifier_starts_at_random():
    model = load_pretrained(BUILTIN)
    assert {name.split(".")[0] for name in model.fresh} == {"pooler", "classifier"}
