import pytest
import torch
from torch.nn import Linear

from nn.optim import Average


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_its_formula(decay):
    torch.manual_seed(0)
    layer = Linear(3, 2).double()
    average = Average([*layer.parameters()], decay)
    expected = layer.weight.detach().clone()
    for step in range(20):
        layer.weight.data += torch.randn(2, 3, dtype=torch.float64)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * layer.weight.detach()
    torch.testing.assert_close(average.means[0], expected)


def test_the_model_has_the_means_in_the_block_alone_whatever_happens_there():
    layer = Linear(3, 2)
    before, average = layer.weight.detach().clone(), Average([*layer.parameters()], 0.9)
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(KeyError), average.in_place():  # noqa: PT012
        assert torch.equal(layer.weight, before)
        raise KeyError
    assert torch.equal(layer.weight, before + 1)


def test_decay_0_is_the_weights_themselves_and_costs_nothing():
    layer = Linear(3, 2)
    average = Average([*layer.parameters()], 0.0)
    average.update(0)
    with average.in_place():
        assert average.state() == {}
        assert torch.equal(layer.weight, average.parameters[0])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_0_and_1_is_named(decay):
    with pytest.raises(ValueError, match=r"--average .* outside \[0, 1\)"):
        Average([], decay)
