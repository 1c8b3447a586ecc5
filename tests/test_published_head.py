"""The head of masked language modelling in published checkpoints, against transformers' logits (golden/make_mlm.py)."""

import re
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file
from test_pretraining import FakeTokenizer

from data.checked import read_json
from data.files import write_json
from losses import mlm
from losses.mlm import MLMOptions
from nn.checkpoint import load_pretrained, save_pretrained

FOLDERS = sorted(path.name for path in (GOLDEN / "mlm").iterdir())
DENSE, BIAS = "cls.predictions.transform.dense.weight", "cls.predictions.bias"


def prepared(folder: Path) -> torch.nn.Module:
    """Loads a checkpoint and adds the head of masked language modelling."""
    model = load_pretrained(folder).eval()
    mlm.prepare(model, MLMOptions(), FakeTokenizer())
    return model


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_of_the_published_head(name: str, capsys: pytest.CaptureFixture[str]):
    model, expected = prepared(GOLDEN / "mlm" / name), load_file(GOLDEN / "mlm" / name / "expected.safetensors")
    assert capsys.readouterr().out == f"MLM head: that of {GOLDEN / 'mlm' / name}\n"
    ids, mask = expected["input_ids"], expected["mask"]
    h = model.encode(model.embed(ids, mask), mask)
    logits = mlm.predict(model, model.pretraining.head, h[mask])
    torch.testing.assert_close(logits, expected["logits"][mask], rtol=1e-5, atol=1e-5)


def changed(folder: Path, change) -> Path:
    """Writes the golden BERT with other tensors."""
    source = GOLDEN / "mlm" / "bert"
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(BIAS), "has none"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(7)}), f"{BIAS} of .* have other shapes"),
        (lambda tensors: tensors.update({DENSE: torch.zeros(5, 12)}), f"{DENSE} of .* have other shapes"),
        (
            lambda tensors: tensors.update({"cls.predictions.decoder.weight": torch.zeros(61, 12)}),
            "cls.predictions.decoder.weight of .* is not the table of word embeddings",
        ),
    ],
)
def test_other_heads_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message: str):
    head = prepared(changed(tmp_path, change)).pretraining.head
    out = capsys.readouterr().out
    assert out.startswith("MLM head: newly initialized: ")
    assert re.search(message, out)
    assert (head.bias == 0).all()


@pytest.mark.parametrize(
    ("decoder_bias", "classifier", "used"), [(False, False, True), (False, True, False), (None, False, False)]
)
def test_a_head_of_modernbert_may_have_no_bias(tmp_path: Path, decoder_bias, classifier: bool, used: bool):
    """A classifier has W and LN of its own, and then they are those of no masked language model."""
    source = GOLDEN / "mlm" / "modernbert"
    tensors = load_file(source / "model.safetensors")
    bias = tensors.pop("decoder.bias")
    if classifier:
        tensors |= {"classifier.weight": torch.zeros(2, 12), "classifier.bias": torch.zeros(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", read_json(source / "config.json") | {"decoder_bias": decoder_bias})
    model, expected = prepared(tmp_path), load_file(source / "expected.safetensors")
    ids, mask = expected["input_ids"], expected["mask"]
    logits = mlm.predict(model, model.pretraining.head, model.encode(model.embed(ids, mask), mask)[mask])
    assert torch.allclose(logits, expected["logits"][mask] - bias, rtol=1e-5, atol=1e-5) == used


def test_a_copy_of_the_table_is_the_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def tie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()

    assert prepared(changed(tmp_path, tie)).pretraining.head.bias.abs().max() > 0
    assert "that of" in capsys.readouterr().out


def test_a_checkpoint_of_ours_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_pretrained(load_pretrained(GOLDEN / "mlm" / "bert"), tmp_path)
    prepared(tmp_path)
    assert capsys.readouterr().out == f"MLM head: newly initialized: {tmp_path} has none\n"
