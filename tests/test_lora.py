import pytest
import torch
from conftest import adapt, tiny, token_batch
from torch.nn import Linear

from nn.dropout import Dropout
from peft import apply, merge
from peft.lora import DoRALinear, LoRALinear, LowRank, choose_targets, wrapped

IN, OUT, R = 7, 11, 3


def layer(dropout: float = 0.0) -> LoRALinear:
    torch.manual_seed(0)
    made = LoRALinear(Linear(IN, OUT).double(), R, 6.0, dropout)
    made.B.data.normal_()
    return made


def test_equals_the_equation_with_gradients():
    lora, x = layer(), torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
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
    lora, x = LoRALinear(base, R, 16.0), torch.randn(5, IN)
    assert torch.equal(lora(x), base(x))
    assert lora.A.abs().max() <= IN**-0.5
    assert torch.equal(lora.B, torch.zeros(OUT, R))


def test_merged_equals_unmerged():
    lora, x = layer(), torch.randn(5, IN, dtype=torch.float64)
    before = lora(x)
    torch.testing.assert_close(lora.merged()(x), before, rtol=1e-13, atol=1e-13)


def test_dropout_is_on_the_update_alone():
    lora, x = layer(dropout=0.5).train(), torch.randn(5, IN, dtype=torch.float64)
    torch.manual_seed(1)
    got = lora(x)
    torch.manual_seed(1)
    torch.testing.assert_close(got, lora.base(x) + 2.0 * (Dropout(0.5)(x) @ lora.A.T @ lora.B.T))


@pytest.mark.parametrize("rank", [0, IN + 1])
def test_rank_outside_the_width(rank):
    with pytest.raises(ValueError, match=f"rank {rank} is outside 1 … {IN}"):
        LoRALinear(Linear(IN, OUT), rank, 1.0)


def test_dora_equals_the_equation_with_gradients():
    """The norm is a constant for the gradient (§4.3)."""
    torch.manual_seed(0)
    dora = DoRALinear(Linear(IN, OUT).double(), R, 6.0)
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
    layer = kind(Linear(IN, OUT), R, 6.0)
    layer.B.data.normal_()
    x, weight, before = torch.randn(5, IN), layer.base.weight.detach().clone(), None
    before = layer(x)
    torch.testing.assert_close(layer.merged()(x), before, rtol=1e-5, atol=1e-6)
    layer.unmerge()
    torch.testing.assert_close(layer.base.weight, weight, rtol=0, atol=1e-6)


def test_scales():
    base = Linear(IN, OUT)
    assert LoRALinear(base, 4, 6.0).scale == 1.5
    assert LoRALinear(base, 4, 6.0, rslora=True).scale == 3.0


def test_patterns():
    model = apply(tiny("bert"), "lora", rank=2, alpha=4.0, rank_pattern="value=3 layers.0=1", alpha_pattern="value=12")
    found = {name: (layer.rank, layer.alpha) for name, layer in wrapped(model)}
    assert found == {
        "layers.0.attention.query": (1, 4.0),
        "layers.0.attention.value": (3, 12.0),  # the first pattern that fits
        "layers.1.attention.query": (2, 4.0),
        "layers.1.attention.value": (3, 12.0),
    }
    for pattern, message in (("up=3", "no LoRA target matches the pattern up"), ("value", "'value' is not NAME=int")):
        with pytest.raises(ValueError, match=message):
            apply(tiny("bert"), "lora", rank=2, rank_pattern=pattern)
    with pytest.raises(ValueError, match="unknown lora_bias 'some'; known: none, all, lora_only"):
        apply(tiny("bert"), "lora", lora_bias="some")


def test_targets():
    model = tiny("bert")
    assert choose_targets(model, r"re:layers\.\d\.feed_forward\.up") == [
        "layers.0.feed_forward.up",
        "layers.1.feed_forward.up",
    ]
    assert choose_targets(model, "query") == ["layers.0.attention.query", "layers.1.attention.query"]
    assert len(choose_targets(model, "all-linear")) == 2 * 6
    assert not [name for name in choose_targets(model, "all-linear") if name.startswith(("pooler", "classifier"))]
    for targets, message in (
        ("qery", "'qery' matches no linear layer; known: down, key, output, query, up, value"),
        ("classifier", "is part of the head"),
        (" , ", "no LoRA target given"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_targets(model, targets)


def test_acts_on_both_uses_of_debertas_query():
    """merged = W₀ + sBA projects words and relative positions; so must the unmerged layer."""
    model = adapt(tiny("deberta"), "lora").eval()
    batch = token_batch([9, 5])
    before = model(*batch)
    torch.testing.assert_close(merge(model)(*batch), before, rtol=1e-5, atol=1e-6)


def test_number_of_parameters():
    model = apply(tiny("bert"), "lora", rank=R, targets="query,up")
    added = sum(p.numel() for name, p in model.named_parameters() if name.endswith((".A", ".B")))
    assert added == 2 * (R * (12 + 12) + R * (12 + 17))


@pytest.mark.parametrize("dropped", [False, True])
def test_the_gradients_derived_by_hand(dropped):
    torch.manual_seed(0)
    x, a_, b_ = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, IN), (R, IN), (OUT, R))
    )
    keep = (torch.rand(2, 3, IN) > 0.4).to(torch.uint8) if dropped else None
    args = (2.5, keep, 0.4 if dropped else 0.0, torch.float64)
    assert torch.autograd.gradcheck(LowRank.apply, (x, a_, b_, *args))
    factor = keep / 0.6 if dropped else 1.0
    torch.testing.assert_close(LowRank.apply(x, a_, b_, *args), 2.5 * ((x * factor) @ a_.T @ b_.T))


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_share_what_they_keep_of_their_input(mixed):
    """Beside x, an adapter keeps u, its own parameters and one byte an element for dropout."""
    x = torch.randn(4, 50, 40, requires_grad=True)
    layers = [LoRALinear(Linear(40, 40).requires_grad_(False), 2, 4.0, 0.1).train() for _ in range(3)]
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        sum(lora.update(x).sum() for lora in layers).backward()
    large = [tensor for tensor in kept.values() if tensor.numel() == x.numel()]
    assert sorted(str(tensor.dtype) for tensor in large) == ["torch.float32"] + 3 * ["torch.uint8"]


def test_nothing_below_the_first_adapter_and_no_frozen_weight_gets_a_gradient():
    model, needed = adapt(tiny("bert"), "lora", targets="layers.1.attention.value"), []
    for layer_ in model.layers:
        layer_.register_forward_hook(lambda _, __, out: needed.append(out.requires_grad))
    model(*token_batch([7, 5])).sum().backward()
    assert needed == [False, True]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
