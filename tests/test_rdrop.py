"""R-Drop against its equations, example by example."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny, token_batch
from torch import Tensor

from data.batches import Batch
from losses.cross_entropy import cross_entropy
from losses.divergence import symmetric_kl
from losses.rdrop import RDropOptions, objective, print_warning, rdrop_loss
from losses.supcon import RDropSupConOptions, rdrop_objective
from nn.dropout import set_dropout

B, C = 5, 3


def random_pair(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns two float64 logits [B, C] and labels [B]."""
    torch.manual_seed(seed)
    first, second = (torch.randn(B, C, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return first, second, torch.tensor([0, 2, 1, 1, 0])


def loop(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Computes Eq. (1)–(4), example by example and class by class, with the mean of both cross-entropies."""
    total = torch.zeros((), dtype=torch.float64)
    for one, two, label in zip(first, second, labels.tolist(), strict=True):
        p, q = (row.exp() / row.exp().sum() for row in (one, two))
        ce = 0.5 * (-p[label].log() - q[label].log())
        kl = sum(0.5 * (p[c] * (p[c] / q[c]).log() + q[c] * (q[c] / p[c]).log()) for c in range(C))
        total = total + ce + alpha * kl
    return total / B


def test_equals_the_loop_with_gradients():
    first, second, labels = random_pair()
    ours, plain = rdrop_loss(first, second, labels, alpha=0.7), loop(first, second, labels, alpha=0.7)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(*(torch.autograd.grad(loss, (first, second)) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_equals_torchs_kl():
    first, second, _ = random_pair()
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(
        q, p, reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(symmetric_kl(first, second).mean(), both / 2)


def test_equal_passes_give_cross_entropy():
    first, _, labels = random_pair()
    loss = rdrop_loss(first, first, labels, alpha=3.0, smoothing=0.1)
    torch.testing.assert_close(loss, cross_entropy(first, labels, 0.1))


def test_is_symmetric_and_a_mean_over_examples():
    first, second, labels = random_pair()
    loss = rdrop_loss(first, second, labels, alpha=0.7)
    torch.testing.assert_close(rdrop_loss(second, first, labels, alpha=0.7), loss)
    doubled = rdrop_loss(torch.cat([first, first]), torch.cat([second, second]), labels.repeat(2), alpha=0.7)
    torch.testing.assert_close(doubled, loss)


def test_the_divergence_is_positive_and_computed_in_fp32():
    assert all(symmetric_kl(*random_pair(seed)[:2]).mean() > 0 for seed in range(9))
    first, second, labels = random_pair()
    halves = first.bfloat16(), second.bfloat16()
    expected = rdrop_loss(*(logits.float() for logits in halves), labels, alpha=0.7)
    torch.testing.assert_close(rdrop_loss(*halves, labels, alpha=0.7), expected, rtol=0, atol=0)


def test_the_objective_runs_two_passes_in_one_batch():
    model, (ids, mask) = tiny("lstm").train(), token_batch([7, 4])
    batch = Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2))
    loss, logits = objective(model, batch, RDropOptions(rdrop_alpha=0.7, label_smoothing=0.1))
    assert logits.shape == (4, 2)
    assert not torch.allclose(logits[:2], logits[2:])
    expected = rdrop_loss(logits[:2], logits[2:], batch.labels, alpha=0.7, smoothing=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("one", [objective, rdrop_objective])
def test_a_training_model_without_dropout_gives_one_warning(one, capsys):
    (ids, mask), none = token_batch([7, 4]), dict.fromkeys(("word_dropout", "embedding_dropout", "dropout"), 0.0)
    batch, options = Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2)), RDropSupConOptions()
    still = tiny("lstm", **none)
    print_warning.cache_clear()
    one(still.eval(), batch, options)
    for name in none:
        one(tiny("lstm", **none | {name: 0.5}).train(), batch, options)
    assert capsys.readouterr().out == ""
    for _ in range(2):
        one(still.train(), batch, options)
    message = "without dropout both passes of R-Drop are equal, and it has no effect; --dropout 0.1 adds dropout"
    assert capsys.readouterr().out == f"warning: {message}\n"
    set_dropout(still, 0.1)
    assert not torch.equal(*one(still, batch, options)[1].chunk(2))


def test_a_negative_alpha_raises():
    first, second, labels = random_pair()
    with pytest.raises(ValueError, match=r"rdrop_alpha -1\.0 is negative"):
        rdrop_loss(first, second, labels, alpha=-1.0)
    with pytest.raises(ValueError, match=r"rdrop_alpha -0\.5 is negative"):
        RDropOptions(rdrop_alpha=-0.5)
