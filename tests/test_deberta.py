import dataclasses

import pytest
import reference
import torch
from conftest import tiny, token_batch

from nn.deberta import DebertaConfig, DisentangledAttention, log_bucket, relative_index

B, T, D, H = 2, 11, 6, 2
SPAN, LIMIT = 4, 9  # so that distances fall into log buckets, and some beyond the span
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


def layer_and_inputs(**changes):
    torch.manual_seed(0)
    layer = DisentangledAttention(dataclasses.replace(CONFIG, **changes)).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2 * SPAN, D, dtype=torch.float64, requires_grad=True)
    return layer, x, table, torch.arange(T) < torch.tensor([T, 6])[:, None]


@pytest.mark.parametrize("queries", [None, 4, torch.arange(T).expand(B, -1)], ids=["view", "view of some", "gather"])
def test_both_forms_equal_the_loop_over_pairs_with_gradients(queries):
    """Outside fp32 the relative terms are read through a view; chosen tokens are gathered in every precision."""
    layer, x, table, mask = layer_and_inputs()
    names = ("query", "key", "value", "output")
    weights = {name: (getattr(layer, name).weight, getattr(layer, name).bias) for name in names}
    ours = layer(x, mask, None, queries, table)
    plain = reference.disentangled_attention(x, table, weights, H, mask, SPAN, LIMIT)[:, : ours.size(1)]
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(ours)
    wanted = [x, table, *(tensor for pair in weights.values() for tensor in pair)]
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("buckets", "limit"), [(256, 512), (8, 64), (4, 12)])
def test_log_buckets_equal_the_scalar_formula(buckets, limit):
    distances = range(-limit - 50, limit + 51)
    ours = log_bucket(torch.tensor(list(distances)), buckets, limit).tolist()
    assert ours == [reference.bucket(r, buckets, limit) for r in distances]


def test_log_buckets_of_the_published_models():
    """Odd, exact up to 128, never falling, and 511 is the last row of a 512-row table."""
    r = torch.arange(-511, 512)
    b = log_bucket(r, 256, 512)
    assert torch.equal(b, -b.flip(0))
    assert torch.equal(b[(r.abs() <= 128)], r[(r.abs() <= 128)])
    assert (b.diff() >= 0).all()
    assert b[-1] == 255


def test_only_rows_that_occur_are_projected():
    index, first, last = relative_index(T, T, 256, 512, torch.device("cpu"))
    assert (first, last) == (256 - T + 1, 256 + T - 1)
    assert index.min() == 0
    assert index.max() == last - first
    _, first, last = relative_index(1, T, 256, 512, torch.device("cpu"))  # [CLS] has nothing before it
    assert (first, last) == (256 - T + 1, 256)


def test_bf16_is_near_fp32():
    """Values and gradients, as vectors, within 1 % and 2 %."""
    layer, x, table, mask = layer_and_inputs()
    layer.float()
    wanted = [x, table, *layer.parameters()]
    upstream, results = torch.randn(B, T, D), []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x.float(), mask, None, None, table.float())
        gradients = torch.autograd.grad(y, wanted, upstream.to(y.dtype))
        results.append((y.float(), torch.cat([gradient.flatten().float() for gradient in gradients])))
    (y, gradient), (near_y, near_gradient) = results
    assert (near_y - y).norm() < 0.01 * y.norm()
    assert (near_gradient - gradient).norm() < 0.02 * gradient.norm()


def test_scale_counts_the_terms():
    """With R = 0 and no biases the relative terms vanish; the scale stays √(3K)."""
    layer, x, _, mask = layer_and_inputs()
    for part in (layer.query, layer.key):
        part.bias.data.zero_()
    got = layer(x, mask, None, None, torch.zeros(2 * SPAN, D, dtype=torch.float64))
    q, k, v = ((part(x)).view(B, T, H, -1).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
    plain = reference.attention(q / 3**0.5, k, v, mask)
    torch.testing.assert_close(got, layer.output(plain.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kinds", ["c2p", "p2c", ""])
def test_without_a_term_it_is_left_out_of_score_and_scale(kinds):
    layer, x, table, mask = layer_and_inputs(pos_att_type=kinds)
    full, *_ = layer_and_inputs()
    assert not torch.allclose(layer(x, mask, None, None, table), full(x, mask, None, None, table))
    assert (layer.c2p, layer.p2c) == ("c2p" in kinds, "p2c" in kinds)


def test_a_zero_length_prefix_changes_nothing_and_a_real_one_does():
    layer, x, table, mask = layer_and_inputs()
    empty = torch.zeros(1, H, 0, D // H, dtype=torch.float64)
    assert torch.equal(layer(x, mask, (empty, empty), None, table), layer(x, mask, None, None, table))
    extra = torch.randn(1, H, 3, D // H, dtype=torch.float64)
    assert not torch.allclose(layer(x, mask, (extra, extra), None, table), layer(x, mask, None, None, table))


def test_the_relative_table_and_its_norm_are_trained():
    model = tiny("deberta")
    model(*token_batch([7, 5])).sum().backward()
    for parameter in (model.relative.weight, model.relative_norm.weight, model.relative_norm.bias):
        assert parameter.grad.abs().sum() > 0


def test_the_convolution_does_not_look_past_the_review():
    model = tiny("deberta", conv_kernel_size=3, conv_act="gelu").eval()
    ids, mask = token_batch([9, 4])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :4], mask[1:, :4]), rtol=1e-5, atol=1e-6)


def test_pos_att_type_is_read_as_string_and_list():
    def read(kinds):
        return DebertaConfig(relative_attention=True, pos_att_type=kinds).pos_att_type

    assert read("p2c|c2p") == read(["p2c", "c2p"]) == ("p2c", "c2p")
    with pytest.raises(ValueError, match="p2p is not supported"):
        read("c2p|p2p")
