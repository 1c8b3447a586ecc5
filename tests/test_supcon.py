"""The supervised contrastive loss against its equations and the numbers of published code."""

import pytest
import torch
from conftest import ENCODERS, adapt, tiny, token_batch
from safetensors.torch import load_file
from torch import Tensor

from data.batches import Batch
from losses import OBJECTIVES
from losses.cross_entropy import cross_entropy
from losses.divergence import symmetric_kl
from losses.supcon import RDropSupConOptions, SupConOptions, objective, prepare, rdrop_objective, supcon_loss
from nn.checkpoint import load_pretrained, save_pretrained
from peft.files import save_adapter
from peft.methods import METHODS

LABELS = torch.tensor([0, 1, 1, 0, 2, 1])


def random_features(seed: int = 0) -> Tensor:
    """Returns float64 features [6, 5]."""
    torch.manual_seed(seed)
    return torch.randn(6, 5, dtype=torch.float64, requires_grad=True)


def loop(x: Tensor, labels: Tensor, tau: float, inside: bool) -> Tensor:
    """Computes Eq. (2) or (3), anchor by anchor, without the anchors that have no positive."""
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
    x = random_features()
    ours = supcon_loss(x, LABELS, temperature=tau, inside=inside)
    plain = loop(x, LABELS, tau=tau, inside=inside)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, plain)))


def test_equals_the_numbers_of_the_published_code():
    """Compares with SupConLoss(temperature=τ, base_temperature=τ) of HobbitLong/SupContrast, losses.py, commit 02f458c.

    Its input was these features, normalized: one view, and two views as [B, 2, D].
    """
    x = torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 1.0], [-5.0, 12.0]])
    labels = LABELS[:4]
    assert supcon_loss(x, labels, 0.07).item() == pytest.approx(10.15457, rel=1e-4)  # its log has 1e-9 added
    assert supcon_loss(x, labels, 0.5).item() == pytest.approx(1.900827, rel=1e-5)
    assert supcon_loss(torch.cat([x, x.flip(0)]), labels.repeat(2), 0.3).item() == pytest.approx(3.161502, rel=1e-5)


def test_order_and_norms_of_the_features_have_no_effect():
    x = random_features().detach()
    loss, order = supcon_loss(x, LABELS, 0.3), torch.randperm(6)
    torch.testing.assert_close(supcon_loss(x[order], LABELS[order], 0.3), loss)
    torch.testing.assert_close(supcon_loss(x * torch.rand(6, 1).add(0.1), LABELS, 0.3), loss)


def test_the_mean_inside_the_logarithm_is_a_lower_bound():
    for seed in range(9):
        x = random_features(seed).detach()
        assert supcon_loss(x, LABELS, 0.3, inside=True) <= supcon_loss(x, LABELS, 0.3) + 1e-12


def test_the_loss_of_bf16_features_is_computed_in_fp32():
    x = random_features().detach().bfloat16()
    expected = supcon_loss(x.float(), LABELS, 0.07)
    assert torch.equal(supcon_loss(x, LABELS, 0.07), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(supcon_loss(x, LABELS, 0.07), expected)


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
def test_loss_and_gradient_are_finite_for_degenerate_batches(x, labels):
    x = x.clone().requires_grad_()
    loss = supcon_loss(x, labels, 0.07)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    if len(labels.unique()) == len(labels):
        assert loss == 0


def test_a_batch_without_positives_has_a_loss_of_fp32():
    loss = supcon_loss(torch.full((4, 768), 100.0, dtype=torch.float16), torch.arange(4), 0.3)  # their sum overflows
    assert (loss.dtype, loss.item()) == (torch.float32, 0)


def four_reviews() -> Batch:
    """Returns a batch of four reviews, two of each class."""
    ids, mask = token_batch([7, 4, 3, 5])
    return Batch(ids, mask, torch.tensor([0, 1, 1, 0]), torch.arange(4))


def test_the_objective_is_the_weighted_sum_of_both_losses_with_gradients():
    model, batch = tiny("bert").eval(), four_reviews()
    options = SupConOptions(supcon_weight=0.3, temperature=0.5, label_smoothing=0.1)
    loss, logits = objective(model, batch, options)
    x = model.features(batch.input_ids, batch.mask)
    torch.testing.assert_close(logits, model.classifier(x))
    expected = 0.7 * cross_entropy(model.classifier(x), batch.labels, 0.1) + 0.3 * supcon_loss(x, batch.labels, 0.5)
    torch.testing.assert_close(loss, expected)
    inside = [*model.layers[-1].parameters(), model.pooler.dense.weight]
    torch.testing.assert_close(*(torch.autograd.grad(y, inside) for y in (loss, expected)))


def test_the_two_passes_of_rdrop_are_two_views():
    """Each review has a class of its own, so that its only positive is its other pass."""
    model, (ids, mask) = tiny("bert").train(), token_batch([7, 4])
    batch = Batch(ids, mask, torch.tensor([0, 1]), torch.arange(2))
    options = RDropSupConOptions(supcon_weight=0.3, temperature=0.5, rdrop_alpha=0.7, label_smoothing=0.1)
    torch.manual_seed(1)
    x = model.features(ids.repeat(2, 1), mask.repeat(2, 1))
    torch.manual_seed(1)
    loss, logits = rdrop_objective(model, batch, options)
    torch.testing.assert_close(logits, model.classifier(x))
    labels = torch.tensor([0, 1, 0, 1])
    ce, contrast = cross_entropy(logits, labels, 0.1), supcon_loss(x, labels, 0.5)
    kl = symmetric_kl(*logits.chunk(2)).mean()
    assert contrast > 0 < kl
    torch.testing.assert_close(loss, 0.7 * ce + 0.3 * contrast + 0.7 * kl)


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_head_is_trained_beside_every_method_and_not_saved(method, tmp_path):
    model, batch = adapt(tiny("bert"), method), four_reviews()
    prepare(model, SupConOptions(projection=6), None)
    expected = model.eval()(batch.input_ids, batch.mask)
    save_pretrained(model, tmp_path) if method == "none" else save_adapter(model, tmp_path, "somewhere")
    assert not [key for path in tmp_path.glob("*.safetensors") for key in load_file(path) if "projection" in key]
    assert torch.equal(model(batch.input_ids, batch.mask), expected)


@pytest.mark.parametrize("name", [ENCODERS[0], "lstm"])
def test_the_projection_head_is_trained_and_not_saved(name, tmp_path):
    model, batch, options = tiny(name), four_reviews(), SupConOptions(supcon_weight=1.0, temperature=0.5, projection=6)
    prepare(model, options, None)
    first, second = model.projection.first, model.projection.second
    assert second.weight.shape == (6, model.classifier.in_features)
    loss, _ = objective(model.eval(), batch, options)
    loss.backward()
    x = model.features(batch.input_ids, batch.mask)
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(loss, supcon_loss(hidden @ second.weight.T + second.bias, batch.labels, 0.5))
    assert first.weight.grad.abs().sum() > 0
    assert model.embeddings.word.weight.grad.abs().sum() > 0
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path).eval()
    assert again.projection is None
    assert torch.equal(again(batch.input_ids, batch.mask), model(batch.input_ids, batch.mask))


def test_a_classifier_that_is_not_trained_is_a_warning(capsys: pytest.CaptureFixture[str]):
    for weight in (0.9, 1.0):
        prepare(tiny("bert"), SupConOptions(supcon_weight=weight), None)
    assert capsys.readouterr().out.count("warning: --supcon-weight 1 trains no classifier") == 1


def test_unsupported_settings_raise():
    with pytest.raises(ValueError, match="temperature 0 must be above 0"):
        supcon_loss(torch.randn(3, 5), LABELS[:3], 0)
    for options in (SupConOptions, RDropSupConOptions):
        with pytest.raises(ValueError, match=r"supcon_weight 1\.5 is outside \[0, 1\]"):
            options(supcon_weight=1.5)
        with pytest.raises(ValueError, match=r"temperature 0\.0 must be above 0"):
            options(temperature=0.0)
    with pytest.raises(ValueError, match=r"rdrop_alpha -1\.0 is negative"):
        RDropSupConOptions(rdrop_alpha=-1.0)


SMOOTHED = [name for name, entry in OBJECTIVES.items() if "label_smoothing" in entry.options.__dataclass_fields__]


@pytest.mark.parametrize("name", SMOOTHED)
def test_every_objective_refuses_a_label_smoothing_outside_its_range(name):
    for epsilon in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"label smoothing {epsilon} is outside \[0, 1\)"):
            OBJECTIVES[name].options(label_smoothing=epsilon)


def test_no_examples_have_a_loss_of_zero():
    assert supcon_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), temperature=0.5) == 0
