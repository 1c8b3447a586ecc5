"""LoRA, rsLoRA and DoRA against their equations, and the choice of layers and ranks."""

from pathlib import Path

import pytest
import torch
from conftest import adapt, tiny, token_batch
from torch import Tensor
from torch.nn import Linear

from nn.checkpoint import load_pretrained, save_pretrained
from nn.dropout import Dropout
from nn.quant import quantize_int8
from peft import apply, merge
from peft.lora import DoRALinear, LoRALinear, LowRank, choose_targets, merged_copies, wrapped

IN, OUT, R = 7, 11, 3


def lora_layer(dropout: float = 0.0) -> LoRALinear:
    """Returns a float64 layer with alpha 6 and a random B."""
    torch.manual_seed(0)
    layer = LoRALinear(Linear(IN, OUT).double(), rank=R, alpha=6.0, dropout=dropout)
    layer.B.data.normal_()
    return layer


def test_equals_the_equation_with_gradients():
    lora, x = lora_layer(), torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
    w, b, a_, b_ = lora.base.weight, lora.base.bias, lora.A, lora.B
    y = torch.zeros(2, 5, OUT, dtype=torch.float64)
    for i in range(2):
        for t in range(5):
            y[i, t] = w @ x[i, t] + b + (6.0 / R) * (b_ @ (a_ @ x[i, t]))
    torch.testing.assert_close(lora(x), y)
    upstream = torch.randn_like(y)
    mine, theirs = (torch.autograd.grad(out, (x, a_, b_), upstream) for out in (lora(x), y))
    for ours, plain in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, plain)


def test_starts_at_the_base():
    base = Linear(IN, OUT)
    lora, x = LoRALinear(base, rank=R, alpha=16.0), torch.randn(5, IN)
    assert torch.equal(lora(x), base(x))
    assert 0.5 * IN**-0.5 < lora.A.abs().max() <= IN**-0.5
    assert torch.equal(lora.B, torch.zeros(OUT, R))


def test_merged_equals_unmerged():
    lora, x = lora_layer(), torch.randn(5, IN, dtype=torch.float64)
    before = lora(x)
    torch.testing.assert_close(lora.merged()(x), before, rtol=1e-13, atol=1e-13)


def test_dropout_acts_on_the_update_only():
    lora, x = lora_layer(dropout=0.5).train(), torch.randn(5, IN, dtype=torch.float64)
    torch.manual_seed(1)
    ours = lora(x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, lora.base(x) + 2.0 * (Dropout(0.5)(x) @ lora.A.T @ lora.B.T))


def test_a_rank_outside_the_width_raises():
    with pytest.raises(ValueError, match="LoRA rank 0 must be at least 1"):
        LoRALinear(Linear(IN, OUT), rank=0, alpha=1.0)
    with pytest.raises(ValueError, match=r"LoRA rank 13 is outside 1 … 12, the width of layers\.1\.attention\.value"):
        apply(tiny("bert"), "lora", rank=2, rank_pattern="layers.1.attention.value=13")


@pytest.mark.parametrize("which", ["all", "lora_only"])
def test_biases_that_a_model_does_not_have_are_refused(which: str):
    model = tiny("modernbert")
    with pytest.raises(ValueError, match=f"^lora_bias {which}: this modernbert has no such biases; leave it out$"):
        apply(model, "lora", rank=2, lora_bias=which)
    assert not [name for name, _ in model.named_parameters() if name.endswith((".A", ".B"))]
    apply(tiny("deberta"), "lora", rank=2, lora_bias=which)


@pytest.mark.parametrize("which", ["none", "all", "lora_only"])
def test_the_update_is_trained_with_every_choice_of_biases(which):
    """`--lora-bias all` once froze A and B."""
    model = apply(tiny("bert"), "lora", rank=2, lora_bias=which)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    ours = {name for name, _ in model.named_parameters() if name.endswith((".A", ".B"))}
    head = {name for name, _ in model.named_parameters() if name.startswith(("pooler.", "classifier."))}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    chosen = {"none": set(), "all": biases, "lora_only": {name for name in biases if ".base." in name}}
    assert len(ours) == 2 * 2 * 2
    assert trained == ours | head | chosen[which]


def test_dora_equals_the_equation_with_gradients():
    """The norm is a constant for the gradient (§4.3)."""
    torch.manual_seed(0)
    dora = DoRALinear(Linear(IN, OUT).double(), rank=R, alpha=6.0)
    x = torch.randn(5, IN, dtype=torch.float64)
    torch.testing.assert_close(dora(x), dora.base(x))
    dora.B.data.normal_()
    dora.magnitude.data.normal_()
    norms = (dora.base.weight + 2.0 * (dora.B @ dora.A)).detach().norm(dim=1)
    rows = [dora.magnitude[k] * (dora.base.weight[k] + 2.0 * (dora.B @ dora.A)[k]) / norms[k] for k in range(OUT)]
    plain = torch.stack([sum(row[i] * x[:, i] for i in range(IN)) for row in rows], 1) + dora.base.bias
    torch.testing.assert_close(dora(x), plain)
    wanted, upstream = (dora.A, dora.B, dora.magnitude), torch.randn_like(plain)
    for ours, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (dora(x), plain)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_merge_and_unmerge(kind):
    torch.manual_seed(0)
    layer = kind(Linear(IN, OUT), rank=R, alpha=6.0)
    layer.B.data.normal_()
    x, weight = torch.randn(5, IN), layer.base.weight.detach().clone()
    before = layer(x)
    torch.testing.assert_close(layer.merged()(x), before, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(layer.base.weight, weight)
    layer.unmerge()
    torch.testing.assert_close(layer.base.weight, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"dora": True}], ids=["lora", "dora"])
def test_merged_copies_equal_the_adapter_and_leave_the_weights(options):
    model = adapt(tiny("bert"), "lora", **options).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids, mask = token_batch([5, 3])
    expected = model(ids, mask)
    with merged_copies(model, torch.float32):
        assert wrapped(model) == []
        torch.testing.assert_close(model(ids, mask), expected)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(wrapped(model)) == 2 * len(model.layers)


def test_merged_copies_keep_the_adapter_of_8_bit_weights():
    model = apply(quantize_int8(tiny("bert")), "lora", rank=2)
    layers = wrapped(model)
    with merged_copies(model, torch.float32):
        assert wrapped(model) == layers


def test_scales():
    base = Linear(IN, OUT)
    assert LoRALinear(base, rank=4, alpha=6.0).scale == 1.5
    assert LoRALinear(base, rank=4, alpha=6.0, rslora=True).scale == 3.0


def test_ranks_and_alphas_by_pattern():
    model = apply(tiny("bert"), "lora", rank=2, alpha=4.0, rank_pattern="value=3 layers.0=1", alpha_pattern="value=12")
    found = {name: (layer.rank, layer.alpha) for name, layer in wrapped(model)}
    assert found == {
        "layers.0.attention.query": (1, 4.0),
        "layers.0.attention.value": (3, 12.0),  # the first pattern that matches
        "layers.1.attention.query": (2, 4.0),
        "layers.1.attention.value": (3, 12.0),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": "up=3"}, "no LoRA target matches the pattern up"),
        ({"rank_pattern": "alue=3"}, "no LoRA target matches the pattern alue"),  # part of a component of the name
        ({"rank_pattern": "value"}, "'value' is not NAME=N"),
        ({"rank_pattern": "value=16,query=4"}, "is not NAME=N; a space separates two"),
        ({"alpha_pattern": "value=x"}, "'value=x' is not NAME=NUMBER"),
        ({"lora_bias": "some"}, "unknown lora_bias 'some'; known: none, all, lora_only"),
        ({"targets": "qery"}, "'qery' matches no linear layer; known: down, key, output, query, up, value"),
        ({"targets": "classifier"}, "is part of the head"),
        ({"targets": " , "}, "no LoRA target given"),
        ({"alpha": 0.0}, "alpha 0 must be above 0; alpha / R scales the update"),
        ({"alpha_pattern": "query=2 value=0"}, "alpha_pattern value=0 must be above 0"),
        ({"alpha_pattern": "value=-3"}, "alpha_pattern value=-3 must be above 0"),
        ({"alpha_pattern": "value=nan"}, "alpha_pattern value=nan must be above 0"),
        ({"rank_pattern": "value=3 value=4"}, "rank_pattern names value twice: value=3 and value=4"),
    ],
)
def test_unsupported_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        apply(tiny("bert"), "lora", rank=2, **options)


@pytest.mark.parametrize("pattern", [{"rank_pattern": "layers.1=0"}, {"alpha_pattern": "layers.1=1e9"}])
def test_a_refused_adapter_leaves_the_model_as_it_was(pattern):
    model = tiny("bert")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"must be at least 1|is outside"):
        apply(model, "lora", rank=2, **pattern)
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_targets():
    model = tiny("bert")
    assert choose_targets(model, r"re:layers\.\d\.feed_forward\.up") == [
        "layers.0.feed_forward.up",
        "layers.1.feed_forward.up",
    ]
    assert choose_targets(model, "query") == ["layers.0.attention.query", "layers.1.attention.query"]
    assert choose_targets(model, "value, layers.1.attention.query") == [
        "layers.0.attention.value",
        "layers.1.attention.query",
        "layers.1.attention.value",
    ]
    assert len(choose_targets(model, "all-linear")) == 2 * 6
    assert not [name for name in choose_targets(model, "all-linear") if name.startswith(("pooler", "classifier"))]


def test_lora_acts_on_both_uses_of_debertas_query():
    """Words and relative positions are both projected by W₀ + sBA, merged and unmerged."""
    model = adapt(tiny("deberta"), "lora").eval()
    batch = token_batch([9, 5])
    before = model(*batch)
    torch.testing.assert_close(merge(model)(*batch), before, rtol=1e-5, atol=1e-6)


def test_number_of_parameters():
    model = apply(tiny("bert"), "lora", rank=R, targets="query,up")
    added = sum(p.numel() for name, p in model.named_parameters() if name.endswith((".A", ".B")))
    assert added == 2 * (R * (12 + 12) + R * (12 + 17))


@pytest.mark.parametrize("dropped", [False, True])
def test_hand_derived_gradients(dropped):
    torch.manual_seed(0)
    x, a_, b_ = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, IN), (R, IN), (OUT, R))
    )
    keep = (torch.rand(2, 3, IN) > 0.4).to(torch.uint8) if dropped else None

    def low_rank(x: Tensor, a_: Tensor, b_: Tensor) -> Tensor:
        return LowRank.apply(x, a_, b_, 2.5, keep, 0.4 if dropped else 0.0, torch.float64)

    assert torch.autograd.gradcheck(low_rank, (x, a_, b_))
    factor = keep / 0.6 if dropped else 1.0
    torch.testing.assert_close(low_rank(x, a_, b_), 2.5 * ((x * factor) @ a_.T @ b_.T))


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_on_one_input_save_it_once(mixed):
    """Each adapter saves u, its own parameters and one byte an element for dropout; all share x."""
    x = torch.randn(4, 50, 40, requires_grad=True)
    base = Linear(40, 40).requires_grad_(False)
    layers = [LoRALinear(base, rank=2, alpha=4.0, dropout=0.1).train() for _ in range(3)]
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        sum(lora.update(x).sum() for lora in layers).backward()
    large = [tensor for tensor in saved.values() if tensor.numel() == x.numel()]
    assert sorted(str(tensor.dtype) for tensor in large) == ["torch.float32"] + 3 * ["torch.uint8"]


def test_no_gradient_below_the_first_adapter_or_for_a_frozen_weight():
    model, needed = adapt(tiny("bert"), "lora", targets="layers.1.attention.value"), []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, arguments, output: needed.append(output.requires_grad))
    model(*token_batch([7, 5])).sum().backward()
    assert needed == [False, True]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_a_row_of_zeros_stays_one_under_dora():
    base = torch.nn.Linear(5, 3)
    base.weight.data[1] = 0
    expected, before = base(x := torch.randn(4, 5)), base.weight.detach().clone()
    layer = DoRALinear(base, rank=2, alpha=4.0)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)
    layer.unmerge()
    torch.testing.assert_close(base.weight.detach(), before)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_dora_over_few_bits_keeps_the_dtype_of_the_model(name: str, dtype: torch.dtype, quantize: str, tmp_path: Path):
    save_pretrained(tiny(name), tmp_path)
    model = adapt(load_pretrained(tmp_path, dtype=dtype, quantize=quantize), "lora", dora=True).eval()
    ids, mask = token_batch([7, 5])
    expected = adapt(load_pretrained(tmp_path, quantize=quantize), "lora", dora=True).eval()
    expected.load_state_dict(model.state_dict(), strict=False)
    assert model(ids, mask).dtype == dtype
    torch.testing.assert_close(model(ids, mask).float(), expected(ids, mask), rtol=0.1, atol=0.1)
