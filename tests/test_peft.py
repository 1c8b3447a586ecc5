"""What every method of the table must do, on every encoder."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, adapt, tiny, token_batch
from safetensors.torch import load_file, save_file

import peft
from nn import MODELS
from nn.checkpoint import load_pretrained, save_pretrained
from nn.files import read_json, write_json
from peft import ADAPTER, ADAPTER_CONFIG, METHODS, load_adapter, merge, save_adapter

ADAPTERS = [name for name, entry in METHODS.items() if entry.apply is not None]
both = pytest.mark.parametrize(("name", "method"), [(n, m) for n in MODELS for m in ADAPTERS])


def train_steps(model, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        ids, mask = token_batch([7, 5, 3], seed=step)
        torch.nn.functional.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()


@both
def test_frozen_stays_and_trainable_moves(name, method):
    model = tiny(name)
    peft.apply(model, method)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_steps(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    assert model.classifier.weight.requires_grad
    assert model.pooler.dense.weight.requires_grad


@both
def test_what_is_random_is_trained(name, method):
    model = tiny(name)
    model.fresh = frozenset({"embeddings.word.weight"})
    assert peft.apply(model, method).embeddings.word.weight.requires_grad
    assert peft.trains_backbone(model)
    assert not peft.trains_backbone(peft.apply(tiny(name), method))


@pytest.mark.parametrize("method", ADAPTERS)
def test_saved_and_loaded_in_a_new_process(method, tmp_path):
    """Every encoder, in one other process."""
    ids, mask = token_batch([7, 4])
    expected = {}
    for name in MODELS:
        folder = tmp_path / name
        save_pretrained(tiny(name), folder / "base")
        model = adapt(load_pretrained(folder / "base"), method)
        train_steps(model)
        save_adapter(model, folder / "adapter", str(folder / "base"))
        expected[name] = model.eval()(ids, mask)
    program = f"""
import torch, peft
from nn.checkpoint import load_pretrained

ids, mask, out = torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()}), {{}}
for name in {list(MODELS)}:
    folder = {str(tmp_path)!r} + "/" + name
    out[name] = peft.load_adapter(load_pretrained(folder + "/base"), folder + "/adapter").eval()(ids, mask)
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert all(torch.equal(found[name], expected[name]) for name in MODELS)


@both
def test_padding_changes_nothing(name, method):
    model = adapt(tiny(name), method).eval()
    ids, mask = token_batch([9, 4])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :4], mask[1:, :4]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [m for m in ADAPTERS if METHODS[m].merge])
def test_merged_equals_unmerged(name, method):
    model, batch = adapt(tiny(name), method).eval(), token_batch([9, 4])
    before, plain = model(*batch), tiny(name)
    torch.testing.assert_close(merge(model)(*batch), before, rtol=1e-5, atol=1e-6)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(model)


def test_files_are_those_of_huggingface_peft(tmp_path):
    model = peft.apply(tiny("deberta"), "lora", rank=2)
    save_adapter(model, tmp_path, "some/base")
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "SEQ_CLS", 2)
    assert config["target_modules"] == ["query_proj", "value_proj"]
    assert config["modules_to_save"] == ["classifier", "pooler"]
    tensors = load_file(tmp_path / ADAPTER)
    layer = "base_model.model.deberta.encoder.layer.1.attention.self.query_proj"
    assert tensors[f"{layer}.lora_A.weight"].shape == (2, 12)
    assert tensors[f"{layer}.lora_B.weight"].shape == (12, 2)
    assert {"base_model.model.pooler.dense.weight", "base_model.model.classifier.bias"} < tensors.keys()
    assert len(tensors) == 2 * 2 * 2 + 4


def test_target_names_that_mean_these_layers_alone(tmp_path):
    """BERT calls three different layers `dense`, the pooler's among them."""
    save_adapter(peft.apply(tiny("bert"), "lora", targets="all-linear"), tmp_path, "base")
    targets = read_json(tmp_path / ADAPTER_CONFIG)["target_modules"]
    assert targets == ["intermediate.dense", "output.dense", "self.key", "self.query", "self.value"]
    load_adapter(tiny("bert"), tmp_path)


def test_a_file_that_does_not_fit_is_refused_whole(tmp_path):
    save_adapter(peft.apply(tiny("bert"), "lora"), tmp_path, "base")
    tensors = load_file(tmp_path / ADAPTER)
    del tensors["base_model.model.classifier.weight"]
    save_file(tensors | {"extra": torch.zeros(1)}, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match=r"2 problems.*missing base_model.model.classifier.weight; surplus extra"):
        load_adapter(tiny("bert"), tmp_path)
    with pytest.raises(ValueError, match="none of its target_modules"):
        load_adapter(tiny("deberta"), tmp_path)
    write_json(tmp_path / ADAPTER_CONFIG, read_json(tmp_path / ADAPTER_CONFIG) | {"peft_type": "IA3"})
    with pytest.raises(ValueError, match="'IA3' is not supported"):
        load_adapter(tiny("bert"), tmp_path)


def test_wrong_calls_say_what_is_known():
    with pytest.raises(ValueError, match="unknown method 'lorra'; known: none, lora"):
        peft.apply(tiny("bert"), "lorra")
    with pytest.raises(ValueError, match="lora has no option ranks; it has: rank"):
        peft.apply(tiny("bert"), "lora", ranks=3)
    with pytest.raises(ValueError, match="carries a lora adapter already"):
        peft.apply(peft.apply(tiny("bert"), "lora"), "lora")
