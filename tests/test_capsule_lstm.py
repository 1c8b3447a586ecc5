import pytest
import torch
from conftest import tiny, token_batch

from nn.capsule_lstm import CapsuleLSTM, CapsuleLSTMConfig, route, squash

B, T, J, K = 2, 5, 3, 4
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def plain_squash(s):
    n = sum(value * value for value in s).sqrt()
    return n**2 / (1 + n**2) * s / n


def loop(u, mask, iterations):
    """Procedure 1, one number at a time."""
    rows = []
    for b in range(B):
        real = [t for t in range(T) if mask[b, t]]
        logits = {(t, j): torch.zeros((), dtype=u.dtype) for t in real for j in range(J)}
        for _ in range(iterations):
            c = {}
            for t in real:
                total = sum(logits[t, j].exp() for j in range(J))
                c |= {(t, j): logits[t, j].exp() / total for j in range(J)}
            s = [sum(c[t, j] * u[b, t, j] for t in real) / sum(c[t, j] for t in real) for j in range(J)]
            v = [plain_squash(s_j) for s_j in s]
            logits = {(t, j): logits[t, j] + u[b, t, j] @ v[j] for t in real for j in range(J)}
        rows.append(torch.stack(v))
    return torch.stack(rows)


@pytest.mark.parametrize("iterations", [1, 3])
def test_routing_equals_the_loop_with_gradients(iterations):
    torch.manual_seed(0)
    u = torch.randn(B, T, J, K, dtype=torch.float64, requires_grad=True)
    ours, plain = route(u, MASK, iterations)[0], loop(u, MASK, iterations)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(y, u, upstream)[0] for y in (ours, plain)))


def test_squash_keeps_direction_and_stays_below_one():
    s = torch.randn(50, K) * torch.logspace(-3, 1.5, 50)[:, None]
    v = squash(s)
    assert (v.norm(dim=-1) < 1).all()
    torch.testing.assert_close(torch.cosine_similarity(v, s, dim=-1), torch.ones(50))
    assert (v.norm(dim=-1).diff() * s.norm(dim=-1).diff() > 0).all()  # longer stays longer
    zero = torch.zeros(2, K, requires_grad=True)
    squash(zero).sum().backward()
    assert (zero.grad == 0).all()


def test_routing_weights_sum_to_one_and_ignore_padding():
    c = route(torch.randn(B, T, J, K), MASK, 3)[1]
    torch.testing.assert_close(c.sum(-1), MASK.float())


def test_routing_prefers_the_capsule_that_agrees():
    u = torch.randn(1, 6, 2, K) * 0.1
    u[0, :, 0] += 2.0  # all places predict the same for capsule 0
    c = route(u, torch.ones(1, 6, dtype=torch.bool), 3)[1]
    assert (c[0, :, 0] > 0.8).all()


def test_class_capsules_give_lengths():
    model, (ids, mask) = tiny("capsule_lstm", head="capsules").eval(), token_batch([7, 4])
    lengths = model(ids, mask)
    assert lengths.shape == (2, 2)
    assert (lengths > 0).all()
    assert (lengths < 1).all()
    torch.testing.assert_close(lengths, model.features(ids, mask).view(2, 2, 4).norm(dim=-1))


def test_bad_settings():
    with pytest.raises(ValueError, match="unknown head 'sum'; known: linear, capsules"):
        CapsuleLSTM(CapsuleLSTMConfig(head="sum"))
    with pytest.raises(ValueError, match="0 routing iterations"):
        CapsuleLSTM(CapsuleLSTMConfig(iterations=0))
