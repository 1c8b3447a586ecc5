"""IA³: the equation, the number of parameters, merging, precision and huggingface/peft's layout."""

import pytest
import torch
from conftest import adapt, tiny, token_batch
from reference import ia3_linear
from safetensors.torch import load_file, save_file
from torch.nn import Linear

from data.checked import read_json
from data.files import write_json
from data.hub import ADAPTER, ADAPTER_CONFIG
from data.options import Options
from nn.optim import parameter_groups
from nn.quant import quantize_int8
from peft import apply, is_adapter_parameter, load_adapter, merge, save_adapter, unmerge
from peft.adapters import add_method
from peft.files import module_name
from peft.ia3 import IA3Linear, wrap
from peft.rules import matches
from peft.wrapped import linear_layers, wrapped

L, D, F = 2, 12, 17
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


@pytest.mark.parametrize("scales_input", [False, True])
def test_equals_the_equation_with_gradients(scales_input):
    torch.manual_seed(0)
    base, x = Linear(5, 7).double(), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    layer = IA3Linear(base.requires_grad_(False), scales_input)
    assert torch.equal(layer(x), base(x))
    layer.l.data.normal_()
    l_plain = layer.l.detach().flatten().requires_grad_()
    x_plain = x.detach().clone().requires_grad_()
    expected = ia3_linear(x_plain, base.weight, base.bias, l_plain, scales_input)
    torch.testing.assert_close(layer(x), expected, **EXACT)
    layer(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.l.grad.flatten(), l_plain.grad, **EXACT)
    torch.testing.assert_close(x.grad, x_plain.grad, **EXACT)
    torch.testing.assert_close(layer.merged()(x), expected, **EXACT)


@pytest.mark.parametrize(("name", "outputs"), [("bert", 2 * D), ("deberta", 2 * D), ("modernbert", 3 * D)])
def test_starts_at_the_base_with_the_parameters_of_the_formula(name, outputs):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    before = model(*batch)
    apply(model, "ia3")
    torch.testing.assert_close(model(*batch), before, rtol=1e-6, atol=1e-6)
    own = [p.numel() for key, p in model.named_parameters() if is_adapter_parameter(key)]
    assert sum(own) == L * (outputs + F)


def test_unmerging_restores_the_exact_weights_even_of_a_zero():
    model = adapt(tiny("bert"), "ia3")
    model.layers[0].attention.value.l.data[3] = 0
    before = {key: p.clone() for key, p in model.named_parameters()}
    unmerge(merge(model))
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    with pytest.raises(ValueError, match="IA³ cannot be merged into 8-bit weights; merge it into the backbone in"):
        merge(adapt(quantize_int8(tiny("bert")), "ia3"))


def test_mixed_precision_rounds_the_product_and_not_the_scale():
    """bf16 rounds 1.003 to 1, but 100 · 1.003 not to 100."""
    base = Linear(1, 1, bias=False)
    base.weight.data.fill_(100.0)
    layer = IA3Linear(base, scales_input=False)
    layer.l.data.fill_(1.003)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.ones(1, 1))
    assert (y.dtype, y.item()) == (torch.bfloat16, 100.5)


def test_the_scales_have_no_weight_decay():
    groups = parameter_groups(apply(tiny("bert"), "ia3"), Options(weight_decay=0.1), is_adapter_parameter)
    assert {group["weight_decay"] for group in groups if group["part"] == "adapter"} == {0.0}


def test_files_have_huggingface_pefts_layout(tmp_path):
    save_adapter(adapt(tiny("bert"), "ia3"), tmp_path, "base")
    config, tensors = read_json(tmp_path / ADAPTER_CONFIG), load_file(tmp_path / ADAPTER)
    assert config["peft_type"] == "IA3"
    feed_forward = ["0.output.dense", "1.output.dense"]
    assert config["target_modules"] == [*feed_forward, "attention.self.key", "attention.self.value"]
    assert config["feedforward_modules"] == feed_forward
    layer = "base_model.model.bert.encoder.layer.1"
    assert tensors[f"{layer}.attention.self.key.ia3_l"].shape == (D, 1)
    assert tensors[f"{layer}.output.dense.ia3_l"].shape == (1, F)
    assert len(tensors) == 3 * L + 4


def test_the_targets_of_a_file_are_its_own(tmp_path):
    """huggingface/peft's default for BERT, `output.dense`, is also the name of a layer after attention."""
    save_adapter(adapt(tiny("bert"), "ia3"), tmp_path, "base")
    targets = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
    write_json(tmp_path / ADAPTER_CONFIG, read_json(tmp_path / ADAPTER_CONFIG) | targets)
    with pytest.raises(ValueError, match=r"\(2 problems\): missing .*layer\.0\.attention\.output\.dense\.ia3_l"):
        load_adapter(tiny("bert"), tmp_path)
    scales = {f"base_model.model.bert.encoder.layer.{n}.attention.output.dense.ia3_l": torch.ones(1, D) for n in (0, 1)}
    save_file(load_file(tmp_path / ADAPTER) | scales, tmp_path / ADAPTER)
    model = load_adapter(tiny("bert"), tmp_path)
    inputs = [name for name, layer in wrapped(model) if layer.scales_input]
    assert inputs == [f"layers.{n}.{part}" for n in (0, 1) for part in ("attention.output", "feed_forward.down")]


def test_a_pattern_of_a_file_that_takes_long_is_refused(tmp_path):
    save_adapter(adapt(tiny("bert"), "ia3"), tmp_path, "base")
    write_json(tmp_path / ADAPTER_CONFIG, read_json(tmp_path / ADAPTER_CONFIG) | {"feedforward_modules": "(a+)+$"})
    with pytest.raises(ValueError, match=r"feedforward_modules: the pattern \(a\+\)\+\$ repeats a group"):
        load_adapter(tiny("bert"), tmp_path)


@pytest.mark.parametrize(
    ("targets", "inputs"),
    [
        (["value", "key", "intermediate.dense"], ["value"]),
        (["query", "key", "value", "attention.output.dense", "intermediate.dense"], ["intermediate.dense"]),
    ],
)
def test_feed_forward_modules_are_among_the_targets_with_equal_names(targets: list[str], inputs: list[str], tmp_path):
    names = [n for n in linear_layers(tiny("bert")) if matches(module_name(tiny("bert"), n), targets)]
    chosen = [n for n in names if matches(module_name(tiny("bert"), n), inputs)]
    model = tiny("bert")
    add_method(model, "ia3", lambda: wrap(model, names, chosen))
    save_adapter(model, tmp_path, "base")
    config = read_json(tmp_path / ADAPTER_CONFIG)
    assert set(config["feedforward_modules"]) <= set(config["target_modules"])
    again = load_adapter(tiny("bert"), tmp_path)
    assert (again.adapter["names"], again.adapter["inputs"]) == (names, chosen)
