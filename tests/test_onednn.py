"""Tests of nn/onednn.py."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import adapt, tiny, token_batch
from torch.utils._python_dispatch import TorchDispatchMode

from nn import onednn
from nn.onednn import FastProducts, Product, is_suitable, linear, packed
from nn.quant import Int8Linear, quantize_int8
from nn.runtime import choose_machine

M, K, N = 67, 131, 151
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # of sums of fp32 products in another order

FUNCTIONS = ("_linear_pointwise", "_reorder_linear_weight")
pytestmark = pytest.mark.skipif(
    not all(hasattr(torch.ops.mkldnn, name) for name in FUNCTIONS), reason="torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    monkeypatch.setattr(onednn, "SMALLEST_PACKED", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Returns the shapes of W of all products by oneDNN."""
    found, apply = [], Product.apply
    monkeypatch.setattr(Product, "apply", lambda x, w, b: (found.append(tuple(w.shape)), apply(x, w, b))[1])
    return found


def leaves() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((2, M, K), (N, K), (N,))]


def layers(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w, b).tanh() @ w


def batches(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    pairs = torch.stack([x, x.cos()])  # [2, 2, M, K]
    return (pairs @ torch.stack([x.sin(), x], 1).view(2, 2, M, K).mT).tanh() @ pairs + w.sum() * b.sum()


def both_orders(of: Callable, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Returns outputs, gradients, and gradients of a function of the gradients."""
    y = of(x, w, b)
    first = torch.autograd.grad(y.sin().sum(), (x, w, b), create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), (x, w, b))
    return [y, *first, *second]


@pytest.mark.parametrize(
    ("of", "shapes"), [(layers, [(N, K), (K, N)]), (batches, [(4, M, K), (4, K, M)])], ids=["layers", "batches"]
)
def test_values_and_gradients_of_both_orders_equal_the_default_ones(of: Callable, shapes: list, calls: list):
    expected = both_orders(of, *leaves())
    assert not calls
    with FastProducts():
        found = both_orders(of, *leaves())
    assert calls[:2] == shapes
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


@pytest.mark.parametrize("shape", [(1,), (1, N)])
def test_a_bias_that_torch_broadcasts(shape: tuple[int, ...]):
    x, w, b = torch.randn(M, K), torch.randn(N, K), torch.randn(shape)
    with FastProducts():
        found = F.linear(x, w, b)
    torch.testing.assert_close(found, F.linear(x, w, b), **TOLERANCE)


def test_the_smaller_of_two_transposed_factors_is_the_copied_one(monkeypatch: pytest.MonkeyPatch):
    first, product = [], onednn.product
    monkeypatch.setattr(onednn, "product", lambda x, w, b=None: (first.append(len(x)), product(x, w, b))[1])
    for m, n in ((M, N), (N, M)):
        x, w = torch.randn(K, m).mT, torch.randn(K, n).mT
        torch.testing.assert_close(linear(x, w), F.linear(x, w), **TOLERANCE)
    assert first == [M, M]


@pytest.mark.parametrize("name", ["bert", "deberta", "attention_lstm"])
def test_the_second_matrix_has_no_gaps(name: str, monkeypatch: pytest.MonkeyPatch):
    weights, product = [], onednn.product
    monkeypatch.setattr(onednn, "product", lambda x, w, b=None: (weights.append(w), product(x, w, b))[1])
    with FastProducts():
        loss = tiny(name)(*token_batch([9, 7, 5])).sum()
    loss.backward()  # [CLS] of each review is every ninth row of the last layer's input
    assert len(weights) > 8
    assert all(w.is_contiguous() or w.mT.is_contiguous() for w in weights if w.layout == torch.strided)


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


def test_the_result_of_another_function_can_be_changed_in_place():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return F.linear(x, w)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
            return 2 * g.sum(-1, keepdim=True).expand(*g.shape[:-1], K), None

    x, w, _ = leaves()
    with FastProducts():
        y = Doubled.apply(x, w)
        y += 1
        y.sum().backward()
    torch.testing.assert_close(y, F.linear(x, w) + 1, **TOLERANCE)
    assert (x.grad == 2 * N).all()


def test_a_block_is_open_in_its_own_thread_alone():
    found: list[Any] = []

    def other() -> None:
        found.extend([packed(torch.randn(2, K, N), rows=3), onednn.current_library()])

    with FastProducts():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert packed(torch.randn(2, K, N), rows=3)
    assert found[0] is None
    assert not isinstance(found[1], FastProducts)


def test_frozen_weights_get_no_gradient():
    x, w, b = leaves()
    for tensor in (w, b):
        tensor.requires_grad_(False)
    linear(x, w, b).sum().backward()
    assert w.grad is None
    torch.testing.assert_close(x.grad, w.sum(0).expand_as(x), **TOLERANCE)


class DefaultProducts(TorchDispatchMode):
    """Collects the products of the default library."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {function.overloadpacket.__name__} & {"mm", "addmm", "bmm", "baddbmm", "baddbmm_"}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["bert", "deberta", "lstm", "gru", "transformer", "deberta, LoRA", "bert, LoRA, int8"])
def test_a_training_step_equals_the_default_one(name: str, checkpointing: bool, calls: list, one_thread):
    ids, mask = token_batch([9, 7, 5, 3])

    def step(context) -> dict[str, torch.Tensor]:
        model = tiny(name.split(",")[0]).train()
        if "LoRA" in name:
            adapt(model, "lora")
        if "int8" in name:
            for layer in quantize_int8(model).modules():
                if isinstance(layer, Int8Linear):
                    layer.path = "fp32"
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        with context:
            loss = F.cross_entropy(model(ids, mask), torch.tensor([0, 1, 1, 0]))
        loss.backward()  # outside, as in train.py
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    expected = step(torch.autocast("cpu", enabled=False))
    with DefaultProducts() as default:
        found = step(FastProducts())
    assert calls
    assert not default.seen
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, **TOLERANCE, msg=key)


def test_other_dtypes_and_autocast_keep_their_products(calls: list):
    x, w, b = leaves()
    with FastProducts():
        F.linear(x.double(), w.double(), b.double())
        F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(x, w, b).dtype == torch.bfloat16
        F.linear(x[0, 0], w, b)  # a vector
        F.linear(x, w[0])
        x @ x[:1].transpose(1, 2)  # a batch with one matrix
        x[:0] @ x[:0].transpose(1, 2)  # an empty batch
        F.linear(x.to("meta"), w.to("meta"))
    assert not calls


def test_small_products_keep_the_default(monkeypatch: pytest.MonkeyPatch, one_thread):
    monkeypatch.setattr(onednn, "SMALLEST", 2 * M * K * N)
    x, w, _ = leaves()
    assert is_suitable(x, w)
    assert not is_suitable(x[:, 1:], w)
    monkeypatch.setattr(onednn, "SMALLEST", M * K * M)
    assert is_suitable(x, x)
    assert not is_suitable(x[:, 1:], x)
    monkeypatch.setattr(onednn, "SMALLEST_PACKED", 3 * K * N)
    with FastProducts():
        assert packed(torch.randn(2, K, N), rows=3)
        assert packed(torch.randn(2, K, N), rows=2) is None
        assert packed(torch.randn(2, K, N).bfloat16(), rows=3) is None
    assert packed(torch.randn(2, K, N), rows=3) is None


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
