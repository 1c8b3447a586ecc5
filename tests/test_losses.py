"""Properties of every classification objective of the table; cross-entropy and the margin loss against loops."""

import dataclasses

import pytest
import reference
import torch
from conftest import CLASSIFYING, required_shape, tiny, token_batch
from torch.nn import Module

from data.batches import Batch
from losses import OBJECTIVES
from losses.cross_entropy import cross_entropy
from losses.divergence import entropy, kl_divergence, symmetric_kl
from losses.margin import MarginOptions, margin_loss
from losses.margin import objective as margin_objective
from losses.supcon import supcon_loss

WEIGHTS = [0.5, 2.0, 1.5]  # of the classes; the weights of a batch do not add up to its size


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=str)
def test_cross_entropy_equals_the_loop_with_gradients(smoothing, weights):
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, class_weights = torch.tensor([2, 0, 1, 1, 2]), weights and torch.tensor(weights, dtype=torch.float64)
    ours = cross_entropy(logits, labels, smoothing, class_weights)
    pair = ours, reference.cross_entropy(logits, labels, smoothing, weights or [1.0, 1.0, 1.0])
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in pair))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing):
    logits, labels = torch.randn(5, 3), torch.tensor([2, 0, 1, 1, 2])
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing), theirs)


def test_cross_entropy_of_bf16_is_computed_in_fp32():
    logits, labels = (30 * torch.randn(5, 3)).bfloat16(), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(cross_entropy(logits, labels), cross_entropy(logits.float(), labels))


IN_FP32 = {
    "KL": kl_divergence,
    "symmetric KL": symmetric_kl,
    "entropy": lambda p, _: entropy(p),
    "margin loss": lambda lengths, _: margin_loss(lengths, torch.tensor([2, 0, 1, 1, 2])),
}


@pytest.mark.parametrize("name", IN_FP32)
def test_other_terms_of_bf16_are_computed_in_fp32(name):
    torch.manual_seed(0)
    p, q = torch.rand(2, 5, 3).bfloat16()
    expected = IN_FP32[name](p.float(), q.float())
    torch.testing.assert_close(IN_FP32[name](p, q), expected, rtol=0, atol=0)


def test_cross_entropy_is_finite_for_extreme_logits():
    assert torch.isfinite(cross_entropy(torch.tensor([[1e30, -1e30]]), torch.tensor([1])))


def test_cross_entropy_takes_an_excluded_class():
    logits, labels = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 1.0, -torch.inf]]), torch.tensor([0, 1])
    assert torch.equal(cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_its_range_raises(smoothing):
    with pytest.raises(ValueError, match=rf"label smoothing {smoothing} is outside \[0, 1\)"):
        cross_entropy(torch.zeros(1, 2), torch.tensor([0]), smoothing)


def model_and_batch(objective: str) -> tuple[Module, Batch]:
    """Returns a tiny model that the objective can train, and three reviews with labels and a teacher's logits."""
    shape = required_shape(objective)
    model = tiny("capsule_lstm" if shape else "bert", **shape).eval()
    teacher = torch.tensor([[0.5, -1.0], [2.0, 1.0], [-3.0, 0.0]])
    return model, Batch(*token_batch([7, 5, 3]), torch.tensor([0, 1, 1]), torch.arange(3), teacher=teacher)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSIFYING)
def test_an_objective_is_a_mean_over_examples(name):
    """A batch that contains every example twice has the same loss.

    The contrastive loss is left out, because its contrast set grows. The second value is the logits.
    """
    (model, once), entry = model_and_batch(name), OBJECTIVES[name]
    options = entry.options()
    if hasattr(options, "supcon_weight"):
        options = dataclasses.replace(options, supcon_weight=0.0)
    twice = Batch(*(torch.cat([tensor, tensor]) for tensor in once[:4]), teacher=once.teacher.repeat(2, 1))
    (loss, logits), (same, _) = (entry.objective(model, batch, options) for batch in (once, twice))
    torch.testing.assert_close(loss, same)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits[:3], model(once.input_ids, once.mask))


@pytest.mark.parametrize("name", CLASSIFYING)
def test_the_loss_of_a_bf16_pass_is_computed_in_fp32(name):
    (model, batch), entry = model_and_batch(name), OBJECTIVES[name]
    losses = []
    for mixed in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(entry.objective(model, batch, entry.options())[0])
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)
    assert all(p.grad is None for p in model.parameters())  # a perturbation leaves no gradient of its own
    losses[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [name for name in CLASSIFYING if not OBJECTIVES[name].unlabelled])
def test_class_weights_multiply_the_terms_with_labels(name):
    """With equal class weights w the loss is a + w·b. b > 0 are the terms with labels; w = 1 is no weighting."""
    (model, batch), entry = model_and_batch(name), OBJECTIVES[name]
    equal = [None, *(torch.full((2,), weight) for weight in (1.0, 2.0, 3.0))]
    batches = [batch._replace(class_weights=weights) for weights in equal]
    unweighted, one, two, three = (entry.objective(model, each, entry.options())[0] for each in batches)
    torch.testing.assert_close(one, unweighted)
    assert two > one + 0.01
    torch.testing.assert_close(three - two, two - one)
    if name in ("ce", "margin", "adversarial"):  # a = 0
        torch.testing.assert_close(two, 2 * one)


def test_margin_loss_against_numbers_by_hand():
    lengths = torch.tensor([[0.95, 0.3], [0.6, 0.05], [0.2, 0.2]])
    labels = torch.tensor([0, 0, 1])
    by_hand = [0 + 0.5 * 0.2**2, 0.3**2 + 0, 0.7**2 + 0.5 * 0.1**2]
    assert margin_loss(lengths, labels).item() == pytest.approx(sum(by_hand) / 3)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=str)
def test_margin_loss_equals_the_loop_with_gradients(weights):
    torch.manual_seed(0)
    lengths = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, 0])
    plain = torch.zeros((), dtype=torch.float64)
    for row, label in zip(lengths, labels.tolist(), strict=True):
        for c, length in enumerate(row):
            slack = (0.9 - length) if c == label else (length - 0.1)
            if slack > 0:
                weight = weights[label] if weights else 1
                plain = plain + weight * (1 if c == label else 0.5) * slack**2 / 5
    class_weights = weights and torch.tensor(weights, dtype=torch.float64)
    ours = margin_loss(lengths, labels, class_weights=class_weights)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, lengths)[0] for loss in (ours, plain)))


def test_the_margin_objective_is_the_loss_of_the_capsule_lengths():
    model = tiny("capsule_lstm", **required_shape("margin")).eval()
    batch = Batch(*token_batch([4, 3]), torch.tensor([0, 1]), torch.arange(2))
    loss, lengths = margin_objective(model, batch, MarginOptions())
    assert torch.equal(lengths, model(batch.input_ids, batch.mask))
    torch.testing.assert_close(loss, margin_loss(lengths, batch.labels))


def test_margin_loss_needs_class_capsules():
    batch = Batch(*token_batch([4, 3]), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(ValueError, match="needs class capsules"):
        margin_objective(tiny("capsule_lstm"), batch, MarginOptions())


@pytest.mark.parametrize("excluding", ["p", "both"])
def test_a_class_that_p_excludes_adds_nothing_to_the_divergence(excluding: str):
    p = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    q = torch.tensor([[0.3, 0.0 if excluding == "p" else -torch.inf]], requires_grad=True)
    loss = kl_divergence(p, q)
    torch.testing.assert_close(loss, -q.log_softmax(-1)[:, 0])
    loss.sum().backward()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()
    assert entropy(p) == 0


def test_the_symmetric_divergence_from_a_class_that_p_excludes_is_infinite():
    p, q = torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2)
    assert symmetric_kl(p, q) == symmetric_kl(q, p) == torch.inf
    assert symmetric_kl(p, p) == 0


def test_a_divergence_of_other_numbers_of_rows_is_refused():
    with pytest.raises(ValueError, match=r"logits \[1, 2\] and \[3, 2\] differ"):
        kl_divergence(torch.zeros(1, 2), torch.zeros(3, 2))


def test_negative_labels_are_no_class_of_a_contrast():
    with pytest.raises(ValueError, match="label -1 is not a class"):
        supcon_loss(torch.eye(3), torch.tensor([0, -1, 1]), 0.5)
