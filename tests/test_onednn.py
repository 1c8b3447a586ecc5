"""Tests of nn/onednn.py."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny, token_batch

from nn import onednn
from nn.onednn import FastLinear, Product, is_suitable, linear
from nn.runtime import choose_machine

M, K, N = 67, 131, 151
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # of sums of fp32 products in another order

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN")


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onednn, "SMALLEST", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Returns the shapes of W of all products by oneDNN."""
    found, apply = [], Product.apply
    monkeypatch.setattr(Product, "apply", lambda x, w, b: (found.append(tuple(w.shape)), apply(x, w, b))[1])
    return found


def leaves() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((2, M, K), (N, K), (N,))]


def both_orders(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Returns outputs, gradients, and gradients of a function of the gradients, of F.linear and of x @ W."""
    y = F.linear(x, w, b).tanh() @ w
    first = torch.autograd.grad(y.sin().sum(), (x, w, b), create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), (x, w, b))
    return [y, *first, *second]


def test_values_and_gradients_of_both_orders_equal_the_default_ones(calls: list):
    expected = both_orders(*leaves())
    assert not calls
    with FastLinear():
        found = both_orders(*leaves())
    assert calls[:2] == [(N, K), (K, N)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), **TOLERANCE)


LAYOUTS = {
    "rows": lambda r, c: torch.randn(r, c),
    "columns": lambda r, c: torch.randn(c, r).t(),
    "part of the columns": lambda r, c: torch.randn(r, 3 * c)[:, c : 2 * c],
    "every second row": lambda r, c: torch.randn(2 * r, c)[::2],
    "every second column": lambda r, c: torch.randn(r, 2 * c)[:, ::2],
    "one row": lambda r, c: torch.randn(1, c).expand(r, c),
    "one column": lambda r, c: torch.randn(r, 1).expand(r, c),
    "one number": lambda r, c: torch.randn(()).expand(r, c),
    "overlapping rows": lambda r, c: torch.randn(r + c).as_strided((r, c), (1, 1)),
    "rows that overlap by half": lambda r, c: torch.randn(r * c).as_strided((r, c), (c // 2 + 1, 1)),
}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_every_layout_in_memory_gives_the_same_product(first: str, second: str):
    for m, k, n in ((M, K, N), (1, K, N), (M, 1, N), (M, K, 1)):
        x, w = LAYOUTS[first](m, k), LAYOUTS[second](n, k)
        torch.testing.assert_close(linear(x, w), F.linear(x, w), **TOLERANCE)


@pytest.mark.parametrize(("for_x", "for_weight"), [(True, True), (True, False), (False, True)])
def test_as_much_is_kept_for_the_gradients_as_by_default(for_x: bool, for_weight: bool):
    def kept(function: Callable) -> set[torch.Size]:
        x, w = torch.randn(M, K, requires_grad=for_x), torch.randn(N, K, requires_grad=for_weight)
        shapes = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.add(t.shape), t)[1], lambda t: t):
            function(x, w, torch.randn(N, requires_grad=True))
        return shapes

    expected = {torch.Size((M, K)) if for_weight else None, torch.Size((N, K)) if for_x else None} - {None}
    assert kept(Product.apply) == expected


def test_frozen_weights_get_no_gradient():
    x, w, b = leaves()
    for tensor in (w, b):
        tensor.requires_grad_(False)
    linear(x, w, b).sum().backward()
    assert w.grad is None
    torch.testing.assert_close(x.grad, w.sum(0).expand_as(x), **TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bert", "deberta", "lstm", "transformer"])
def test_a_training_step_equals_the_default_one(name: str, checkpointing: bool, calls: list):
    ids, mask = token_batch([9, 7, 5, 3])

    def step(context) -> dict[str, torch.Tensor]:
        model = tiny(name).train()
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        with context:
            loss = F.cross_entropy(model(ids, mask), torch.tensor([0, 1, 1, 0]))
        loss.backward()  # outside, as in train.py
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    expected = step(torch.autocast("cpu", enabled=False))
    found = step(FastLinear())
    assert calls
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, **TOLERANCE, msg=key)


def test_other_dtypes_and_autocast_keep_their_products(calls: list):
    x, w, b = leaves()
    with FastLinear():
        F.linear(x.double(), w.double(), b.double())
        F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(x, w, b).dtype == torch.bfloat16
        F.linear(x[0, 0], w, b)  # a vector
        x @ x.transpose(1, 2)  # a batch of matrices
        F.linear(x.to("meta"), w.to("meta"))
    assert not calls


def test_small_products_keep_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onednn, "SMALLEST", 2 * M * K * N)
    x, w, _ = leaves()
    assert is_suitable(x, w)
    assert not is_suitable(x[:, 1:], w)


@pytest.mark.parametrize(
    ("vendor", "avx512", "expected"),
    [("AuthenticAMD", True, True), ("AuthenticAMD", False, False), ("GenuineIntel", True, False), ("", True, False)],
)
def test_the_rule(vendor: str, avx512: bool, expected: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onednn, "processor_field", lambda _: vendor)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn.is_faster.__wrapped__() == expected


@pytest.mark.parametrize("faster", [True, False])
def test_a_machine_uses_the_faster_library_in_fp32(faster: bool, monkeypatch: pytest.MonkeyPatch, calls: list):
    monkeypatch.setattr(onednn, "is_faster", lambda: faster)
    model, (ids, mask) = tiny("bert").eval(), token_batch([5, 3])
    with choose_machine("cpu", "fp32").autocast():
        model(ids, mask)
    assert bool(calls) == faster
    count = len(calls)
    with choose_machine("cpu", "bf16").autocast():
        model(ids, mask)
    assert len(calls) == count
