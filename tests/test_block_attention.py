"""nn/block_attention.py against the plain forms: values and gradients, in one and in several blocks."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nn import block_attention as blocks
from nn.attention import attention, masked_softmax, weighted_sum
from nn.block_attention import BlockAttention, block_attention, shifted_products, skew, split_into_blocks
from nn.dropout import LEVELS, Dropout

B, H, T, S, K, P = 5, 3, 7, 11, 2, 2  # reviews, heads, queries, keys, width of a head, keys of a prefix
P_DROP = 0.25
SIZES = {"one block": (2**20, 128), "some heads": (2 * B * T * S, 4), "one head": (2 * T * S, 3), "smallest": (1, 1)}


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def sizes(request, monkeypatch):
    """Sets the sizes of blocks and bands."""
    monkeypatch.setattr(blocks, "BLOCK", request.param[0])
    monkeypatch.setattr(blocks, "ROWS", request.param[1])


def inputs(prefix: int = 0, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Returns q, k, v, k_r and q_r, which require gradients, and a mask with padding."""
    torch.manual_seed(0)
    shapes = [(B, H, T, K), (B, H, prefix + S, K), (B, H, prefix + S, K), (H, T + S - 1, K), (H, T + S - 1, K)]
    mask = torch.ones(B, 1, 1, prefix + S, dtype=torch.bool)
    mask[1, ..., -3:] = False
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes], mask


def plain(
    q: Tensor, k: Tensor, v: Tensor, k_r: Tensor, q_r: Tensor, mask: Tensor, dropout: Dropout, prefix: int
) -> Tensor:
    """Computes the docstring's equations, one pair of tokens at a time."""
    scores = q @ k.transpose(-1, -2)
    terms = [
        torch.stack([(q[:, :, t] * k_r[:, T - 1 - t + s]).sum(-1) for s in range(S)], -1)
        + torch.stack([(k[:, :, prefix + s] * q_r[:, S - 1 - s + t]).sum(-1) for s in range(S)], -1)
        for t in range(T)
    ]
    relative = torch.cat([scores.new_zeros(B, H, T, prefix), torch.stack(terms, 2)], -1)
    weights = (scores + relative).masked_fill(~mask, -torch.inf).softmax(-1)
    return weighted_sum(weights, v, dropout=dropout)


def attend(tensors: list[Tensor], mask: Tensor) -> Tensor:
    """Computes `block_attention` without dropout for q, k, v, k_r and q_r."""
    q, k, v, k_r, q_r = tensors
    off, prefix = Dropout(0), k.size(2) - S
    return block_attention(q, k, v, mask=mask, dropout=off, k_r=k_r, q_r=q_r, prefix=prefix)


def assert_equal_with_gradients(ours: Tensor, expected: Tensor, tensors: list[Tensor]) -> None:
    """Compares values and gradients."""
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, tensors, upstream) for y in (ours, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("p", [0, P_DROP])
@pytest.mark.usefixtures("sizes")
def test_equals_the_plain_form_with_gradients(p):
    """The same random state gives both forms the same dropout mask."""
    (q, k, v, *_), mask = inputs()
    dropout = Dropout(p).train()
    torch.manual_seed(1)
    ours = block_attention(q / K**0.5, k, v, mask=mask, dropout=dropout)
    torch.manual_seed(1)
    assert_equal_with_gradients(ours, attention(q, k, v, mask=mask, dropout=dropout), [q, k, v])


@pytest.mark.parametrize("p", [0, P_DROP])
@pytest.mark.parametrize("prefix", [0, P])
@pytest.mark.usefixtures("sizes")
def test_relative_terms_equal_the_loop_with_gradients(p, prefix):
    tensors, mask = inputs(prefix)
    q, k, v, k_r, q_r = tensors
    dropout = Dropout(p).train()
    torch.manual_seed(1)
    ours = block_attention(q, k, v, mask=mask, dropout=dropout, k_r=k_r, q_r=q_r, prefix=prefix)
    torch.manual_seed(1)
    assert_equal_with_gradients(ours, plain(*tensors, mask=mask, dropout=dropout, prefix=prefix), tensors)


@pytest.mark.parametrize("trained", [flags for flags in product([False, True], repeat=5) if any(flags)])
def test_gradients_of_some_inputs_equal_those_of_all(trained):
    """With LoRA on query and value, the keys of the first layer and all k_r come from frozen weights."""
    tensors, mask = inputs(P)
    expected = torch.autograd.grad(attend(tensors, mask).square().sum(), tensors)
    some = [x.detach().requires_grad_(flag) for x, flag in zip(tensors, trained, strict=True)]
    attend(some, mask).square().sum().backward()
    for x, gradient, flag in zip(some, expected, trained, strict=True):
        assert torch.equal(x.grad, gradient) if flag else x.grad is None


@pytest.mark.parametrize("frozen", range(5), ids=["q", "k", "v", "k_r", "q_r"])
def test_no_product_forms_the_gradient_of_a_frozen_input(frozen):
    """Without it, the backward pass has exactly the operations of that gradient fewer."""

    def flops(trained: list[int]) -> int:
        tensors, mask = inputs()
        for number, x in enumerate(tensors):
            x.requires_grad_(number in trained)
        out = attend(tensors, mask).sum()
        with FlopCounterMode(display=False) as counter:
            out.backward()
        return counter.get_total_flops()

    one, band = 2 * B * H * T * S * K, 2 * B * H * T * (T + S - 1) * K  # q kᵀ; x times the rows of all distances
    queries, keys = band, 2 * B * H * S * (T + S - 1) * K  # of the terms c2p and p2c
    expected = {0: one + queries, 1: one + keys, 2: one, 3: queries, 4: keys}[frozen]
    everything = list(range(5))
    assert flops(everything) - flops([number for number in everything if number != frozen]) == expected


@pytest.mark.usefixtures("sizes")
def test_a_mask_of_each_query_and_one_term():
    """ModernBERT's local attention masks pairs; a config may have one of the two terms."""
    (q, k, v, k_r, q_r), _ = inputs()
    mask = (torch.arange(T)[:, None] - torch.arange(S)).abs().le(3).expand(B, 1, T, S)
    off = Dropout(0)
    expected = plain(q, k, v, k_r, torch.zeros_like(q_r), mask=mask, dropout=off, prefix=0)
    assert_equal_with_gradients(block_attention(q, k, v, mask=mask, dropout=off, k_r=k_r), expected, [q, k, v, k_r])
    expected = plain(q, k, v, torch.zeros_like(k_r), q_r, mask=mask, dropout=off, prefix=0)
    assert_equal_with_gradients(block_attention(q, k, v, mask=mask, dropout=off, q_r=q_r), expected, [q, k, v, q_r])


def test_gradcheck():
    tensors, mask = inputs()
    bias = blocks.mask_bias(mask, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: BlockAttention.apply(*x, bias, 0, 0, True), tensors)


def test_without_gradients_nothing_is_stored():
    (q, k, v, *_), mask = inputs()
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x.shape) or x, lambda x: x):
        block_attention(q, k, v, mask=mask, dropout=Dropout(0))
        with_gradients, stored[:] = list(stored), []
        with torch.no_grad():
            block_attention(q, k, v, mask=mask, dropout=Dropout(0))
    assert torch.Size([B, H, T, S]) in with_gradients
    assert stored == []


def test_bf16_is_within_rounding_of_fp32():
    tensors, mask = inputs(dtype=torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in tensors]
    exact = [x.detach().float().requires_grad_() for x in half]
    results = []
    for q, k, v, k_r, q_r in (half, exact):
        out = block_attention(q, k, v, mask=mask, dropout=Dropout(0), k_r=k_r, q_r=q_r)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, k_r, q_r))])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), expected, rtol=0.03, atol=0.03 * expected.abs().max().item())


def test_every_head_of_every_review_is_in_one_block(monkeypatch):
    for size in (1, 10, 60, 1000):
        monkeypatch.setattr(blocks, "BLOCK", size)
        seen = torch.zeros(B, H, dtype=torch.int64)
        for part in split_into_blocks(B, H, scores=10):
            seen[part.reviews, part.heads] += 1
            assert seen[part.reviews, part.heads].numel() <= max(1, size // 10)
        assert torch.equal(seen, torch.ones_like(seen))


def test_skew_selects_one_diagonal_per_row_without_a_copy():
    x = torch.randn(B, H, T, T + S - 1)
    y = skew(x)
    assert y.shape == (B, H, T, S)
    assert all(torch.equal(y[:, :, t], x[:, :, t, T - 1 - t : T - 1 - t + S]) for t in range(T))
    assert y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.usefixtures("sizes")
def test_bands_cover_all_rows():
    x, table = torch.randn(B, H, T, K), torch.randn(H, T + S - 1, K)
    y = torch.cat([band for _, band in shifted_products(x, table)], 2)
    expected = [(x[:, :, t, None] * table[:, T - 1 - t : T - 1 - t + S]).sum(-1) for t in range(T)]
    torch.testing.assert_close(y, torch.stack(expected, 2))


def test_the_scale_is_that_of_the_rounded_rate():
    q = k = torch.zeros(1, 1, 1000, 1)
    v = torch.ones(1, 1, 1000, 1)
    mask = torch.ones(1, 1, 1, 1000, dtype=torch.bool)
    out = block_attention(q, k, v, mask=mask, dropout=Dropout(0.1).train())
    kept = out.mean().item() * (LEVELS - round(0.1 * LEVELS)) / LEVELS  # share of kept weights
    assert abs(kept - (1 - round(0.1 * LEVELS) / LEVELS)) < 0.002  # 6 standard deviations: √(p (1 - p) / 10⁶) · 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_without_keys_is_finite(dtype: torch.dtype):
    scores = torch.tensor([[1.0, -20.0, 5.0, -40.0]], dtype=dtype)
    weights = masked_softmax(scores, torch.zeros(1, 4, dtype=torch.bool))
    assert torch.isfinite(weights).all()
    assert weights.float().sum().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (2, 0)])
def test_no_scores_are_zeros_with_gradients_of_zero(queries: int, keys: int):
    q = torch.randn(2, 3, queries, 4, requires_grad=True)
    k, v = (torch.randn(2, 3, keys, 4, requires_grad=True) for _ in range(2))
    out = block_attention(q, k, v, torch.ones(2, 1, 1, keys, dtype=torch.bool), Dropout(0.5).train())
    assert out.shape == q.shape
    assert (out == 0).all()
    out.sum().backward()
    assert all((x.grad == 0).all() for x in (q, k, v))
