import pytest
import torch

from nn.dropout import LEVELS, Dropout, keep_mask, set_dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    y = Dropout(p).train()(torch.ones(1_000_003))
    dropped = (y == 0).float().mean().item()
    resolution, four_sigma = 1 / (2 * LEVELS), 4 * (p * (1 - p) / 1e6) ** 0.5
    assert abs(dropped - p) < resolution + four_sigma
    assert abs(y.mean().item() - 1) < 4 * (p / (1 - p) / 1e6) ** 0.5


def test_elements_are_independent():
    torch.manual_seed(0)
    kept = keep_mask(torch.Size([1_000_000]), LEVELS // 2).double() - 0.5
    for lag in (1, 2, 7, 8, 64):
        assert abs((kept[lag:] * kept[:-lag]).mean().item() * 4) < 5e-3


def test_the_gradient_is_the_scaled_mask():
    x = torch.randn(17, 19, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.3).train()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert set(gradient.unique().tolist()) == {0.0, LEVELS / (LEVELS - round(0.3 * LEVELS))}


def test_mask_and_mask_unscaled_are_the_two_factors_of_the_result():
    x, layer, results = torch.randn(7, 11), Dropout(0.3).train(), []
    for function in (layer, layer.mask, layer.mask_unscaled):
        torch.manual_seed(5)
        results.append(function(x))
    y, (mask, p), (masked, scale) = results
    assert torch.equal(masked, x * mask)
    assert torch.equal(y, masked * scale)
    assert p == round(0.3 * LEVELS) / LEVELS
    assert scale == pytest.approx(1 / (1 - p), rel=1e-15)


def test_the_seed_determines_the_mask_and_evaluation_returns_the_input():
    x, layer = torch.randn(7, 11), Dropout(0.5)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_rate_outside_the_range_raises(p):
    model = torch.nn.Sequential(Dropout(0.25))
    for function in (Dropout, lambda rate: set_dropout(model, rate)):
        with pytest.raises(ValueError, match=rf"dropout {p} is outside \[0, 1\)"):
            function(p)
    set_dropout(model, 0.5)
    assert model[0].p == 0.5


@pytest.mark.parametrize(("p", "dropped"), [(1e-6, 1), (0.001, 1), (0.003, 1), (0.997, 255), (1 - 1e-6, 255)])
def test_a_rate_above_0_is_neither_rounded_to_0_nor_to_1(p: float, dropped: int):
    layer = Dropout(p)
    assert layer.threshold == dropped
    assert layer(torch.ones(100_000)).unique().tolist() == pytest.approx([0, 256 / (256 - dropped)])


def test_an_empty_tensor_stays_empty():
    assert Dropout(0.5).train()(torch.zeros(0, 3)).shape == (0, 3)


def test_the_rate_is_printed():
    assert str(Dropout(0.3)) == "Dropout(p=0.3)"


def test_a_traced_mask_has_the_same_rate(monkeypatch):
    monkeypatch.setattr("nn.dropout.is_traced", lambda: True)
    torch.manual_seed(0)
    kept = keep_mask(torch.Size([100_000]), LEVELS // 4)
    assert kept.dtype == torch.uint8
    assert abs(kept.float().mean() - 0.75) < 0.01


def test_the_modules_within_a_skipped_one_keep_their_rate():
    inner, model = torch.nn.Sequential(Dropout(0.25)), torch.nn.Sequential(Dropout(0.25))
    model.append(inner)
    set_dropout(model, 0.5, skip=[inner])
    assert (model[0].p, inner[0].p) == (0.5, 0.25)
