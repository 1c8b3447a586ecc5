import pytest
import torch
from conftest import ENCODERS, GOLDEN, adapt, tiny, tiny_weights, token_batch
from memory_account import resident_bytes
from safetensors.torch import load_file, save_file
from torch.nn import Embedding, LayerNorm, Linear

import peft
import train
from data.checked import read_json
from data.hub import CONFIG, WEIGHTS
from data.tokenization import load_tokenizer
from eval import main as evaluate
from nn import MODELS, Model, quant
from nn.checkpoint import load_pretrained, save_pretrained
from nn.deberta import Deberta
from nn.nf4 import NF4Linear, quantize_nf4
from nn.quant import (
    OUTLIER,
    PATHS,
    Int8Embedding,
    Int8Linear,
    Int8Matmul,
    aligned,
    describe_products,
    int8_product,
    is_quantized,
    quantizable,
    quantize,
    quantize_int8,
    quantize_rows,
)
from nn.quantized_linear import QuantizedLinear
from nn.runtime import num_parameters, num_weights
from nn.vectors import read_vectors
from peft import METHODS

IN, OUT, B, T = 24, 11, 3, 7
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF = 0.1  # of logits in half precision, relative error as one vector
V3_BASE = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "feed_forward_size": 3072,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ("p2c", "c2p"),
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def pair(path: str = "auto") -> tuple[Linear, Int8Linear]:
    """Returns a layer and its 8-bit form."""
    torch.manual_seed(0)
    layer = Linear(IN, OUT)
    return layer, Int8Linear.from_linear(layer, path)


def test_rounding_is_within_half_a_step():
    w = torch.randn(OUT, IN) * torch.logspace(-3, 2, OUT)[:, None]
    w[4] = 0
    q, s = quantize_rows(w)
    assert q.dtype == torch.int8
    assert q[torch.arange(OUT) != 4].abs().amax(1).eq(127).all()
    assert ((q.float() * s[:, None] - w).abs() <= s[:, None] / 2 * (1 + 1e-5)).all()
    assert (q[4] == 0).all()
    assert s[4] == 0
    tiny_row = torch.tensor([[1e-36, -0.4e-36, 0.0]])
    for row in (tiny_row, tiny_row / 10):  # 127 divided by its largest number would be infinite
        q, s = quantize_rows(row)
        assert ((q.float() * s[:, None] - row).abs() <= 1e-36 / 127 / 2 * 1.01).all()
    exact, _ = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5]]))
    assert exact.tolist() == [[127, 0, 2, -2]]  # halves round to even


@pytest.mark.parametrize("path", ["fp32", "bf16", "int8"])
def test_each_path_equals_the_dequantized_product(path):
    """The tolerance is the rounding of fp32 for the path fp32 and 3 % for the two others."""
    _, small = pair(path)
    x = torch.randn(B, T, IN, requires_grad=True)
    y, plain = small(x), torch.nn.functional.linear(x, small.dequantized(), small.bias)
    bound = {"fp32": 1e-6, "bf16": 0.03, "int8": 0.03}[path]
    torch.testing.assert_close(y.float(), plain, rtol=bound, atol=bound)
    g = torch.randn_like(plain)
    ours, expected = torch.autograd.grad(y, x, g.to(y.dtype))[0], torch.autograd.grad(plain, x, g)[0]
    torch.testing.assert_close(ours, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("mixed", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES.values()])
@pytest.mark.parametrize("path", [*PATHS, "nf4"])
def test_the_output_has_the_dtype_of_torchs_linear(path, dtype, mixed):
    layer, small = pair("auto" if path == "nf4" else path)
    if path == "nf4":
        small = NF4Linear(quantize_nf4(layer.weight.detach()), OUT, IN, layer.bias)
    x, layer = torch.randn(B, T, IN, dtype=dtype), layer if mixed else layer.to(dtype)
    with torch.autocast("cpu", mixed or torch.bfloat16, enabled=mixed is not None):
        y, plain = small(x), layer(x)
    assert y.dtype == plain.dtype
    assert (y.float() - plain.float()).norm() < 0.15 * plain.float().norm()  # the rounding of 4 bits


@pytest.mark.parametrize("sizes", [(3, 5, 11), (16, 8, 16), (17, 24, 8)])
def test_zeros_for_a_gpu_leave_the_product(sizes):
    m, k, n = sizes
    p, q = (torch.randint(-127, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
    left, right = aligned(p, q)
    assert len(left) > 16
    assert left.size(1) % 8 == right.size(1) % 8 == len(right) % 8 == 0
    assert torch.equal((left.long() @ right.long().t())[:m, :n], p.long() @ q.long().t())


def test_the_backward_passes_gradcheck():
    _, small = pair("fp32")
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Int8Matmul.apply(x, small.weight, small.scale, "fp32"), x)


def test_a_row_does_not_depend_on_the_others():
    """An outlier of one token does not change how the others are rounded."""
    torch.manual_seed(0)
    _, small = pair()
    x = torch.randn(6, IN)
    x[2, 5], x[4, 9], x[4, 11] = 40, -70, OUTLIER
    alone = torch.cat([int8_product(row[None], small.weight, small.scale) for row in x])
    torch.testing.assert_close(int8_product(x, small.weight, small.scale), alone, rtol=1e-5, atol=1e-5)


def test_a_value_at_the_threshold_is_an_outlier():
    """The other values are below half a step of 6 / 127, and would be rounded to 0 beside it."""
    x, q = torch.tensor([[OUTLIER, 0.02, -0.01]]), torch.tensor([[0, 1, 1]], dtype=torch.int8)
    assert int8_product(x, q, torch.ones(1)).item() == pytest.approx(0.01, rel=0.02)
    assert int8_product(-x, q, torch.ones(1)).item() == pytest.approx(-0.01, rel=0.02)


def test_outlier_columns_are_kept_whole():
    torch.manual_seed(0)
    layer, small = pair()
    x = torch.randn(50, IN)
    x[:, 5] *= 60
    plain = x @ small.dequantized().T
    error, without = (
        (int8_product(x, small.weight, small.scale, threshold) - plain).norm() / plain.norm()
        for threshold in (OUTLIER, float("inf"))
    )
    assert error < 0.01
    assert error < without / 1.5
    assert layer.in_features == small.in_features


def test_auto_selects_the_path_by_device_precision_and_gradient(monkeypatch):
    _, small = pair()
    x = torch.randn(B, IN)
    for supported, path in ((False, "fp32"), (True, "int8")):
        monkeypatch.setattr(quant, "multiplies_int8", lambda device, supported=supported: supported)
        assert small.chosen_path(x) == path
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small.chosen_path(x.requires_grad_()) == "bf16"
        with torch.no_grad():
            assert small.chosen_path(x) == "bf16"
            assert "multiplied in bf16" in describe_products(x.device, mixed=True)
            monkeypatch.setattr(quant, "prefers_bf16", lambda device: False)
            assert small.chosen_path(x) == "int8"
            assert "multiplied in int8" in describe_products(x.device, mixed=True)
            assert describe_products(torch.device("cuda"), mixed=True).endswith("multiplied in int8")
            assert describe_products(torch.device("mps"), mixed=True).endswith("multiplied in bf16")
    with pytest.raises(ValueError, match="unknown path 'int4'; known: auto, int8, bf16, fp32"):
        Int8Linear.from_linear(Linear(2, 2), "int4")


def test_embedding_rows_are_within_half_a_step():
    table = Embedding(13, 5, padding_idx=0)
    small = Int8Embedding.from_embedding(table)
    ids = torch.randint(0, 13, (2, 6))
    assert ((small(ids) - table(ids)).abs() <= small.scale[ids][..., None] / 2 * (1 + 1e-5)).all()
    assert (small(torch.tensor([0])) == 0).all()
    assert (small.num_embeddings, small.embedding_dim, small.padding_idx) == (13, 5, 0)


@pytest.mark.parametrize("name", [*ENCODERS, "lstm", "transformer"])
def test_head_and_norms_keep_their_precision(name):
    model = quantize_int8(tiny(name))
    assert is_quantized(model)
    for key, module in model.named_modules():
        inside = key.split(".")[0] not in model.HEAD
        assert not (inside and isinstance(module, Linear)), key
        assert inside or not isinstance(module, Int8Linear), key
    assert isinstance(model.embeddings.word, Int8Embedding)
    assert any(isinstance(module, LayerNorm) for module in model.modules()) == (name != "lstm")


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in MODELS), ("cnn", {"one_hot": True}), ("cnn", {"region_width": 5})]
)
def test_each_model_computes_with_8_bit_weights(name, changes):
    plain, small = (tiny(name, **changes).eval() for _ in range(2))
    ids, mask = token_batch([7, 4])
    with torch.no_grad():
        expected, found = plain(ids, mask), quantize_int8(small)(ids, mask)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def test_adapters_and_projection_heads_keep_their_precision():
    model = adapt(tiny("bert"), "p_tuning")
    model.projection = Linear(12, 5)
    names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    assert {"projection", "virtual.source.last"} <= set(names)
    assert {name.split(".")[0] for name in quantizable(model)} == {"embeddings", "layers"}


def assert_trains_as_dequantized(small: Model, plain: Model, method: str) -> None:
    """Compares values and gradients of an adapter on quantized weights and on the same weights dequantized.

    plain: a model of the same shape, which gets the dequantized weights.
    """
    for key, module in small.named_modules():
        if isinstance(module, QuantizedLinear):
            plain.get_submodule(key).weight.data = module.dequantized()
    words = small.embeddings.word
    plain.embeddings.word.weight.data = words.weight.float() * words.scale[:, None]
    gradients = []
    for model in (small, plain):
        torch.manual_seed(1)
        adapt(model, method).eval()
        loss = model(*token_batch([7, 4])).square().sum()
        loss.backward()
        found = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        gradients.append(found | {"loss": loss.detach()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        expected = gradients[1][key]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_method_trains_on_8_bits(name, method, monkeypatch):
    """Values and gradients equal those of the same adapter on a model with the dequantized weights."""
    if (name, method) == ("modernbert", "bitfit"):
        pytest.skip("it has no biases")
    monkeypatch.setattr(quant, "multiplies_int8", lambda device: False)
    torch.manual_seed(0)
    assert_trains_as_dequantized(quantize_int8(tiny(name)), tiny(name), method)


@pytest.mark.parametrize("name", ENCODERS)
def test_loading_into_8_bits_equals_quantizing_and_survives_saving(name, tmp_path):
    save_pretrained(tiny(name), tmp_path / "plain")
    batch = token_batch([7, 4])
    small = load_pretrained(tmp_path / "plain", quantize="int8").eval()
    again = quantize_int8(load_pretrained(tmp_path / "plain")).eval()
    assert torch.equal(small(*batch), again(*batch))
    save_pretrained(small, tmp_path / "small")
    assert read_json(tmp_path / "small" / CONFIG)["quantization"] == "int8-absmax"
    stored = load_pretrained(tmp_path / "small").eval()
    assert torch.equal(stored(*batch), small(*batch))
    plain = load_pretrained(tmp_path / "plain")
    layers = [plain.get_submodule(key).weight for key in quantizable(plain)]
    saved = sum(3 * w.numel() - 4 * len(w) for w in layers)  # bytes: int8 instead of fp32, plus a scale per row
    assert resident_bytes(stored) == resident_bytes(small) == resident_bytes(plain) - saved


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("half", HALVES)
def test_a_quantized_model_computes_in_half_precision(name, form, half, tmp_path):
    """Without autocast, in the precision of load_pretrained: embeddings, norms and classifier have one dtype."""
    save_pretrained(tiny(name), tmp_path)
    ids, mask = token_batch([9, 4])
    expected = load_pretrained(tmp_path, quantize=form).eval()(ids, mask)
    model = load_pretrained(tmp_path, dtype=HALVES[half], quantize=form).eval()
    logits = model(ids, mask)
    assert logits.dtype == model.embeddings.word(ids).dtype == HALVES[half]
    assert (logits - expected).norm() < HALF * expected.norm()
    if form == "int8":
        save_pretrained(model, tmp_path / "again")
        again = load_pretrained(tmp_path / "again", dtype=HALVES[half]).eval()
        assert torch.equal(again(ids, mask), logits)


@pytest.mark.parametrize("form", ["none", "int8", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_over_a_model_in_bf16(method, form, tmp_path):
    save_pretrained(tiny("bert"), tmp_path)
    model = adapt(load_pretrained(tmp_path, dtype=torch.bfloat16, quantize=form), method)
    logits = model.train()(*token_batch([9, 4]))
    logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_deberta_v3_base_in_8_bits_takes_less_than_190_mib_instead_of_705():
    with torch.device("meta"):
        model = Deberta(Deberta.Config(**V3_BASE))
    before = resident_bytes(model) / 2**20
    after = resident_bytes(quantize_int8(model)) / 2**20
    assert 700 < before < 710
    assert after < 190


def test_a_quantized_file_without_scales_or_int8_weights_raises(tmp_path):
    save_pretrained(quantize_int8(tiny("bert")), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = "bert.encoder.layer.0.attention.self.query.weight"
    save_file({k: t for k, t in tensors.items() if k != f"{key}_scale"}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"missing {key}_scale"):
        load_pretrained(tmp_path)
    save_file(tensors | {key: tensors[key].float()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{key} does not hold 8-bit numbers"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_lora_into_8_bits_raises(dora):
    model = peft.apply(quantize_int8(tiny("bert")), "lora", rank=2, dora=dora)
    with pytest.raises(ValueError, match="merged into 8-bit weights"):
        peft.merge(model)


def test_training_and_scoring_a_run_in_8_bits(small_run, tmp_path, capsys):
    train.main([*small_run, "--quantize", "int8"])
    with pytest.raises(ValueError, match="for frozen weights"):
        train.main(["--model", "bert", "--weights", "none", "--quantize", "int8"])
    evaluate(["--run", str(tmp_path / "runs/small"), "--text", "good"])
    capsys.readouterr()
    evaluate(["--run", str(tmp_path / "runs/small"), "--quantize", "int8"])
    accuracy = read_json(tmp_path / "runs/small/result.json")["validation"]["accuracy"]
    assert f"validation: accuracy {accuracy:.4f}" in capsys.readouterr().out


def test_rounds_as_bitsandbytes():
    """The matrix of tests/golden/make_int8.py has a row of zeros, an outlier, and exact halves."""
    golden = read_json(GOLDEN / "int8.json")
    q, s = quantize_rows(torch.tensor(golden["W"]))
    assert torch.equal(q, torch.tensor(golden["Q"], dtype=torch.int8))
    torch.testing.assert_close(s * 127, torch.tensor(golden["absmax"]))


def test_word_vectors_of_an_8_bit_checkpoint_are_those_of_its_table(tmp_path):
    plain = load_pretrained(tiny_weights(tmp_path / "plain"))
    save_pretrained(quantize_int8(plain), tmp_path / "small")
    load_tokenizer(tmp_path / "plain").save(tmp_path / "small")
    expected, found = (read_vectors(tmp_path / name, ["good", "film"]).vectors for name in ("plain", "small"))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 100)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_path_follows_autocast_for_fp32_inputs(half: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """`auto` is resolved before autocast is disabled for the product."""
    layer = Int8Linear.from_linear(torch.nn.Linear(16, 8))
    paths, apply = [], Int8Matmul.apply
    monkeypatch.setattr(Int8Matmul, "apply", lambda *a: (paths.append(a[3]), apply(*a))[1])
    x = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=half):
        expected = layer.chosen_path(x)
        layer(x)
    assert paths == [expected]
    assert expected in ("bf16", "int8")


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_quantized_weights_are_counted(form: str):
    sizes = {"hidden_size": 64, "num_heads": 2, "feed_forward_size": 64}
    assert num_weights(quantize(tiny("bert", **sizes), form)) == num_parameters(tiny("bert", **sizes))


def test_no_rows_are_a_product_without_rows():
    """As in masked language modelling without a chosen token."""
    _, small = pair("int8")
    assert int8_product(torch.zeros(0, IN), small.weight, small.scale).shape == (0, OUT)
