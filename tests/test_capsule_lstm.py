import pytest
import reference
import torch
from conftest import tiny, token_batch

from nn.capsule_lstm import CapsuleLayer, CapsuleLengths, CapsuleLSTM, CapsuleLSTMConfig, route, squash

B, T, J, K = 2, 5, 3, 4
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


@pytest.mark.parametrize("iterations", [1, 3])
def test_routing_equals_the_loop_with_gradients(iterations: int):
    torch.manual_seed(0)
    u = torch.randn(B, T, J, K, dtype=torch.float64, requires_grad=True)
    actual, _ = route(u, mask=MASK, iterations=iterations)
    expected = reference.route(u, mask=MASK, iterations=iterations)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(actual)
    torch.testing.assert_close(*(torch.autograd.grad(y, u, upstream) for y in (actual, expected)))


def test_squash_keeps_direction_and_shrinks_length_below_one():
    s = torch.randn(50, K) * torch.logspace(-3, 1.5, 50)[:, None]
    v = squash(s)
    assert (v.norm(dim=-1) < 1).all()
    torch.testing.assert_close(torch.cosine_similarity(v, s, dim=-1), torch.ones(50))
    assert (v.norm(dim=-1).diff() * s.norm(dim=-1).diff() > 0).all()  # the order of lengths is kept
    zero = torch.zeros(2, K, requires_grad=True)
    squash(zero).sum().backward()
    assert (zero.grad == 0).all()
    assert (squash(zero.detach().half()) == 0).all()


def test_routing_weights_sum_to_one_and_ignore_padding():
    _, c = route(torch.randn(B, T, J, K), mask=MASK, iterations=3)
    torch.testing.assert_close(c.sum(-1), MASK.float())


def test_routing_prefers_the_capsule_with_equal_predictions():
    u = torch.randn(1, 6, 2, K) * 0.1
    u[0, :, 0] += 2.0  # all positions make nearly the same prediction for capsule 0
    _, c = route(u, mask=torch.ones(1, 6, dtype=torch.bool), iterations=3)
    assert (c[0, :, 0] > 0.8).all()


def test_scores_of_class_capsules_are_their_lengths():
    model, (ids, mask) = tiny("capsule_lstm", head="capsules").eval(), token_batch([7, 4])
    lengths = model(ids, mask)
    assert lengths.shape == (2, 2)
    assert (lengths > 0).all()
    assert (lengths < 1).all()
    torch.testing.assert_close(lengths, model.features(ids, mask).view(2, 2, 4).norm(dim=-1))


def test_lengths_of_bf16_capsules_are_rounded_once():
    torch.manual_seed(0)
    v = torch.rand(B, J * 101).bfloat16()
    lengths = CapsuleLengths(J, 101)
    torch.testing.assert_close(lengths(v), lengths(v.float()).bfloat16(), rtol=0, atol=0)


def test_capsules_start_as_glorot_and_bengio():
    """The matrix of each capsule, [K, D], is uniform within √(6 / (K + D))."""
    layer, bound = CapsuleLayer(input_size=200, num_capsules=3, capsule_size=100, iterations=1), (6 / 300) ** 0.5
    for matrix in layer.weight:
        assert 0.99 * bound < matrix.abs().max() <= bound


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="unknown head 'sum'; known: linear, capsules"):
        CapsuleLSTM(CapsuleLSTMConfig(head="sum"))
    with pytest.raises(ValueError, match="0 routing iterations"):
        CapsuleLSTM(CapsuleLSTMConfig(iterations=0))


def test_routing_is_in_fp32_under_autocast():
    """Only û is computed in half precision."""
    torch.manual_seed(0)
    layer = CapsuleLayer(input_size=7, num_capsules=5, capsule_size=3, iterations=3)
    h, mask = torch.randn(2, 11, 7), torch.ones(2, 11, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v, c = layer.routing(h, mask)
        u = torch.nn.functional.linear(h, layer.weight.flatten(0, 1)).float().unflatten(-1, (5, 3))
    assert v.dtype == c.dtype == torch.float32
    torch.testing.assert_close((v, c), route(u, mask=mask, iterations=3), rtol=0, atol=0)


def test_a_capsule_of_length_zero_has_a_finite_gradient():
    v = torch.zeros(1, 2 * K, requires_grad=True)
    CapsuleLengths(2, K)(v).sum().backward()
    assert (v.grad == 0).all()
