import pytest
import torch

from nn.dropout import LEVELS, Dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    y = Dropout(p).train()(torch.ones(1_000_003))
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 1 / (2 * LEVELS) + 4 * (p * (1 - p) / 1e6) ** 0.5  # resolution, and four sigma of chance
    assert abs(y.mean().item() - 1) < 4 * (p / (1 - p) / 1e6) ** 0.5


def test_elements_are_independent():
    torch.manual_seed(0)
    kept = keep_mask(torch.Size([1_000_000]), LEVELS // 2).double() - 0.5
    for lag in (1, 2, 7, 8, 64):
        assert abs((kept[lag:] * kept[:-lag]).mean().item() * 4) < 5e-3


def test_gradient_is_the_mask():
    x = torch.randn(17, 19, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.3).train()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert set(gradient.unique().tolist()) == {0.0, LEVELS / (LEVELS - round(0.3 * LEVELS))}


def test_seed_decides_and_eval_is_the_identity():
    x, layer = torch.randn(7, 11), Dropout(0.5)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_rate_outside_the_range(p):
    with pytest.raises(ValueError, match="outside"):
        Dropout(p)
