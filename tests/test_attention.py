from itertools import product

import pytest
import reference
import torch
from torch import Tensor

from nn.attention import (
    MultiHeadAttention,
    attend,
    attention,
    fused_attention,
    fused_is_faster,
    masked_softmax,
    merge_heads,
    select_queries,
    split_heads,
)
from nn.dropout import LEVELS, Dropout, keep_mask

B, H, T, S, K = 2, 3, 5, 7, 11
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 against float64
P_DROP = 0.375  # a multiple of 1/256, so that the rate is exact


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns q [B, H, T, K], k and v [B, H, S, K], and mask [B, S] with padding in the second row."""
    torch.manual_seed(seed)
    q = torch.randn(B, H, T, K, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(B, H, S, K, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.arange(S) < torch.tensor([S, 4])[:, None]
    return q, k, v, mask


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Computes (m · weights / (1 - p)) v with the weights of the loop and the next mask of the random stream."""
    one_hot = torch.eye(k.size(2), dtype=k.dtype).expand(*k.shape[:2], -1, -1)
    weights = reference.attention(q, k, one_hot, mask)  # [B, H, T, S]
    kept = keep_mask(weights.shape, round(P_DROP * LEVELS))
    return weights * kept / (1 - P_DROP) @ v


@pytest.mark.parametrize("form", [attention, fused_attention])
def test_equals_the_loop_with_gradients(form):
    q, k, v, mask = inputs()
    ours, expected = form(q, k, v, mask[:, None, None]), reference.attention(q, k, v, mask)
    torch.testing.assert_close(ours, expected, **EXACT)
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, (q, k, v), upstream) for y in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_training_drops_and_scales_the_attention_weights():
    """Dropout is applied to the weights, not to the values or the result, and E[dropout(weights)] = weights."""
    q, k, v, mask = inputs()
    torch.manual_seed(3)
    ours = attention(q, k, v, mask=mask[:, None, None], dropout=Dropout(P_DROP).train())
    torch.manual_seed(3)
    expected = dropped_attention(q, k, v, mask)
    torch.testing.assert_close(ours, expected, **EXACT)
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, (q, k, v), upstream) for y in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_multi_head_attention_in_training_is_its_equation_with_dropped_weights():
    torch.manual_seed(0)
    layer = MultiHeadAttention(hidden_size=H * K, num_heads=H, dropout=P_DROP).double().train()
    x, mask = torch.randn(B, T, H * K, dtype=torch.float64), torch.arange(T) < torch.tensor([T, 3])[:, None]
    torch.manual_seed(3)
    ours = layer(x, mask)
    torch.manual_seed(3)
    q, k, v = (split_heads(project(x), H) for project in (layer.query, layer.key, layer.value))
    torch.testing.assert_close(ours, layer.output(merge_heads(dropped_attention(q, k, v, mask))), **EXACT)


def test_multi_head_attention_without_a_dropout_rate_is_the_same_in_training_and_evaluation():
    torch.manual_seed(0)
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    layer = MultiHeadAttention(H * K, H)
    torch.testing.assert_close(layer.train()(x, mask), layer.eval()(x, mask))


def test_softmax_sums_to_one_over_the_unmasked_positions():
    scores = torch.randn(B, H, T, S)
    mask = (torch.arange(S) < torch.tensor([S, 4])[:, None])[:, None, None]
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    assert (weights.masked_select(~mask.expand_as(weights)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fully_masked_row_is_uniform(dtype):
    weights = masked_softmax(torch.randn(2, S).to(dtype), torch.zeros(2, S, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((2, S), 1 / S, dtype=dtype))


def test_the_sum_of_a_bf16_softmax_is_computed_in_fp32():
    scores = (4 * torch.randn(3, 4099)).bfloat16()
    mask = torch.ones(1, dtype=torch.bool)
    expected = masked_softmax(scores.float(), mask)
    one_rounding = {"rtol": 2**-8, "atol": 0}
    torch.testing.assert_close(masked_softmax(scores, mask).float(), expected, **one_rounding)


def test_equals_torch_multi_head_attention():
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(H * K, H).eval(), torch.nn.MultiheadAttention(H * K, H, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    x, mask = torch.randn(B, T, H * K), torch.arange(T) < torch.tensor([T, 3])[:, None]
    expected, _ = theirs(x, x, x, key_padding_mask=~mask, need_weights=False)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queries", [3, torch.tensor([[4, 0, 4], [2, 3, 1]])], ids=["first n", "indices"])
def test_selected_queries_have_the_rows_of_the_full_result(queries):
    torch.manual_seed(0)
    layer = MultiHeadAttention(H * K, H).eval()
    x, mask = torch.randn(B, T, H * K), torch.arange(T) < torch.tensor([T, 3])[:, None]
    full = layer(x, mask)
    rows = torch.arange(3).expand(B, -1) if isinstance(queries, int) else queries
    expected = torch.stack([full[b, rows[b]] for b in range(B)])
    torch.testing.assert_close(layer(x, mask, queries=queries), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(select_queries(full, queries), expected)


@pytest.mark.parametrize("units", [True, False], ids=["matrix units", "none"])
@pytest.mark.parametrize("padding", [0, 2])
def test_the_forms_for_a_cpu_are_equal(units: bool, padding: int, monkeypatch):
    """In bf16, torch's kernel is chosen on a CPU with matrix units if there are no gradients."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 5 - padding :] = False
    expected = attention(q, k, v, mask=mask)
    for dtype, gradients in product((torch.float32, torch.bfloat16, torch.float16), (False, True)):
        half = dtype != torch.float32
        with torch.set_grad_enabled(gradients):
            chosen = fused_is_faster(q.to(dtype))
            found = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask=mask, dropout=Dropout(0.0))
        assert chosen == (not half or (dtype == torch.bfloat16 and units and not gradients))
        torch.testing.assert_close(found.float(), expected, rtol=0.02 * half + 1e-5, atol=0.02 * half + 1e-6)


def test_heads_are_blocks_of_the_width_and_merging_reverses_splitting():
    x = torch.randn(B, T, H * K)
    heads = split_heads(x, H)
    assert all(torch.equal(heads[:, h], x[..., h * K : (h + 1) * K]) for h in range(H))
    assert torch.equal(merge_heads(heads), x)


def test_a_prefix_of_real_keys_and_values_equals_a_longer_input():
    """Keys and values of the first two tokens, passed as a prefix, give the same result as the two tokens."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(H * K, H).eval()
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    front, rest = x[:, :2], x[:, 2:]
    prefix = split_heads(layer.key(front), H), split_heads(layer.value(front), H)
    torch.testing.assert_close(layer(rest, mask[:, 2:], prefix=prefix), layer(x, mask)[:, 2:], rtol=1e-5, atol=1e-6)


def test_a_zero_length_prefix_changes_nothing():
    layer = MultiHeadAttention(H * K, H).eval()
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    empty = torch.zeros(1, H, 0, K)
    assert torch.equal(layer(x, mask, prefix=(empty, empty)), layer(x, mask))


def test_the_width_must_be_a_multiple_of_the_number_of_heads():
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_heads 3"):
        MultiHeadAttention(10, 3)
