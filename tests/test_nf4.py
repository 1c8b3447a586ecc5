"""4-bit weights: the table of values, the loop, bitsandbytes, every method, runs."""

from statistics import NormalDist

import pytest
import reference
import torch
from conftest import ENCODERS, GOLDEN, adapt, fail_at, tiny, token_batch
from memory_account import resident_bytes
from safetensors.torch import load_file
from test_quant import V3_BASE, assert_trains_as_dequantized
from torch.nn import Linear

import peft
import train
from data.checked import read_json
from data.hub import ADAPTER
from data.runs import Run
from eval import main as evaluate
from eval import settings_of
from nn.attribution import token_effects
from nn.checkpoint import load_pretrained, save_pretrained
from nn.deberta import Deberta
from nn.nf4 import BLOCK, CONSTANTS, DYNAMIC, NF4, NF4Linear, dequantize_nf4, quantize_blocks, quantize_nf4
from nn.quant import (
    Int8Embedding,
    Int8Linear,
    describe_products,
    form_of,
    quantizable,
    quantize,
    quantize_int8,
    quantize_rows,
    quantized_weights,
)
from nn.runtime import choose_machine, describe_memory
from peft.classifier import Scorer


def golden_matrix() -> torch.Tensor:
    """Returns the matrix of tests/golden/make_nf4.py: exact in fp32, with 262 blocks, one of them of zeros."""
    i = torch.arange(131 * 128)
    w = (i * 7919 % 2003 + i * 104729 % 1999 + i * 1299709 % 1997 - 2990) / 1024
    w = w.view(131, 128) * (1 + torch.arange(131) % 7)[:, None] / 4
    w[5, :64] = 0
    return w


def layer_of(out: int = 11, width: int = 24) -> NF4Linear:
    torch.manual_seed(0)
    layer = Linear(width, out)
    return NF4Linear(quantize_nf4(layer.weight.detach()), out, width, layer.bias)


def test_the_values_are_quantiles_of_the_normal_distribution():
    """Appendix E: 7 quantiles below zero and 8 above it, of δ … 1/2 and 1/2 … 1 - δ, with δ = (1/32 + 1/30) / 2."""
    delta = (1 / 32 + 1 / 30) / 2
    below = [NormalDist().inv_cdf(delta + (0.5 - delta) * i / 7) for i in range(7)]
    above = [-NormalDist().inv_cdf(delta + (0.5 - delta) * i / 8) for i in range(8)]
    values = sorted([*below, 0.0, *above])
    expected = torch.tensor(values, dtype=torch.float64) / max(values)
    torch.testing.assert_close(NF4.double(), expected, rtol=0, atol=1e-6)


def test_equals_the_loop():
    """37 · 450 weights have 261 blocks, which is more than 256, and a last block of 10 weights."""
    w = torch.randn(37, 450, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 37)[:, None]
    w[3, :200] = 0
    expected = reference.nf4_weight(w.double(), NF4.double().tolist(), DYNAMIC.double().tolist())
    torch.testing.assert_close(dequantize_nf4(quantize_nf4(w), (37, 450)).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("values", [NF4, DYNAMIC], ids=["weights", "constants"])
def test_the_lower_of_two_equally_near_values_is_taken(values):
    middle = (values[:-1] + values[1:]) / 2
    codes, _ = quantize_blocks(torch.cat([middle, torch.ones(1)]), len(values), values)
    assert codes.tolist() == [list(range(len(values)))]


def test_codes_constants_and_values_equal_bitsandbytes():
    golden, w = load_file(GOLDEN / "nf4.safetensors"), golden_matrix()
    assert torch.equal(NF4, golden["NF4"])
    torch.testing.assert_close(DYNAMIC, golden["DYNAMIC"], rtol=1e-6, atol=0)
    found = quantize_nf4(w)
    assert torch.equal(found.weight, golden["weight"])
    assert torch.equal(found.absmax, golden["absmax"])
    torch.testing.assert_close(found.scale, golden["scale"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.offset, golden["offset"], rtol=1e-6, atol=0)
    torch.testing.assert_close(dequantize_nf4(found, (131, 128))[[0, 5, 130]], golden["rows"], rtol=1e-6, atol=1e-7)


def test_the_error_on_normal_weights_is_twelve_times_that_of_8_bits():
    """The relative errors are 0.092 and 0.0077."""
    w = torch.randn(512, 768, generator=torch.Generator().manual_seed(0))
    q, s = quantize_rows(w)
    four, eight = dequantize_nf4(quantize_nf4(w), (512, 768)), q.float() * s[:, None]
    assert ((four - w).norm() / w.norm()).item() == pytest.approx(0.092, abs=0.001)
    assert ((eight - w).norm() / w.norm()).item() == pytest.approx(0.0077, abs=0.0002)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_product_is_that_of_the_dequantized_weight_in_the_precision_of_the_context(mixed, dtype):
    small, x = layer_of(), torch.randn(3, 7, 24)
    plain = Linear(24, 11)
    plain.weight.data, plain.bias.data = small.dequantized(), small.bias.data
    if not mixed:
        small, plain, x = small.to(dtype), plain.to(dtype), x.to(dtype)
        plain.weight.data = small.dequantized().to(dtype)  # its constants have this dtype as well
    results = []
    for layer in (small, plain):
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=mixed and dtype != torch.float32):
            y = layer(x)
        results.append((y, torch.autograd.grad(y.float().square().sum(), x)[0]))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        bound = torch.finfo(dtype).eps * 4
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound * float(expected.detach().abs().max()))


def test_the_backward_passes_gradcheck():
    x = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer_of().product, x)


ADAPTED = [(name, "lora") for name in ENCODERS] + [
    ("bert", method) for method in peft.METHODS if method not in ("none", "lora")
]


@pytest.mark.parametrize(("name", "method"), ADAPTED)
def test_every_method_trains_on_4_bits(name, method):
    """Values and gradients equal those of the same adapter on a model with the dequantized weights.

    The model in 4 bits recomputes each layer in the backward pass.
    """
    torch.manual_seed(0)
    small = quantize(tiny(name), "nf4")
    small.checkpointing = True
    assert_trains_as_dequantized(small, tiny(name), method)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_rule_of_8_bits_selects_the_layers(name):
    model, other = quantize(tiny(name), "nf4"), quantize_int8(tiny(name))
    names = [key for key, module in model.named_modules() if isinstance(module, NF4Linear)]
    assert names == [key for key, module in other.named_modules() if isinstance(module, Int8Linear)]
    assert isinstance(model.embeddings.word, Int8Embedding)
    assert [form_of(x) for x in (model, other, tiny(name))] == ["nf4", "int8", "none"]


def test_loading_into_4_bits_equals_quantizing_and_saving_raises(tmp_path):
    save_pretrained(tiny("bert"), tmp_path / "plain")
    batch, again = token_batch([7, 4]), quantize(tiny("bert"), "nf4").eval()
    small = load_pretrained(tmp_path / "plain", quantize="nf4").eval()
    assert torch.equal(small(*batch), again(*batch))
    half = load_pretrained(tmp_path / "plain", dtype=torch.bfloat16, quantize="nf4").eval()
    first = "layers.0.attention.query"
    assert torch.equal(half.get_submodule(first).dequantized(), small.get_submodule(first).dequantized())
    with pytest.raises(ValueError, match="NF4 weights are not saved; load the model without --quantize nf4"):
        save_pretrained(small, tmp_path / "small")
    save_pretrained(quantize_int8(tiny("bert")), tmp_path / "eight")
    with pytest.raises(ValueError, match="holds 8-bit weights, which are not quantized to NF4"):
        load_pretrained(tmp_path / "eight", quantize="nf4")


def test_the_linear_weights_of_deberta_v3_base_take_4_127_bits_each():
    """4 + 8/64 + 32/(64 · 256) bits, and one mean a layer. The word table stays in 8 bits."""
    with torch.device("meta"):
        model = Deberta(Deberta.Config(**V3_BASE))
    shapes = [model.get_submodule(name).weight.shape for name in quantizable(model)]
    linear = [n * k for n, k in shapes if n != V3_BASE["vocab_size"]]
    formula = sum(n // 2 + n // BLOCK + 4 * -(-n // (BLOCK * CONSTANTS)) + 4 for n in linear)
    quantize(model, "nf4")
    layers = [module for module in model.modules() if isinstance(module, NF4Linear)]
    counted = sum(b.numel() * b.element_size() for module in layers for b in module.buffers())
    assert sum(linear) == 84_934_656
    assert counted == formula
    assert 8 * counted / sum(linear) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    table = model.embeddings.word
    assert quantized_weights(model)[1] == counted + table.weight.numel() + 4 * table.scale.numel()
    assert resident_bytes(model) / 2**20 < 145


def test_the_memory_line_and_the_products():
    model = adapt(quantize(tiny("bert", hidden_size=384, feed_forward_size=1536), "nf4"), "lora")
    assert "(4 bits save 12)" in describe_memory(model)
    assert describe_products(torch.device("cpu"), mixed=True, form="nf4").startswith("4-bit weights: stored in NF4")


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merging_into_4_bits_raises(method):
    with pytest.raises(ValueError, match=r"cannot be merged into 4-bit weights.* merge it into the backbone"):
        peft.merge(adapt(quantize(tiny("bert"), "nf4"), method))


def test_integrated_gradients_are_complete():
    model, (ids, _) = quantize(tiny("bert"), "nf4").eval(), token_batch([11])
    found = token_effects(model, ids[0], torch.ones(11, dtype=torch.bool), 0, 1)
    assert found.error <= 0.01 * abs(found.difference)


def test_a_run_in_4_bits_is_resumed_scored_and_merged(small_run, tmp_path, capsys, monkeypatch):
    train.main([*small_run, "--quantize", "nf4", "--name", "whole"])
    assert "4-bit weights: stored in NF4" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        fail_at(7, patch)
        with pytest.raises(SystemExit):
            train.main([*small_run, "--quantize", "nf4"])
    run = tmp_path / "runs/small"
    train.main(["--resume", str(run)])
    whole, resumed = (load_file(tmp_path / "runs" / name / "best" / ADAPTER) for name in ("whole", "small"))
    for key, tensor in whole.items():
        assert torch.equal(resumed[key], tensor), key
    capsys.readouterr()
    with pytest.raises(ValueError, match="--quantize nf4 is for frozen weights"):
        train.main(["--model", "bert", "--weights", "none", "--quantize", "nf4"])
    accuracy = read_json(run / "result.json")["validation"]["accuracy"]
    evaluate(["--run", str(run), "--quantize", "nf4"])
    assert f"validation: accuracy {accuracy:.4f}" in capsys.readouterr().out
    opened, cpu = Run.open(run), choose_machine("cpu", "fp32")
    options = settings_of(opened).options
    forms = [form_of(Scorer.of_run(opened, options, cpu, form).model) for form in ("run", "int8", "none")]
    assert forms == ["nf4", "int8", "none"]
    evaluate(["--run", str(run), "--merge", str(tmp_path / "plain")])
    assert form_of(load_pretrained(tmp_path / "plain")) == "none"
