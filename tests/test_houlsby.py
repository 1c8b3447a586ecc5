"""Houlsby adapters: the equation, the start, the number of parameters, and files."""

import pytest
import torch
from conftest import adapt, tiny, token_batch
from reference import bottleneck
from safetensors.torch import load_file
from torch.nn import Linear

from data.checked import read_json
from data.files import write_json
from data.hub import ADAPTER, ADAPTER_CONFIG
from peft import apply, load_adapter, merge, save_adapter
from peft.houlsby import AdapterLinear

L, D, F, M = 2, 12, 17, 5
HEAD = (D * D + D) + (2 * D + 2)  # pooler and classifier
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


def test_equals_the_equation_with_gradients():
    torch.manual_seed(0)
    layer = AdapterLinear(Linear(3, 7).double().requires_grad_(False), 2)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base(x))
    own = [layer.down, layer.down_bias, layer.up, layer.up_bias]
    for parameter in own:
        parameter.data.normal_()
    plain = [p.detach().clone().requires_grad_() for p in own]
    expected = bottleneck(layer.base(x), *plain)
    torch.testing.assert_close(layer(x), expected, **EXACT)
    layer(x).square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(own, plain, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, **EXACT)


def test_a_bottleneck_of_fp32_follows_a_layer_of_bf16():
    layer = AdapterLinear(Linear(3, 7).bfloat16(), 2)
    for parameter in (layer.down, layer.down_bias, layer.up, layer.up_bias):
        parameter.data = torch.randn(parameter.shape)
    assert layer(torch.randn(4, 3).bfloat16()).dtype == torch.bfloat16


def test_a_bottleneck_without_a_unit_is_refused():
    with pytest.raises(ValueError, match="adapter_size 0 must be at least 1"):
        AdapterLinear(Linear(3, 7), 0)


def test_the_norm_of_a_head_belongs_to_the_head():
    model = apply(tiny("modernbert"), "houlsby", adapter_size=M)
    replaced = model.adapter["replaced"]
    assert any(name.startswith("layers.") for name in replaced)
    assert not any(name.split(".")[0] in model.HEAD for name in replaced)


def test_starts_at_the_base_with_the_parameters_of_the_formula():
    model, batch = tiny("bert").eval(), token_batch([7, 4])
    before = model(*batch)
    apply(model, "houlsby", adapter_size=M)
    torch.testing.assert_close(model(*batch), before, rtol=1e-6, atol=1e-6)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == L * (4 * D * M + 6 * D + 2 * M) + 2 * D + HEAD


def test_the_first_matrix_starts_with_the_standard_deviation_of_the_paper():
    torch.manual_seed(0)
    assert AdapterLinear(Linear(100, 100), 50).down.std().item() == pytest.approx(0.01, rel=0.1)


def test_unsuitable_sizes_and_merging_raise():
    for size in (0, D):
        with pytest.raises(ValueError, match=f"--adapter-size {size} is outside 1 … 11: the width is 12"):
            apply(tiny("bert"), "houlsby", adapter_size=size)
    with pytest.raises(ValueError, match="houlsby cannot be merged into the weights"):
        merge(adapt(tiny("bert"), "houlsby"))


def test_a_file_holds_adapters_and_norms(tmp_path):
    save_adapter(adapt(tiny("bert"), "houlsby"), tmp_path, "base")
    config, tensors = read_json(tmp_path / ADAPTER_CONFIG), load_file(tmp_path / ADAPTER)
    assert (config["peft_type"], config["adapter_size"]) == ("HOULSBY", M)
    layer = "base_model.model.bert.encoder.layer.1"
    assert tensors[f"{layer}.attention.output.dense.houlsby_down.weight"].shape == (M, D)
    assert tensors[f"{layer}.output.dense.houlsby_up.bias"].shape == (D,)
    assert tensors[f"{layer}.output.LayerNorm.weight"].shape == (D,)
    assert len(tensors) == L * (2 * 4 + 2 * 2) + 2 + 4
    del config["adapter_size"]
    write_json(tmp_path / ADAPTER_CONFIG, config)
    with pytest.raises(ValueError, match=r"adapter_config\.json lacks adapter_size"):
        load_adapter(tiny("bert"), tmp_path)
