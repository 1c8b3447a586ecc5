import dataclasses

import pytest
import reference
import torch
from conftest import tiny, token_batch
from torch import Tensor

from nn.attention import merge_heads, split_heads
from nn.deberta import (
    DebertaConfig,
    DisentangledAttention,
    log_bucket,
    position_scores,
    relative_index,
)
from nn.dropout import LEVELS, Dropout, keep_mask

B, T, S, D, H, K = 2, 11, 7, 6, 2, 3
SPAN, LIMIT = 4, 9  # some distances have log-spaced buckets, and some are beyond the span
P_DROP = 0.375  # a multiple of 1/256, so that the rate is exact
CPU = torch.device("cpu")
CONFIG = DebertaConfig(
    relative_attention=True,
    hidden_size=D,
    num_heads=H,
    max_relative_positions=LIMIT,
    position_buckets=SPAN,
    share_att_key=True,
    pos_att_type="p2c|c2p",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def layer_and_inputs(**changes) -> tuple[DisentangledAttention, Tensor, Tensor, Tensor]:
    """Returns the layer in float64, x [B, T, D], the table R [2s, D], and a mask with padding in the second row."""
    torch.manual_seed(0)
    layer = DisentangledAttention(dataclasses.replace(CONFIG, **changes)).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2 * SPAN, D, dtype=torch.float64, requires_grad=True)
    return layer, x, table, torch.arange(T) < torch.tensor([T, 6])[:, None]


def loop_weights(layer: DisentangledAttention, x: Tensor, table: Tensor, mask: Tensor, kinds: tuple) -> Tensor:
    """Computes the attention weights with the terms in `kinds` by loops over pairs. x: [B, S, D] -> [B, H, S, S]"""
    q, k = (split_heads(project(x), H) for project in (layer.query, layer.key))
    k_r = split_heads((layer.position_key or layer.key)(table)[None], H)[0]  # [H, 2s, K]
    q_r = split_heads((layer.position_query or layer.query)(table)[None], H)[0]
    scores = [
        reference.relative_scores(q[b, h], k[b, h], k_r[h], q_r[h], kinds, SPAN, LIMIT)
        for b in range(B)
        for h in range(H)
    ]
    scores = torch.stack(scores).unflatten(0, (B, H))  # [B, H, S, S]
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)


def result(layer: DisentangledAttention, x: Tensor, weights: Tensor) -> Tensor:
    """Computes the output of the layer from its attention weights."""
    return layer.output(merge_heads(weights @ split_heads(layer.value(x), H)))


@pytest.mark.parametrize(
    "queries", [None, 4, torch.arange(T).expand(B, -1)], ids=["blocks", "blocks, first 4 queries", "plain"]
)
def test_both_forms_equal_the_loop_over_pairs_with_gradients(queries):
    """On a CPU blocks are used, but for explicit query positions the plain form."""
    layer, x, table, mask = layer_and_inputs()
    names = ("query", "key", "value", "output")
    weights = {name: (getattr(layer, name).weight, getattr(layer, name).bias) for name in names}
    ours = layer(x, mask, prefix=None, queries=queries, relative=table)
    expected = reference.disentangled_attention(x, table, weights, H, mask, SPAN, LIMIT)[:, : ours.size(1)]
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(ours)
    inputs = [x, table, *(tensor for pair in weights.values() for tensor in pair)]
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("share", [True, False], ids=["shared projections", "own projections"])
@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ("p2c",), ()], ids="|".join)
def test_only_the_terms_of_the_config_are_in_the_scores_and_the_scale(kinds, share):
    layer, x, table, mask = layer_and_inputs(pos_att_type=kinds, share_att_key=share)
    expected = result(layer, x, loop_weights(layer, x, table, mask, kinds))
    ours = layer(x, mask, prefix=None, queries=None, relative=table)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    assert (layer.position_key is not None, layer.position_query is not None) == (
        "c2p" in kinds and not share,
        "p2c" in kinds and not share,
    )


@pytest.mark.parametrize("num_queries", [S, 3])
def test_position_scores_are_the_products_of_all_pairs(num_queries):
    """They are equal to the loop, and with exchanged roles they are the transposed pairs."""
    torch.manual_seed(0)
    index, first, last = relative_index(num_queries, S, SPAN, LIMIT, CPU)  # [T, S]
    r = torch.randn(H, last - first + 1, K, dtype=torch.float64)
    for pairs in (index, index.t()):
        x = torch.randn(B, H, len(pairs), K, dtype=torch.float64)
        rows = [[(x[:, :, t] * r[:, row]).sum(-1) for row in pair.tolist()] for t, pair in enumerate(pairs)]
        expected = torch.stack([torch.stack(row, -1) for row in rows], 2)  # [B, H, T, S]
        for form in (pairs, pairs.expand(B, 1, -1, -1)):
            torch.testing.assert_close(position_scores(x, r, form), expected)


def test_training_drops_the_attention_weights_and_the_rows_of_the_table():
    """The rows of R that occur are dropped first, then the attention weights; both are scaled by 1 / (1 - p)."""
    layer, x, table, mask = layer_and_inputs(attention_probs_dropout_prob=P_DROP, hidden_dropout_prob=P_DROP)
    x, mask = x[:, :3], mask[:, :3]  # distances -2 … 2: some rows do not occur
    torch.manual_seed(3)
    ours = layer.train()(x, mask, prefix=None, queries=None, relative=table)
    torch.manual_seed(3)
    _, first, last = relative_index(3, 3, SPAN, LIMIT, CPU)
    dropped = table.clone()
    dropped[first : last + 1] = Dropout(P_DROP).train()(table[first : last + 1])
    weights = loop_weights(layer, x, dropped, mask, ("c2p", "p2c"))
    weights = weights * keep_mask(weights.shape, round(P_DROP * LEVELS)) / (1 - P_DROP)
    torch.testing.assert_close(ours, result(layer, x, weights), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("buckets", "limit"), [(256, 512), (8, 64), (4, 12)])
def test_log_buckets_equal_the_scalar_formula(buckets, limit):
    distances = range(-limit - 50, limit + 51)
    ours = log_bucket(torch.tensor(list(distances)), buckets, limit).tolist()
    assert ours == [reference.bucket(r, buckets, limit) for r in distances]


def test_log_buckets_of_the_published_models():
    """bucket(r) is odd, equal to r up to 128, and monotonic; 511 has the last row of a 512-row table."""
    r = torch.arange(-511, 512)
    b = log_bucket(r, 256, 512)
    assert torch.equal(b, -b.flip(0))
    assert torch.equal(b[(r.abs() <= 128)], r[(r.abs() <= 128)])
    assert (b.diff() >= 0).all()
    assert b[-1] == 255


def test_only_rows_that_occur_are_projected():
    index, first, last = relative_index(T, T, 256, 512, CPU)
    assert (first, last) == (256 - T + 1, 256 + T - 1)
    assert index.min() == 0
    assert index.max() == last - first
    _, first, last = relative_index(1, T, 256, 512, CPU)  # no token precedes [CLS]
    assert (first, last) == (256 - T + 1, 256)


def test_bf16_is_near_fp32():
    """The relative error is below 1 % for the values and below 2 % for the gradients, each as one vector."""
    layer, x, table, mask = layer_and_inputs()
    layer.float()
    inputs = [x, table, *layer.parameters()]
    upstream, results = torch.randn(B, T, D), []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x.float(), mask, prefix=None, queries=None, relative=table.float())
        gradients = torch.autograd.grad(y, inputs, upstream.to(y.dtype))
        results.append((y.float(), torch.cat([gradient.flatten().float() for gradient in gradients])))
    (y, gradient), (near_y, near_gradient) = results
    assert (near_y - y).norm() < 0.01 * y.norm()
    assert (near_gradient - gradient).norm() < 0.02 * gradient.norm()


def test_the_scale_counts_terms_that_are_zero():
    """With R = 0 and without biases both relative terms are 0; the scale is still √(3K)."""
    layer, x, _, mask = layer_and_inputs()
    for project in (layer.query, layer.key):
        project.bias.data.zero_()
    zeros = torch.zeros(2 * SPAN, D, dtype=torch.float64)
    q, k, v = (split_heads(project(x), H) for project in (layer.query, layer.key, layer.value))
    expected = layer.output(merge_heads(reference.attention(q / 3**0.5, k, v, mask)))
    torch.testing.assert_close(layer(x, mask, prefix=None, queries=None, relative=zeros), expected)


def test_a_zero_length_prefix_changes_nothing_and_a_longer_one_does():
    layer, x, table, mask = layer_and_inputs()

    def output(prefix: tuple[Tensor, Tensor] | None) -> Tensor:
        return layer(x, mask, prefix=prefix, queries=None, relative=table)

    empty, three = (torch.randn(1, H, length, K, dtype=torch.float64) for length in (0, 3))
    assert torch.equal(output((empty, empty)), output(None))
    assert not torch.allclose(output((three, three)), output(None))


def test_the_relative_table_and_its_norm_are_trained():
    model = tiny("deberta")
    model(*token_batch([7, 5])).sum().backward()
    for parameter in (model.relative.weight, model.relative_norm.weight, model.relative_norm.bias):
        assert parameter.grad.abs().sum() > 0


def test_the_convolution_does_not_read_padding():
    model = tiny("deberta", conv_kernel_size=3, conv_act="gelu").eval()
    ids, mask = token_batch([9, 4])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :4], mask[1:, :4]), rtol=1e-5, atol=1e-6)


def test_pos_att_type_is_a_string_or_a_list():
    def parsed(kinds: str | list[str]) -> tuple[str, ...]:
        return DebertaConfig(relative_attention=True, pos_att_type=kinds).pos_att_type

    assert parsed("p2c|c2p") == parsed(["p2c", "c2p"]) == ("p2c", "c2p")
    with pytest.raises(ValueError, match="p2p is not supported"):
        parsed("c2p|p2p")
    assert parsed(" C2P | p2c") == ("c2p", "p2c")
    with pytest.raises(ValueError, match="  c2p is not supported"):  # transformers strips a string only
        parsed([" c2p", "p2c"])


@pytest.mark.parametrize(("positions", "supported"), [(9, False), (17, False), (18, True), (60, True)])
def test_distances_that_the_buckets_cannot_separate_are_refused(positions: int, supported: bool):
    """Above s/2 = 16 the buckets are logarithmic up to M - 1, which must be larger."""
    model = tiny("deberta", position_buckets=32, max_position_embeddings=positions, position_biased_input=False).eval()
    model(*token_batch([17]))
    if supported:
        model(*token_batch([18]))
        return
    with pytest.raises(ValueError, match=f"max_relative_positions {positions} are too few .* lower --max-length to 17"):
        model(*token_batch([18]))


def test_one_relative_position_is_too_few_for_buckets():
    with pytest.raises(ValueError, match="position_buckets 4, max_relative_positions 1: both must be at least 2"):
        DebertaConfig(relative_attention=True, position_buckets=4, max_relative_positions=1)
    DebertaConfig(relative_attention=True, position_buckets=4, max_relative_positions=2)
