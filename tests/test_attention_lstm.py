import pytest
import reference
import torch
from conftest import tiny, token_batch

from nn.attention import AdditiveAttention

B, T, D, A = 2, 5, 3, 7
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def test_additive_attention_equals_the_loop_with_gradients():
    torch.manual_seed(0)
    layer = AdditiveAttention(D, A).double()
    h = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    actual = layer(h, MASK)[0]
    expected = reference.additive_attention(
        h, mask=MASK, weight=layer.dense.weight, bias=layer.dense.bias, query=layer.query.weight[0]
    )
    torch.testing.assert_close(actual, expected)
    upstream, inputs = torch.randn_like(actual), [h, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, upstream) for y in (actual, expected)))


def test_the_attention_has_its_own_width():
    assert tiny("attention_lstm", attention_size=A).attention.dense.weight.shape == (A, 2 * 12)


def test_weights_sum_to_one_over_real_words():
    model, (ids, mask) = tiny("attention_lstm").eval(), token_batch([7, 4])
    weights = model.attention_weights(ids, mask)
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


@pytest.mark.parametrize("with_max", [False, True])
def test_features_with_and_without_the_maximum(with_max: bool):
    model, (ids, mask) = tiny("attention_lstm", with_max=with_max).eval(), token_batch([7, 4])
    h = model.encode(model.embed(ids, mask), mask)
    r = torch.einsum("bt,btd->bd", model.attention_weights(ids, mask), h)
    features = model.features(ids, mask)
    torch.testing.assert_close(features[:, :24], r, rtol=1e-5, atol=1e-6)
    assert features.shape == (2, 48 if with_max else 24)
    if with_max:
        torch.testing.assert_close(features[1, 24:], h[1, :4].amax(0))
