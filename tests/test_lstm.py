import pytest
import torch

from nn.lstm import LSTM, LSTMLayer, Scan, both_ways, join_ways, plain_scan, project, steps
from nn.words import last_states

B, T, IN, D = 3, 7, 5, 4
LENGTHS = torch.tensor([7, 4, 1])
MASK = torch.arange(T) < LENGTHS[:, None]


def loop(layer: LSTMLayer, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The equations, one review, one direction, one step and one gate at a time."""
    out = x.new_zeros(B, T, len(layer.weight) * D)
    rows = []
    for b in range(B):
        sides = []
        for n in range(len(layer.weight)):
            gates = [slice(k * D, (k + 1) * D) for k in range(4)]
            w, u, bias = layer.weight[n], layer.recurrent[n], layer.bias[n]
            h, c = x.new_zeros(D), x.new_zeros(D)
            steps = range(int(lengths[b])) if n == 0 else range(int(lengths[b]) - 1, -1, -1)
            states = [x.new_zeros(D)] * T
            for t in steps:
                i, f, g, o = (w[k] @ x[b, t] + u[k] @ h + bias[k] for k in gates)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states[t] = h
            sides.append(torch.stack(states))
        rows.append(torch.cat(sides, -1))
    return out + torch.stack(rows)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_loop_with_gradients(bidirectional):
    torch.manual_seed(0)
    layer = LSTMLayer(IN, D, bidirectional).double()
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    ours, plain = layer(x, MASK), loop(layer, x, LENGTHS)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(ours)
    wanted = [x, *layer.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_hand_derived_backward():
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, T * B, 4 * D), (2, 4 * D, D))
    ]
    padding = both_ways(~MASK.T, 2)

    def scan(a, u):
        return Scan.apply(a.clone(), u, padding)[0]  # it overwrites a

    assert torch.autograd.gradcheck(scan, inputs, check_undefined_grad=False)
    ours, plain = scan(*inputs), plain_scan(*inputs, padding)
    torch.testing.assert_close(join_ways(ours, ~MASK.T), join_ways(plain, ~MASK.T))


def test_equals_torch_with_copied_weights():
    torch.manual_seed(0)
    ours, theirs = LSTM(IN, D, num_layers=2), torch.nn.LSTM(IN, D, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for n, side in enumerate(("", "_reverse")):
                getattr(theirs, f"weight_ih_l{number}{side}").copy_(layer.weight[n])
                getattr(theirs, f"weight_hh_l{number}{side}").copy_(layer.recurrent[n])
                getattr(theirs, f"bias_ih_l{number}{side}").copy_(layer.bias[n])
                getattr(theirs, f"bias_hh_l{number}{side}").zero_()
    x = torch.randn(B, T, IN)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    out, (h, _) = theirs(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    mine = ours(x, MASK)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_states(mine, MASK), torch.cat([h[2], h[3]], -1), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    lstm, x = LSTM(IN, D, num_layers=2), torch.randn(B, T, IN)
    noise = torch.where(MASK[..., None], x, torch.randn_like(x))
    assert torch.equal(lstm(x, MASK), lstm(noise, MASK))
    torch.testing.assert_close(lstm(x, MASK)[1:2, :4], lstm(x[1:2, :4], MASK[1:2, :4]), rtol=1e-5, atol=1e-6)
    assert (lstm(x, MASK)[~MASK] == 0).all()


def test_the_second_direction_reads_from_the_last_step():
    x = torch.arange(T * B).view(T, B, 1)
    ways = both_ways(x, 2)
    pairs = [(int(first[0]), int(second[0])) for first, second in ways[:, :, 0].unbind(1)]
    assert pairs == [(B * t, B * (T - 1 - t)) for t in range(T)]
    assert torch.equal(join_ways(ways, torch.zeros(T, B, dtype=torch.bool)), x.expand(T, B, 2).transpose(0, 1))
    assert [tuple(views[0].shape) for views in steps(ways)] == [(2, B, 1)] * T


@pytest.mark.parametrize("width", [IN, 8])
def test_the_projection_is_its_formula_whatever_the_width(width):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(T, B, width), torch.randn(2, 3, width), torch.randn(2, 3)
    expected = torch.stack([x @ weight[0].T + bias[0], x.flip(0) @ weight[1].T + bias[1]])
    torch.testing.assert_close(project(x, weight, bias), expected.flatten(1, 2), rtol=1e-5, atol=1e-5)


def test_initialisation():
    layer = LSTMLayer(IN, D)
    assert torch.equal(layer.bias[:, D : 2 * D], torch.ones(2, D))
    assert layer.bias.sum() == 2 * D
    u = layer.recurrent[1, 2 * D : 3 * D]
    torch.testing.assert_close(u @ u.T, torch.eye(D), rtol=0, atol=1e-5)


def test_one_direction_takes_the_last_real_step():
    lstm, x = LSTM(IN, D, bidirectional=False), torch.randn(B, T, IN)
    h = lstm(x, MASK)
    assert torch.equal(last_states(h, MASK, bidirectional=False), torch.stack([h[0, 6], h[1, 3], h[2, 0]]))
