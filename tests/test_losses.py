"""What every objective of the table must do, and cross-entropy against its loop."""

from types import SimpleNamespace

import pytest
import reference
import torch
from conftest import tiny, token_batch

from data.batches import Batch
from losses import OBJECTIVES
from losses.cross_entropy import cross_entropy
from train import Options


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_loop_with_gradients(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 1, 1, 2])
    pair = cross_entropy(logits, labels, smoothing), reference.cross_entropy(logits, labels, smoothing)
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in pair))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing):
    logits, labels = torch.randn(5, 3), torch.tensor([2, 0, 1, 1, 2])
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing), theirs)


def test_cross_entropy_of_bf16_is_computed_in_fp32():
    logits = (30 * torch.randn(5, 3)).bfloat16()
    assert torch.equal(
        cross_entropy(logits, torch.zeros(5).long()), cross_entropy(logits.float(), torch.zeros(5).long())
    )


def test_cross_entropy_is_finite_at_the_extremes_and_refuses_nonsense():
    assert torch.isfinite(cross_entropy(torch.tensor([[1e30, -1e30]]), torch.tensor([1])))
    with pytest.raises(ValueError, match=r"label smoothing 1\.0 is outside"):
        cross_entropy(torch.zeros(1, 2), torch.tensor([0]), 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_mean_over_examples(name):
    """Twice the same batch: the same loss. And it returns the logits that accuracy is counted from."""
    model, (ids, mask), labels = tiny("bert").eval(), token_batch([7, 5, 3]), torch.tensor([0, 1, 1])
    options = SimpleNamespace(**{field: getattr(Options, field) for field in Options.__dataclass_fields__})
    once = Batch(ids, mask, labels, torch.arange(3))
    twice = Batch(*(torch.cat([part, part]) for part in once))
    (loss, logits), (same, _) = (OBJECTIVES[name].objective(model, batch, options) for batch in (once, twice))
    torch.testing.assert_close(loss, same)
    assert loss.dtype == torch.float32
    assert logits.shape == (3, 2)
