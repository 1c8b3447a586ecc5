import dataclasses

import pytest
import torch
from conftest import ENCODERS, tiny, token_batch

from data.batches import Batch
from losses.cross_entropy import cross_entropy
from losses.supcon import objective, prepare, rdrop_objective, supcon_loss
from nn.checkpoint import load_pretrained, save_pretrained
from train import Options

LABELS = torch.tensor([0, 1, 1, 0, 2, 1])


def features(seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(6, 5, dtype=torch.float64, requires_grad=True)


def loop(x, labels, tau, inside):
    """Eq. (2) or (3), anchor by anchor; anchors without a positive are left out."""
    z = [row / row.square().sum().sqrt() for row in x]
    losses = []
    for i, y in enumerate(labels.tolist()):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == y]
        if not positives:
            continue
        total = sum((z[i] @ z[a] / tau).exp() for a in others)
        shares = [(z[i] @ z[p] / tau).exp() / total for p in positives]
        mean = sum(shares) / len(shares)
        losses.append(-mean.log() if inside else -sum(share.log() for share in shares) / len(shares))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_equals_the_loop_with_gradients(inside, tau):
    x = features()
    ours, plain = supcon_loss(x, LABELS, tau, inside), loop(x, LABELS, tau, inside)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, plain)))


def test_the_numbers_of_the_published_code():
    """What SupConLoss(temperature=τ, base_temperature=τ) of HobbitLong/SupContrast, losses.py, commit 02f458c, gave for
    these features, normalised, in one view, and in two views of [B, 2, D]."""
    x = torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 1.0], [-5.0, 12.0]])
    labels = LABELS[:4]
    assert supcon_loss(x, labels, 0.07).item() == pytest.approx(10.15457, rel=1e-4)  # its log has 1e-9 added
    assert supcon_loss(x, labels, 0.5).item() == pytest.approx(1.900827, rel=1e-5)
    assert supcon_loss(torch.cat([x, x.flip(0)]), labels.repeat(2), 0.3).item() == pytest.approx(3.161502, rel=1e-5)


def test_properties():
    x = features().detach()
    loss = supcon_loss(x, LABELS, 0.3)
    order = torch.randperm(6)
    torch.testing.assert_close(supcon_loss(x[order], LABELS[order], 0.3), loss)
    torch.testing.assert_close(supcon_loss(x * torch.rand(6, 1).add(0.1), LABELS, 0.3), loss)
    for seed in range(9):
        y = features(seed).detach()
        assert supcon_loss(y, LABELS, 0.3, inside=True) <= supcon_loss(y, LABELS, 0.3) + 1e-12
    assert supcon_loss(x.bfloat16(), LABELS, 0.07).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (torch.randn(1, 5), torch.tensor([0])),
        (torch.randn(3, 5), torch.tensor([0, 1, 2])),
        (torch.randn(3, 5), torch.tensor([1, 1, 1])),
        (torch.ones(4, 5), torch.tensor([0, 1, 0, 1])),
        (torch.zeros(4, 5), torch.tensor([0, 1, 0, 1])),
    ],
    ids=["one", "no positives", "one class", "identical", "zero"],
)
def test_odd_batches_are_finite(x, labels):
    x.requires_grad_()
    loss = supcon_loss(x, labels, 0.07)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def batch() -> Batch:
    ids, mask = token_batch([7, 4, 3, 5])
    return Batch(ids, mask, torch.tensor([0, 1, 1, 0]), torch.arange(4))


def test_objective_mixes_both():
    model = tiny("bert").eval()
    options = dataclasses.replace(Options(), supcon_weight=0.3, temperature=0.5)
    loss, logits = objective(model, batch(), options)
    x = model.features(batch().input_ids, batch().mask)
    ce = cross_entropy(logits, batch().labels)
    torch.testing.assert_close(loss, 0.7 * ce + 0.3 * supcon_loss(x, batch().labels, 0.5))


def test_two_passes_give_every_anchor_a_positive():
    model, options = tiny("bert").train(), dataclasses.replace(Options(), supcon_weight=1.0, rdrop_alpha=0.0)
    ids, mask = token_batch([7, 4])
    alone = Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2))
    loss, logits = rdrop_objective(model, alone, options)
    assert logits.shape == (4, 2)
    assert loss > 0


@pytest.mark.parametrize("name", [ENCODERS[0], "lstm"])
def test_the_projection_head_is_dropped(name, tmp_path):
    model, options = tiny(name), dataclasses.replace(Options(), supcon_weight=0.5, projection=6)
    prepare(model, options, None)
    loss, _ = objective(model.train(), batch(), options)
    loss.backward()
    assert model.projection.second.weight.shape == (6, model.classifier.in_features)
    assert model.projection.first.weight.grad.abs().sum() > 0
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert not hasattr(again, "projection")
    assert torch.equal(again.eval()(batch().input_ids, batch().mask), model.eval()(batch().input_ids, batch().mask))


def test_bad_settings():
    with pytest.raises(ValueError, match="temperature 0 must be above 0"):
        supcon_loss(torch.randn(3, 5), LABELS[:3], 0)
    with pytest.raises(ValueError, match=r"supcon_weight 1\.5 is outside"):
        prepare(tiny("bert"), dataclasses.replace(Options(), supcon_weight=1.5), None)
    with pytest.raises(ValueError, match=r"rdrop_alpha -1\.0 is negative"):
        rdrop_objective(tiny("bert"), batch(), dataclasses.replace(Options(), rdrop_alpha=-1.0))
