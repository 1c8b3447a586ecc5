import dataclasses

import pytest
import torch
from conftest import tiny, token_batch

import train
from data.batches import Batch, Corpus, Stream
from losses import OBJECTIVES
from losses.mixed import Reviews, entropy, kl, objective, of_length, prepare, vat_loss, virtual_perturbation
from train import Options

MODELS_HERE = ["lstm", "bert", "deberta"]


def reviews(name: str, train: bool = True) -> Reviews:
    torch.manual_seed(0)
    model, (ids, mask) = tiny(name).train(train), token_batch([7, 4, 5])
    return Reviews.embed(model, ids, mask)


def test_divergence_and_entropy_equal_their_sums():
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    sums = [sum(p[i, c] * (p[i, c] / q[i, c]).log() for c in range(3)) for i in range(4)]
    torch.testing.assert_close(kl(a, b), sum(sums) / 4)
    torch.testing.assert_close(entropy(a), -(p * p.log()).sum() / 4)


def test_a_direction_gets_its_length_over_the_whole_review():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    scaled = of_length(torch.randn(2, 3, 5), mask, 2.5)
    torch.testing.assert_close(scaled.flatten(1).norm(dim=1), torch.full((2,), 2.5))
    assert (scaled[~mask] == 0).all()
    assert (of_length(torch.zeros(2, 3, 5), mask, 2.5) == 0).all()


@pytest.mark.parametrize("name", MODELS_HERE)
def test_passes_share_their_dropout(name):
    these = reviews(name)
    assert torch.equal(these.logits(), these.logits())
    assert not torch.equal(these.logits(), reviews(name, train=False).logits())


@pytest.mark.parametrize("name", MODELS_HERE)
def test_the_perturbation_has_its_radius_and_beats_noise(name):
    these = reviews(name, train=False)
    target = these.logits().detach()
    r = virtual_perturbation(these, target, 0.5)
    torch.testing.assert_close(r.flatten(1).norm(dim=1), (0.5 * these.spread()).expand(3), rtol=1e-4, atol=1e-6)
    assert not r.requires_grad
    with torch.no_grad():
        worst = kl(target, these.logits(r))
        noise = [of_length(torch.randn_like(r), these.mask, 0.5 * these.spread()) for _ in range(20)]
        usual = sorted(float(kl(target, these.logits(part))) for part in noise)
    assert worst > usual[-1]


def test_no_gradient_flows_through_the_target():
    these = reviews("lstm", train=False)
    clean = these.logits()
    torch.manual_seed(1)
    loss = vat_loss(these, clean, 1.0)
    (through,) = torch.autograd.grad(loss, clean, allow_unused=True, retain_graph=True)
    assert through is None
    gradients = torch.autograd.grad(loss, list(these.model.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def four(unlabelled: bool = True) -> Batch:
    ids, mask = token_batch([9, 7, 5, 3])
    batch = Batch(ids, mask, torch.tensor([0, 1, 1, 0]), torch.arange(4))
    return batch._replace(unlabelled=batch._replace(input_ids=ids.flip(0), mask=mask.flip(0)) if unlabelled else None)


@pytest.mark.parametrize("name", MODELS_HERE)
def test_each_part_counts(name):
    values = {}
    for part in ("none", "adversarial_weight", "vat_weight", "entropy_weight"):
        weights = dict.fromkeys(("adversarial_weight", "vat_weight", "entropy_weight"), 0.0)
        options = dataclasses.replace(Options(), **(weights | {part: 1.0} if part != "none" else weights))
        torch.manual_seed(0)
        values[part] = objective(tiny(name).train(), four(), options)[0].item()
    assert all(values[part] > values["none"] for part in values if part != "none")


@pytest.mark.parametrize("name", MODELS_HERE)
def test_adversarial_training_is_its_equations(name):
    torch.manual_seed(0)
    model, batch = tiny(name).eval().double(), four(unlabelled=False)
    options = dataclasses.replace(Options(), **OBJECTIVES["adversarial"].training, adversarial_weight=0.7, radius=2.0)
    ours, _ = OBJECTIVES["adversarial"].objective(model, batch, options)

    def losses(x: torch.Tensor) -> torch.Tensor:
        logits = model.classifier(model.pool(model.encode(x, batch.mask), batch.mask))
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")  # [B]

    x = model.embed(batch.input_ids, batch.mask).detach().requires_grad_()
    clean = losses(x)
    gradients = [torch.autograd.grad(clean[b], x, retain_graph=True)[0][b] for b in range(len(clean))]
    r = torch.stack([2.0 * x[batch.mask].std() * g / g.norm() for g in gradients])  # Eq. (5)
    torch.testing.assert_close(ours, clean.mean() + 0.7 * losses(x + r).mean(), rtol=1e-5, atol=1e-6, check_dtype=False)
    assert losses(x + r).mean() > clean.mean()


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="radius 0 must be above 0"):
        prepare(tiny("lstm"), dataclasses.replace(Options(), radius=0), None)
    arguments = [
        "--model",
        "cnn",
        "--loss",
        "mixed",
        "--data",
        "demo",
        "--runs",
        str(tmp_path),
        "--word-vectors",
        "none",
    ]
    with pytest.raises(ValueError, match="needs unlabelled reviews"):
        train.main(arguments)


def test_a_stream_gives_every_review_once_an_epoch_and_the_same_again():
    corpus = Corpus.from_rows([[k + 1] * (k % 4 + 1) for k in range(10)], [-1] * 10, 0)
    stream = Stream(corpus, 3, seed=1)
    seen = [stream.batch(number).rows.tolist() for number in range(8)]
    for epoch in (seen[:4], seen[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert seen[:4] != seen[4:]
    assert [Stream(corpus, 3, seed=1).batch(number).rows.tolist() for number in (6, 2)] == [seen[6], seen[2]]
