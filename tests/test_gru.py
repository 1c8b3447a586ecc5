import pytest
import torch

from nn.gru import GRU, GRULayer, Scan, plain_scan
from nn.lstm import both_ways, join_ways
from nn.words import last_states

B, T, IN, D = 3, 7, 5, 4
LENGTHS = torch.tensor([7, 4, 1])
MASK = torch.arange(T) < LENGTHS[:, None]


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5)
    return module


def loop(layer: GRULayer, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The equations, one review, one direction, one step and one gate at a time."""
    rows = []
    for b in range(B):
        sides = []
        for side in range(len(layer.weight)):
            gates = [slice(k * D, (k + 1) * D) for k in range(3)]
            w, u, bias, d = layer.weight[side], layer.recurrent[side], layer.bias[side], layer.recurrent_bias[side]
            h, states = x.new_zeros(D), [x.new_zeros(D)] * T
            for t in range(int(lengths[b])) if side == 0 else range(int(lengths[b]) - 1, -1, -1):
                r, z = ((w[k] @ x[b, t] + u[k] @ h + bias[k]).sigmoid() for k in gates[:2])
                k = gates[2]
                n = (w[k] @ x[b, t] + bias[k] + r * (u[k] @ h + d)).tanh()
                h = (1 - z) * n + z * h
                states[t] = h
            sides.append(torch.stack(states))
        rows.append(torch.cat(sides, -1))
    return torch.stack(rows)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_loop_with_gradients(bidirectional):
    torch.manual_seed(0)
    layer = randomise(GRULayer(IN, D, bidirectional).double())
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    ours, plain = layer(x, MASK), loop(layer, x, LENGTHS)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(ours)
    wanted = [x, *layer.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_hand_derived_backward():
    torch.manual_seed(0)
    shapes = (2, T * B, 3 * D), (2, 3 * D, D), (2, D)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    padding = both_ways(~MASK.T, 2)

    def scan(a, u, d):
        return Scan.apply(a.clone(), u, d, padding)[0]  # it overwrites a

    assert torch.autograd.gradcheck(scan, inputs, check_undefined_grad=False)
    ours, plain = scan(*inputs), plain_scan(*inputs, padding)
    torch.testing.assert_close(join_ways(ours, ~MASK.T), join_ways(plain, ~MASK.T))


def test_equals_torch_with_copied_weights():
    torch.manual_seed(0)
    ours, theirs = randomise(GRU(IN, D, num_layers=2)), torch.nn.GRU(IN, D, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for n, side in enumerate(("", "_reverse")):
                getattr(theirs, f"weight_ih_l{number}{side}").copy_(layer.weight[n])
                getattr(theirs, f"weight_hh_l{number}{side}").copy_(layer.recurrent[n])
                getattr(theirs, f"bias_ih_l{number}{side}").copy_(layer.bias[n])
                getattr(theirs, f"bias_hh_l{number}{side}").zero_()[2 * D :].copy_(layer.recurrent_bias[n])
    x = torch.randn(B, T, IN)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    out, h = theirs(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    mine = ours(x, MASK)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_states(mine, MASK), torch.cat([h[2], h[3]], -1), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    gru, x = GRU(IN, D, num_layers=2), torch.randn(B, T, IN)
    noise = torch.where(MASK[..., None], x, torch.randn_like(x))
    assert torch.equal(gru(x, MASK), gru(noise, MASK))
    assert (gru(x, MASK)[~MASK] == 0).all()
