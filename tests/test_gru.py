import pytest
import reference
import torch
from torch import Tensor
from torch.nn import Module

from nn.gru import GRU, GRULayer
from nn.lstm import LSTM
from nn.recurrence import fast_gru, join_directions, plain_gru, stack_directions
from nn.words import last_states

B, T, IN, D = 3, 7, 5, 4
LENGTHS = torch.tensor([7, 4, 1])
MASK = torch.arange(T) < LENGTHS[:, None]


def randomize(module: Module) -> Module:
    """Draws all parameters from N(0, 0.25), the biases among them."""
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5)
    return module


def reference_states(layer: GRULayer, x: Tensor) -> Tensor:
    """Computes the layer by loops. x: [B, T, IN] -> [B, T, N·D], 0 at padding.

    The reference has two directions; a layer with one is run as two equal ones.
    """
    directions = len(layer.weight)
    parameters = layer.weight, layer.recurrent, layer.bias, layer.recurrent_bias
    weights = [torch.cat([p] * (3 - directions)) for p in parameters]
    states = [reference.bigru(text[:n], *weights)[:, : directions * D] for text, n in zip(x, LENGTHS, strict=True)]
    return torch.stack([torch.nn.functional.pad(h, (0, 0, 0, T - len(h))) for h in states])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_loop_with_gradients(bidirectional: bool):
    torch.manual_seed(0)
    layer = randomize(GRULayer(input_size=IN, hidden_size=D, bidirectional=bidirectional).double())
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    actual, expected = layer(x, MASK), reference_states(layer, x)
    torch.testing.assert_close(actual, expected)
    upstream, inputs = torch.randn_like(actual), [x, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, upstream) for y in (actual, expected)))


def scan_inputs() -> tuple[Tensor, ...]:
    """Returns random a [2, T·B, 3D], u [2, 3D, D] and d [2, D] in float64."""
    torch.manual_seed(0)
    shapes = (2, T * B, 3 * D), (2, 3 * D, D), (2, D)
    return tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def test_hand_derived_backward():
    padding = stack_directions(~MASK.T, 2)

    def scan(a: Tensor, u: Tensor, d: Tensor) -> Tensor:
        return fast_gru(a.clone(), u=u, d=d, padding=padding)  # fast_gru overwrites a

    assert torch.autograd.gradcheck(scan, scan_inputs(), check_undefined_grad=False)


def test_fast_form_equals_the_plain_form_with_gradients():
    a, u, d = scan_inputs()
    padding = stack_directions(~MASK.T, 2)
    states = fast_gru(a.clone(), u=u, d=d, padding=padding), plain_gru(a, u=u, d=d, padding=padding)
    fast, plain = (join_directions(h, ~MASK.T) for h in states)
    torch.testing.assert_close(fast, plain)
    upstream = torch.randn_like(fast)
    torch.testing.assert_close(*(torch.autograd.grad(h, (a, u, d), upstream) for h in (fast, plain)))


def test_products_under_autocast_are_rounded_as_in_the_plain_form():
    padding = stack_directions(~MASK.T, 2)
    a, u, d = (x.detach().float().requires_grad_() for x in scan_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = fast_gru(a.clone(), u=u, d=d, padding=padding)
    plain = plain_gru(a, u=u, d=d, padding=padding, dtype=torch.bfloat16)
    assert fast.dtype == torch.float32
    fast, plain, exact = (join_directions(h, ~MASK.T) for h in (fast, plain, plain_gru(a, u=u, d=d, padding=padding)))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(fast, exact, rtol=0, atol=1e-4)  # without rounding it would be equal
    upstream = torch.randn_like(fast)
    gradients = (torch.autograd.grad(h, (a, u, d), upstream) for h in (fast, plain))
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


def test_equals_torch_with_copied_weights():
    torch.manual_seed(0)
    ours = randomize(GRU(input_size=IN, hidden_size=D, num_layers=2))
    theirs = torch.nn.GRU(IN, D, num_layers=2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for n, suffix in enumerate(("", "_reverse")):
                getattr(theirs, f"weight_ih_l{number}{suffix}").copy_(layer.weight[n])
                getattr(theirs, f"weight_hh_l{number}{suffix}").copy_(layer.recurrent[n])
                getattr(theirs, f"bias_ih_l{number}{suffix}").copy_(layer.bias[n])
                getattr(theirs, f"bias_hh_l{number}{suffix}").zero_()[2 * D :].copy_(layer.recurrent_bias[n])
    x = torch.randn(B, T, IN)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    out, h = theirs(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    actual = ours(x, MASK)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_states(actual, MASK), torch.cat([h[2], h[3]], -1), rtol=1e-5, atol=1e-6)


def test_initialisation():
    torch.manual_seed(0)
    layer = GRULayer(input_size=IN, hidden_size=D)
    bound = (6 / (IN + D)) ** 0.5  # Glorot & Bengio, for the matrix of each gate
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    for u in layer.recurrent.unflatten(1, (3, D)).flatten(0, 1):
        torch.testing.assert_close(u @ u.T, torch.eye(D), rtol=0, atol=1e-5)
    assert (layer.bias == 0).all()
    assert (layer.recurrent_bias == 0).all()


def test_padding_changes_nothing():
    torch.manual_seed(0)
    gru, x = GRU(input_size=IN, hidden_size=D, num_layers=2), torch.randn(B, T, IN)
    noise = torch.where(MASK[..., None], x, torch.randn_like(x))
    assert torch.equal(gru(x, MASK), gru(noise, MASK))
    assert (gru(x, MASK)[~MASK] == 0).all()


def test_the_gradient_of_u_is_rounded_under_autocast():
    a, u, d = (x.detach().float().requires_grad_() for x in scan_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = fast_gru(a.clone(), u=u, d=d, padding=stack_directions(~MASK.T, 2))
    (du,) = torch.autograd.grad(h.sum(), u)
    assert torch.equal(du, du.bfloat16().float())


def test_a_traced_call_has_the_dtype_of_autocast(monkeypatch: pytest.MonkeyPatch):
    a, u, d = (x.detach().float() for x in scan_inputs())
    padding = stack_directions(~MASK.T, 2)
    monkeypatch.setattr("nn.recurrence.is_traced", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        traced = fast_gru(a.clone(), u=u, d=d, padding=padding)
    assert torch.equal(traced, plain_gru(a, u=u, d=d, padding=padding, dtype=torch.bfloat16))


def test_fewer_than_one_layer_is_refused():
    with pytest.raises(ValueError, match="num_layers 0 must be at least 1"):
        GRU(input_size=IN, hidden_size=D, num_layers=0)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_inputs_of_another_width_are_refused(kind: type[Module]):
    """Both 5 and 7 columns are padded to 8, and oneDNN would read beyond the weights."""
    with pytest.raises(ValueError, match="the inputs have 7 numbers at each step, the weights are for 5"):
        kind(input_size=5, hidden_size=D)(torch.randn(B, T, 7), MASK)
