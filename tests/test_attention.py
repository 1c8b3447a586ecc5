import pytest
import reference
import torch

from nn.attention import MultiHeadAttention, attention, fused_attention, masked_softmax, merge_heads, split_heads

B, H, T, S, K = 2, 3, 5, 7, 11
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 against float64


def inputs(seed: int = 0):
    torch.manual_seed(seed)
    q = torch.randn(B, H, T, K, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(B, H, S, K, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.arange(S) < torch.tensor([S, 4])[:, None]
    return q, k, v, mask


@pytest.mark.parametrize("form", [attention, fused_attention])
def test_equals_the_loop_with_gradients(form):
    q, k, v, mask = inputs()
    ours, plain = form(q, k, v, mask[:, None, None]), reference.attention(q, k, v, mask)
    torch.testing.assert_close(ours, plain, **EXACT)
    upstream = torch.randn_like(ours)
    for mine, theirs in zip(*(torch.autograd.grad(y, (q, k, v), upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_softmax_sums_to_one_over_the_mask_alone():
    scores = torch.randn(B, H, T, S)
    mask = (torch.arange(S) < torch.tensor([S, 4])[:, None])[:, None, None]
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
    assert (weights.masked_select(~mask.expand_as(weights)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_without_keys_is_uniform(dtype):
    weights = masked_softmax(torch.randn(2, S).to(dtype), torch.zeros(2, S, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((2, S), 1 / S, dtype=dtype))


def test_softmax_of_bf16_is_summed_in_fp32():
    scores = (4 * torch.randn(3, 4099)).bfloat16()
    mask = torch.ones(1, dtype=torch.bool)
    wide = masked_softmax(scores.float(), mask)
    torch.testing.assert_close(masked_softmax(scores, mask).float(), wide, rtol=2**-8, atol=0)  # one rounding, no more


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


def test_heads_split_and_merge_back():
    x = torch.randn(B, T, H * K)
    assert split_heads(x, H).shape == (B, H, T, K)
    assert torch.equal(merge_heads(split_heads(x, H)), x)


def test_prefix_of_real_keys_and_values_equals_longer_input():
    """Keys and values handed over as a prefix count like tokens that stand in front."""
    torch.manual_seed(0)
    layer = MultiHeadAttention(H * K, H).eval()
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    front, rest = x[:, :2], x[:, 2:]
    prefix = split_heads(layer.key(front), H), split_heads(layer.value(front), H)
    torch.testing.assert_close(layer(rest, mask[:, 2:], prefix), layer(x, mask)[:, 2:], rtol=1e-5, atol=1e-6)


def test_a_zero_length_prefix_changes_nothing():
    layer = MultiHeadAttention(H * K, H).eval()
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    empty = torch.zeros(1, H, 0, K)
    assert torch.equal(layer(x, mask, (empty, empty)), layer(x, mask))


def test_training_with_dropout_differs_and_without_equals_eval():
    torch.manual_seed(0)
    x, mask = torch.randn(B, T, H * K), torch.ones(B, T, dtype=torch.bool)
    dropping, plain = MultiHeadAttention(H * K, H, 0.5), MultiHeadAttention(H * K, H, 0.0)
    assert not torch.equal(dropping.train()(x, mask), dropping(x, mask))
    torch.testing.assert_close(plain.train()(x, mask), plain.eval()(x, mask))


def test_width_must_divide_into_heads():
    with pytest.raises(ValueError, match="not a multiple"):
        MultiHeadAttention(10, 3)
