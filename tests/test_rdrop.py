import pytest
import torch
import torch.nn.functional as F
from conftest import tiny, token_batch

from data.batches import Batch
from losses.cross_entropy import cross_entropy
from losses.rdrop import objective, rdrop_loss, symmetric_kl
from train import Options

B, C = 5, 3


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    first, second = (torch.randn(B, C, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return first, second, torch.tensor([0, 2, 1, 1, 0])


def loop(first, second, labels, alpha):
    """Eq. (1)–(4), example by example, class by class; the CE of both passes as their mean."""
    total = torch.zeros((), dtype=torch.float64)
    for one, two, label in zip(first, second, labels.tolist(), strict=True):
        p, q = (row.exp() / row.exp().sum() for row in (one, two))
        ce = 0.5 * (-p[label].log() - q[label].log())
        kl = sum(0.5 * (p[c] * (p[c] / q[c]).log() + q[c] * (q[c] / p[c]).log()) for c in range(C))
        total = total + ce + alpha * kl
    return total / B


def test_equals_the_loop_with_gradients():
    first, second, labels = pair()
    ours, plain = rdrop_loss(first, second, labels, 0.7), loop(first, second, labels, 0.7)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(*(torch.autograd.grad(loss, (first, second)) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_equals_torchs_kl():
    first, second, _ = pair()
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(
        q, p, reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(symmetric_kl(first, second), both / 2)


def test_properties():
    first, second, labels = pair()
    torch.testing.assert_close(rdrop_loss(first, first, labels, 3.0), cross_entropy(first, labels))
    torch.testing.assert_close(rdrop_loss(first, second, labels, 0.7), rdrop_loss(second, first, labels, 0.7))
    doubled = rdrop_loss(torch.cat([first, first]), torch.cat([second, second]), labels.repeat(2), 0.7)
    torch.testing.assert_close(doubled, rdrop_loss(first, second, labels, 0.7))
    assert all(symmetric_kl(*pair(seed)[:2]) > 0 for seed in range(9))
    assert rdrop_loss(first.bfloat16(), second.bfloat16(), labels, 0.7).dtype == torch.float32
    with pytest.raises(ValueError, match="rdrop_alpha -1"):
        rdrop_loss(first, second, labels, -1.0)


def test_objective_has_two_passes_in_one_batch():
    model, (ids, mask) = tiny("lstm").train(), token_batch([7, 4])
    batch = Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2))
    loss, logits = objective(model, batch, Options())
    assert logits.shape == (4, 2)
    torch.testing.assert_close(loss, rdrop_loss(logits[:2], logits[2:], batch.labels, Options.rdrop_alpha))
    still = tiny("lstm", word_dropout=0.0, embedding_dropout=0.0, dropout=0.0).train()
    with pytest.warns(UserWarning, match="both passes are equal"):
        objective(still, batch, Options())
