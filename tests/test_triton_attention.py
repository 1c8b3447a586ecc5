"""Tests of the Triton kernels of disentangled attention, on a CPU by Triton's interpreter:

    pip install triton
    TRITON_INTERPRET=1 python -m pytest -n 0 tests/test_triton_attention.py

With TRITON_INTERPRET=0, Triton compiles them for GPUs, which needs none. Without the package and the variable only the
tests of what surrounds the kernels run. tests/gpu runs them on a GPU.
"""

import math
import os
from typing import Any

import pytest
import torch
from test_deberta import CONFIG, layer_and_inputs
from torch import Tensor

from nn import triton_attention
from nn.deberta import DisentangledAttention, by_kernel, relative_index, rows_by_distance
from nn.triton_attention import disentangled_attention, has_triton, sum_windows, tile_settings, window_rows

B, H, K = 2, 3, 5
CPU = torch.device("cpu")
SPAN, LIMIT = 8, 29  # distances above 4 share rows
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # of fp32; the sums have up to 64 terms
FP16_BOUND = 0.003  # relative error of a result as one vector, after three roundings to 11 bits
TENSORS = ("q", "k", "v", "k_r", "q_r")
KERNELS = ("forward_kernel", "query_kernel", "key_kernel", "table_kernel")
SHARED_BYTES = {80: 166_912, 86: 101_376, 90: 232_448}  # of a block, by compute capability (CUDA C++ Programming Guide)
COMPILED = pytest.mark.skipif(
    not (has_triton() and os.environ.get("TRITON_INTERPRET") == "0"),
    reason="takes minutes: pip install triton, and TRITON_INTERPRET=0",
)
INTERPRETED = pytest.mark.skipif(
    not (has_triton() and os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs pip install triton, and TRITON_INTERPRET=1",
)


def inputs(num_queries: int, length: int, prefix: int = 0, head_size: int = K, seed: int = 0) -> dict[str, Any]:
    """Draws the arguments of `disentangled_attention`; the second review has padding, from its third token on."""
    torch.manual_seed(seed)
    index, first, last = rows_by_distance(num_queries, length, SPAN, LIMIT, CPU)
    sizes = {"q": num_queries, "k": prefix + length, "v": prefix + length}
    made: dict[str, Any] = {name: torch.randn(B, H, size, head_size) for name, size in sizes.items()}
    made |= {name: torch.randn(1, H, last - first + 1, head_size) for name in ("k_r", "q_r")}
    made = {name: x.requires_grad_() for name, x in made.items()}
    mask = torch.arange(prefix + length) < torch.tensor([prefix + length, prefix + 3])[:, None]
    return made | {"index": index, "mask": mask, "num_prefix": prefix}


def plain_weights(
    q: Tensor, k: Tensor, k_r: Tensor | None, q_r: Tensor | None, index: Tensor, mask: Tensor, num_prefix: int
) -> Tensor:
    """Computes the attention weights from the [T, S] scores. Returns [B, H, T, P + S], in the dtype of q."""
    batch, heads, num_queries, _ = q.shape
    at = torch.arange(num_queries)[:, None] - torch.arange(k.size(2) - num_prefix)[None]  # distance q - k
    rows = index[num_queries - 1 - at].long().expand(batch, heads, -1, -1)  # [B, H, T, S]
    scores = q @ k.transpose(-1, -2)
    relative = torch.zeros_like(scores[..., num_prefix:])
    if k_r is not None:
        relative = relative + (q @ k_r.transpose(-1, -2)).gather(-1, rows)
    if q_r is not None:
        products = k[:, :, num_prefix:] @ q_r.transpose(-1, -2)  # [B, H, S, N]
        relative = relative + products.gather(-1, rows.transpose(-1, -2)).transpose(-1, -2)
    scores = scores + torch.cat([torch.zeros_like(scores[..., :num_prefix]), relative], -1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask[:, None, None], lowest).softmax(-1)


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_r: Tensor | None,
    q_r: Tensor | None,
    index: Tensor,
    mask: Tensor,
    num_prefix: int = 0,
    p: float = 0.0,
    keep: Tensor | None = None,
) -> Tensor:
    """Computes what `disentangled_attention` does in the dtype of q; keep: the dropout mask, bool [B, H, T, P + S]."""
    weights = plain_weights(q, k, k_r=k_r, q_r=q_r, index=index, mask=mask, num_prefix=num_prefix)
    return (weights if keep is None else weights * keep / (1 - p)) @ v


def in_double(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments in float64; the gradients of the copies reach the originals."""
    floating = {name for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return {name: x.double() if name in floating else x for name, x in given.items()}


def gradients(y: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the gradients of a fixed random sum of y with respect to all arguments that have one."""
    trained = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return dict(zip(trained, torch.autograd.grad(y, list(trained.values()), upstream), strict=True))


def check(given: dict[str, Any], **dropout: Any) -> None:
    """Compares values and gradients of the kernels with the plain form in float64."""
    keep = dropout.pop("keep", None)
    ours = disentangled_attention(**given, **dropout)
    expected = plain(**in_double(given), p=dropout.get("p", 0.0), keep=keep)
    torch.testing.assert_close(ours.double(), expected, **TOLERANCE)
    theirs = gradients(expected, given)
    for name, gradient in gradients(ours, given).items():
        torch.testing.assert_close(gradient, theirs[name], **TOLERANCE, msg=lambda text, name=name: f"∂{name}: {text}")


# ----------------------------------------------------------------------------------------- what surrounds the kernels


@pytest.mark.parametrize("buckets", [SPAN, -1], ids=["log buckets", "one row per distance"])
@pytest.mark.parametrize(("num_queries", "length"), [(1, 41), (11, 41), (41, 41)])
def test_rows_by_distance_are_those_of_the_matrix(num_queries: int, length: int, buckets: int):
    index, first, last = relative_index(num_queries, length, buckets, LIMIT, CPU)
    rows, *ends = rows_by_distance(num_queries, length, buckets, LIMIT, CPU)
    assert torch.equal(rows.long(), torch.cat([index[:, 0].flip(0), index[0, 1:]]))
    assert ends == [first, last]


@pytest.mark.parametrize("share", [True, False], ids=["shared projections", "own projections"])
@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids="|".join)
@pytest.mark.parametrize("queries", [None, 4], ids=["all", "first 4"])
def test_the_layer_passes_the_arguments_of_eq_4(queries, kinds, share, monkeypatch):
    """With the plain function in place of the kernels, `by_kernel` equals `by_blocks`, with a prefix and gradients."""
    monkeypatch.setattr("nn.deberta.disentangled_attention", plain)
    layer, x, table, mask = layer_and_inputs(pos_att_type=kinds, share_att_key=share)
    prefix = tuple(torch.randn(1, layer.num_heads, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    given = {"prefix": prefix, "queries": queries, "relative": table}
    expected = layer(x, mask, **given)
    monkeypatch.setattr("nn.deberta.by_blocks", by_kernel)
    ours = layer(x, mask, **given)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    trained = [x, *layer.parameters(), *prefix, *([table] if kinds else [])]
    upstream = torch.randn_like(ours)
    results = (torch.autograd.grad(y, trained, upstream) for y in (ours, expected))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("num_queries", "length", "prefix"), [(7, 11, 0), (1, 11, 3), (11, 11, 5)])
def test_the_windows_of_all_diagonals_sum_to_the_rows_of_the_table(num_queries: int, length: int, prefix: int):
    """Each pair of a query and a token adds 1 to the window of its tile: a row gets as many as it has pairs."""
    block, parts, width = 4, 2, 6
    index, first, last = rows_by_distance(num_queries, length, SPAN, LIMIT, CPU)
    query_tiles, key_tiles = math.ceil(num_queries / block), math.ceil((prefix + length) / block)
    windows = torch.zeros(parts, query_tiles + key_tiles - 1, 2 * block, 1, width)
    counts = torch.zeros(last - first + 1)
    for t in range(num_queries):
        for s in range(length):
            m, n = t // block, (prefix + s) // block
            low = (m - n) * block - (block - 1) + prefix
            windows[(t + s) % parts, m - n + key_tiles - 1, t - s - low] += 1
            counts[index[num_queries - 1 - (t - s)]] += 1
    rows = window_rows(index, num_queries, key_tiles, block, prefix, windows.size(1))
    summed = sum_windows(windows, rows, like=torch.empty(len(counts), 1, width))
    assert torch.equal(summed, counts[:, None, None].expand(-1, 1, width))


def test_a_machine_without_triton_and_another_dtype_are_clear_errors(monkeypatch):
    given = inputs(num_queries=3, length=3)
    if has_triton():
        with pytest.raises(ValueError, match="float64 is not supported; supported: torch"):
            disentangled_attention(**in_double(given))
    monkeypatch.setattr(triton_attention, "triton", None)
    with pytest.raises(ValueError, match="triton is not installed"):
        disentangled_attention(**given)


def test_a_cpu_uses_blocks(monkeypatch):
    monkeypatch.setattr("nn.deberta.by_kernel", None)
    layer, x, table, mask = layer_and_inputs()
    assert layer(x, mask, prefix=None, queries=None, relative=table).shape == x.shape
    assert DisentangledAttention(CONFIG).KERNEL


# -------------------------------------------------------------------------------------------------------- the kernels


@INTERPRETED
@pytest.mark.parametrize("head_size", [5, 17])
@pytest.mark.parametrize(
    ("num_queries", "length", "prefix"), [(37, 41, 0), (37, 37, 3), (1, 41, 0), (3, 3, 31), (11, 67, 7)]
)
def test_values_and_gradients_equal_the_plain_form(num_queries: int, length: int, prefix: int, head_size: int):
    """With one and several tiles, with padding, with a prefix that ends inside a tile or fills one."""
    check(inputs(num_queries, length, prefix, head_size))


@INTERPRETED
@pytest.mark.parametrize("absent", ["k_r", "q_r", "both"])
def test_absent_terms(absent: str):
    given = inputs(num_queries=7, length=37, prefix=2)
    check(given | {name: None for name in ("k_r", "q_r") if absent in (name, "both")})


@INTERPRETED
def test_a_row_that_is_masked_everywhere_is_uniform():
    """Its gradient is finite as well."""
    given = inputs(num_queries=5, length=7)
    given["mask"] = given["mask"] & torch.tensor([[True], [False]])
    y = disentangled_attention(**given)
    torch.testing.assert_close(y[1], given["v"][1].mean(1, keepdim=True).expand_as(y[1]), **TOLERANCE)
    assert all(gradient.isfinite().all() for gradient in gradients(y, given).values())


@INTERPRETED
@pytest.mark.parametrize("trained", [("q",), ("k_r",), ("v", "q_r")], ids="|".join)
def test_frozen_inputs_get_no_gradient(trained: tuple[str, ...]):
    given = inputs(num_queries=7, length=7)
    for name in TENSORS:
        given[name].requires_grad_(name in trained)
    check(given)


@INTERPRETED
def test_fp16_is_near_float64():
    """The interpreter has no products in bf16; tests/gpu has them."""
    exact = inputs(num_queries=37, length=41, prefix=3, head_size=16)
    rounded = exact | {name: exact[name].detach().half().requires_grad_() for name in TENSORS}
    results = []
    for given, function in ((rounded, disentangled_attention), (in_double(rounded), plain)):
        y = function(**given)
        results.append({"y": y, **gradients(y, rounded)})
    for name, expected in results[1].items():
        error = (results[0][name].double() - expected.double()).norm() / expected.double().norm()
        assert error < FP16_BOUND, (name, error)


# ----------------------------------------------------------------------------------------------------------- dropout


def drawn_mask(given: dict[str, Any], p: float, seed: Tensor) -> Tensor:
    """Returns the mask of the forward pass, bool [B, H, T, P + S]: with v = 1 (identity), y are the dropped weights."""
    keys = given["k"].size(2)
    wide = {name: torch.nn.functional.pad(given[name], (0, keys - K)) for name in ("q", "k", "k_r", "q_r")}
    wide |= {"v": torch.eye(keys).expand(B, H, -1, -1), "mask": torch.ones(B, keys, dtype=torch.bool)}
    return disentangled_attention(**given | wide, p=p, seed=seed) != 0


@INTERPRETED
@pytest.mark.parametrize(("num_queries", "length", "prefix"), [(37, 37, 3), (5, 61, 0)])
def test_dropout_has_one_mask_in_all_passes(num_queries: int, length: int, prefix: int):
    """The values and all gradients are those of the plain form with the mask of the forward pass."""
    given, seed = inputs(num_queries, length, prefix), torch.tensor([2**61 + 7])
    keep = drawn_mask(given, p=0.3, seed=seed)
    check(given, p=0.3, seed=seed, keep=keep)


@INTERPRETED
def test_the_dropout_mask_has_its_rate_and_no_pattern():
    """The rate is within five standard deviations, in each of the four neighbouring keys that share a counter; the
    masks of two heads, reviews, rows or seeds agree as often as independent ones."""
    p, given = 0.25, inputs(num_queries=61, length=64)
    keep, other = (drawn_mask(given, p, seed=torch.tensor([seed])) for seed in (5, 2**62 - 1))
    agreement = p**2 + (1 - p) ** 2
    for found, expected in [
        *((keep[..., number::4], 1 - p) for number in range(4)),
        (keep == other, agreement),
        (keep[0] == keep[1], agreement),
        (keep[:, 0] == keep[:, 1], agreement),
        (keep[:, :, 1:] == keep[:, :, :-1], agreement),
        (keep[..., 1:] == keep[..., :-1], agreement),
    ]:
        sigma = math.sqrt(expected * (1 - expected) / found.numel())
        assert abs(found.float().mean().item() - expected) < 5 * sigma


@INTERPRETED
def test_the_mask_depends_on_the_seed_and_not_on_the_tiles(monkeypatch):
    given = inputs(num_queries=37, length=41)
    torch.manual_seed(3)
    drawn = disentangled_attention(**given, p=0.3)
    torch.manual_seed(3)
    seed = torch.randint(2**62, (1,))
    before = disentangled_attention(**given, p=0.3, seed=seed)
    assert torch.equal(before, drawn)
    monkeypatch.setattr(triton_attention, "tile_settings", lambda *a: tile_settings(*a) | {"BLOCK": 16})
    torch.testing.assert_close(disentangled_attention(**given, p=0.3, seed=seed), before, **TOLERANCE)
    assert not torch.allclose(disentangled_attention(**given, p=0.3, seed=seed + 1), before)


@INTERPRETED
@pytest.mark.parametrize("queries", [None, 1], ids=["all", "[CLS]"])
def test_the_layer_by_kernels_equals_the_layer_by_blocks(queries, monkeypatch):
    layer, x, table, mask = layer_and_inputs()
    layer = layer.float()
    x, table = (tensor.detach().float().requires_grad_() for tensor in (x, table))
    prefix = tuple(torch.randn(1, layer.num_heads, 2, 3, requires_grad=True) for _ in range(2))
    given = {"prefix": prefix, "queries": queries, "relative": table}
    expected = layer(x, mask, **given)
    monkeypatch.setattr("nn.deberta.by_blocks", by_kernel)
    ours = layer(x, mask, **given)
    torch.testing.assert_close(ours, expected, **TOLERANCE)
    trained, upstream = [x, table, *prefix, *layer.parameters()], torch.randn_like(ours)
    results = (torch.autograd.grad(y, trained, upstream) for y in (ours, expected))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def compile_for(kernel: str, dtype: torch.dtype, head_size: int, capability: int) -> Any:
    """Compiles a kernel for GPUs of a compute capability, 86 for 8.6, with 512 tokens and dropout."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, settings = getattr(triton_attention, kernel), tile_settings(head_size, dtype)
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    flags = dict.fromkeys(("C2P", "P2C", "TRAIN_C2P", "TRAIN_P2C", "DROPOUT"), True)
    constants = settings | flags | {"H": 12, "K": head_size}
    kind = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    kinds = dict.fromkeys(("q", "k", "v", "k_r", "q_r", "y", "dy", "dq", "dk", "dv"), kind)
    kinds |= dict.fromkeys(("row_max", "row_sum", "delta", "dk_d", "dq_d"), "*fp32")
    kinds |= {"index": "*i32", "visible": "*i8", "seed": "*i64", "p": "fp32"}
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(function, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@COMPILED
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "head_size"), [*triton_attention.MAX_HEAD_SIZE.items(), (torch.float32, 64), (torch.bfloat16, 64)]
)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_fit_into_shared_memory(kernel: str, dtype: torch.dtype, head_size: int, capability: int):
    assert compile_for(kernel, dtype, head_size, capability).metadata.shared <= SHARED_BYTES[capability]
