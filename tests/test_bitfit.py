"""BitFit: what is trained, how many parameters, the start, and a file without a bias."""

import copy

import pytest
import torch
from conftest import tiny, token_batch
from safetensors.torch import load_file, save_file

from data.checked import read_json
from data.hub import ADAPTER, ADAPTER_CONFIG
from nn.quant import quantize
from peft import apply, load_adapter, save_adapter

L, D, F = 2, 12, 17
HEAD = (D * D + D) + (2 * D + 2)  # pooler and classifier


def test_starts_at_the_base_and_trains_the_biases_of_the_formula():
    model, batch = tiny("bert").eval(), token_batch([7, 4])
    before = model(*batch)
    apply(model, "bitfit")
    torch.testing.assert_close(model(*batch), before, rtol=1e-6, atol=1e-6)  # rounding: another product
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith("bias") or name.split(".")[0] in model.HEAD for name in trained)
    assert sum(trained.values()) == L * (7 * D + F) + D + HEAD
    replaced = model.adapter["replaced"]
    assert len(replaced) == L * 8 + 1  # those of the head are the head's
    assert not any(name.split(".")[0] in model.HEAD for name in replaced)


def test_the_gradient_of_a_bias_is_the_sum_of_those_of_its_outputs():
    """A change of b by δ shifts the output at each token by δ."""
    model, batch, outputs = apply(tiny("bert"), "bitfit").eval(), token_batch([7, 4]), []
    layer = model.layers[0].attention.value
    layer.register_forward_hook(lambda module, inputs, y: (y.retain_grad(), outputs.append(y))[0])
    model(*batch).square().sum().backward()
    expected = torch.zeros(D)
    for row in outputs[0].grad:
        for token in row:
            expected += token
    torch.testing.assert_close(layer.bias.grad, expected, rtol=1e-5, atol=1e-6)
    assert layer.weight.grad is None


def test_a_file_holds_the_biases_and_every_one_is_required(tmp_path):
    save_adapter(apply(tiny("bert"), "bitfit"), tmp_path, "base")
    config, tensors = read_json(tmp_path / ADAPTER_CONFIG), load_file(tmp_path / ADAPTER)
    assert (config["peft_type"], config["modules_to_save"]) == ("BITFIT", ["classifier", "pooler"])
    inside = {key for key in tensors if "pooler" not in key and "classifier" not in key}
    assert len(inside) == 8 * L + 1
    assert all(key.endswith(".bias") for key in inside)
    del tensors["base_model.model.bert.embeddings.LayerNorm.bias"]
    save_file(tensors, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match=r"missing base_model\.model\.bert\.embeddings\.LayerNorm\.bias"):
        load_adapter(tiny("bert"), tmp_path)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_an_adapter_over_quantized_weights_fits_the_plain_ones(form, tmp_path):
    """A quantized weight is not replaced: the file has the biases only."""
    plain = tiny("bert")
    names = {}
    for name, model in (("plain", copy.deepcopy(plain)), ("quantized", quantize(copy.deepcopy(plain), form))):
        save_adapter(apply(model, "bitfit"), tmp_path / name, "base")
        names[name] = load_file(tmp_path / name / ADAPTER).keys()
        saved = read_json(tmp_path / name / ADAPTER_CONFIG)["modules_to_save"]
        assert not any("query" in module for module in saved)
    assert names["plain"] == names["quantized"]
    load_adapter(plain, tmp_path / "quantized")
