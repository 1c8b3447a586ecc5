"""What every objective of the table must do, and cross-entropy against its loop."""

from types import SimpleNamespace

import pytest
import reference
import torch
from conftest import tiny, token_batch, wanted_shape

from data.batches import Batch
from losses import OBJECTIVES
from losses.cross_entropy import cross_entropy
from losses.margin import margin_loss
from losses.margin import objective as margin_objective
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


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, entry in OBJECTIVES.items() if not entry.pretraining])
def test_an_objective_is_a_mean_over_examples(name):
    """Twice the same batch: the same loss, but for the contrast, which sees more. And it returns the logits that
    accuracy is counted from."""
    shape = wanted_shape(name)
    model = tiny("capsule_lstm" if shape else "bert", **shape).eval()
    (ids, mask), labels = token_batch([7, 5, 3]), torch.tensor([0, 1, 1])
    options = SimpleNamespace(**{field: getattr(Options, field) for field in Options.__dataclass_fields__})
    once = Batch(ids, mask, labels, torch.arange(3))
    twice = Batch(*(torch.cat([part, part]) for part in once[:4]))
    options.supcon_weight = 0.0
    (loss, logits), (same, _) = (OBJECTIVES[name].objective(model, batch, options) for batch in (once, twice))
    torch.testing.assert_close(loss, same)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits[:3], model(ids, mask))


def test_margin_loss_against_numbers_by_hand():
    lengths = torch.tensor([[0.95, 0.3], [0.6, 0.05], [0.2, 0.2]])
    labels = torch.tensor([0, 0, 1])
    by_hand = [0 + 0.5 * 0.2**2, 0.3**2 + 0, 0.7**2 + 0.5 * 0.1**2]
    assert margin_loss(lengths, labels).item() == pytest.approx(sum(by_hand) / 3)


def test_margin_loss_equals_the_loop_with_gradients():
    torch.manual_seed(0)
    lengths = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, 0])
    plain = torch.zeros((), dtype=torch.float64)
    for row, label in zip(lengths, labels.tolist(), strict=True):
        for c, length in enumerate(row):
            slack = (0.9 - length) if c == label else (length - 0.1)
            if slack > 0:
                plain = plain + (1 if c == label else 0.5) * slack**2 / 5
    ours = margin_loss(lengths, labels)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, lengths)[0] for loss in (ours, plain)))


def test_margin_loss_needs_class_capsules():
    batch = Batch(*token_batch([4, 3]), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(ValueError, match="needs class capsules"):
        margin_objective(tiny("capsule_lstm"), batch, None)
