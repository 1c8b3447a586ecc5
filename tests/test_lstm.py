import os

import pytest
import reference
import torch
from conftest import tiny, token_batch
from torch import Tensor

from nn.lstm import LSTM, LSTMLayer
from nn.onednn_lstm import CAPACITY, is_suitable, onednn_lstm
from nn.recurrence import (
    LSTMStep,
    fast_lstm,
    join_directions,
    plain_lstm,
    project_inputs,
    stack_directions,
    time_steps,
)
from nn.words import last_states

B, T, IN, D = 3, 7, 5, 4
LENGTHS = torch.tensor([7, 4, 1])
MASK = torch.arange(T) < LENGTHS[:, None]
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


def reference_states(layer: LSTMLayer, x: Tensor) -> Tensor:
    """Computes the layer by loops. x: [B, T, IN] -> [B, T, N·D], 0 at padding.

    The reference has two directions; a layer with one is run as two equal ones.
    """
    directions = len(layer.weight)
    weights = [torch.cat([p] * (3 - directions)) for p in (layer.weight, layer.recurrent, layer.bias)]
    states = [reference.bilstm(text[:n], *weights)[:, : directions * D] for text, n in zip(x, LENGTHS, strict=True)]
    return torch.stack([torch.nn.functional.pad(h, (0, 0, 0, T - len(h))) for h in states])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_loop_with_gradients(bidirectional: bool):
    torch.manual_seed(0)
    layer = LSTMLayer(input_size=IN, hidden_size=D, bidirectional=bidirectional).double()
    x = torch.randn(B, T, IN, dtype=torch.float64, requires_grad=True)
    actual, expected = layer(x, MASK), reference_states(layer, x)
    torch.testing.assert_close(actual, expected)
    upstream, inputs = torch.randn_like(actual), [x, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, upstream) for y in (actual, expected)))


def scan_inputs() -> tuple[Tensor, Tensor]:
    """Returns random a [2, T·B, 4D] and u [2, 4D, D] in float64."""
    torch.manual_seed(0)
    return tuple(torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, T * B, 4 * D), (2, 4 * D, D)))


def test_hand_derived_backward():
    padding = stack_directions(~MASK.T, 2)

    def scan(a: Tensor, u: Tensor) -> Tensor:
        return fast_lstm(a.clone(), u=u, padding=padding)  # fast_lstm overwrites a

    assert torch.autograd.gradcheck(scan, scan_inputs(), check_undefined_grad=False)


def test_fast_form_equals_the_plain_form_with_gradients():
    a, u = scan_inputs()
    padding = stack_directions(~MASK.T, 2)
    states = fast_lstm(a.clone(), u=u, padding=padding), plain_lstm(a, u=u, padding=padding)
    fast, plain = (join_directions(h, ~MASK.T) for h in states)
    torch.testing.assert_close(fast, plain)
    upstream = torch.randn_like(fast)
    torch.testing.assert_close(*(torch.autograd.grad(h, (a, u), upstream) for h in (fast, plain)))


def test_products_under_autocast_are_rounded_as_in_the_plain_form():
    padding = stack_directions(~MASK.T, 2)
    a, u = (x.detach().float().requires_grad_() for x in scan_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = fast_lstm(a.clone(), u=u, padding=padding)
    plain = plain_lstm(a, u=u, padding=padding, dtype=torch.bfloat16)
    assert fast.dtype == torch.float32
    fast, plain, exact = (join_directions(h, ~MASK.T) for h in (fast, plain, plain_lstm(a, u=u, padding=padding)))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(fast, exact, rtol=0, atol=1e-4)  # without rounding it would be equal
    upstream = torch.randn_like(fast)
    gradients = (torch.autograd.grad(h, (a, u), upstream) for h in (fast, plain))
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


@needs_onednn
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_onednn_equals_the_loop_with_gradients(monkeypatch: pytest.MonkeyPatch, bidirectional: bool, padded: bool):
    torch.manual_seed(0)
    layer = LSTMLayer(input_size=IN, hidden_size=D, bidirectional=bidirectional)
    x, mask = torch.randn(B, T, IN, requires_grad=True), MASK if padded else torch.ones_like(MASK)
    assert is_suitable(x, layer.weight)
    library = layer(x, mask)
    monkeypatch.setattr("nn.lstm.is_suitable", lambda *_: False)
    loop = layer(x, mask)
    torch.testing.assert_close(library, loop, rtol=1e-5, atol=1e-6)
    upstream, inputs = torch.randn_like(loop), [x, *layer.parameters()]
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (library, loop))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    scored = onednn_lstm_without_gradients(layer, x, mask)
    if torch.cpu._is_avx512_supported():
        assert torch.equal(library, scored)
    else:  # another kernel sums in another order
        torch.testing.assert_close(library, scored, rtol=1e-5, atol=1e-6)


def onednn_lstm_without_gradients(layer: LSTMLayer, x: Tensor, mask: Tensor) -> Tensor:
    """Computes the layer as in scoring."""
    with torch.no_grad():
        return onednn_lstm(x.transpose(0, 1), layer.weight, layer.recurrent, layer.bias, padding=~mask.T)


@needs_onednn
def test_onednn_rounds_under_autocast():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor does not multiply bf16")
    torch.manual_seed(0)
    layer, x = LSTM(input_size=IN, hidden_size=D, num_layers=2), torch.randn(B, T, IN, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x, MASK)
    exact = layer(x, MASK)
    assert rounded.dtype == torch.float32
    assert not torch.allclose(rounded, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02)
    upstream, inputs = torch.randn_like(exact), [x, *layer.parameters()]
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (rounded, exact))
    torch.testing.assert_close(*gradients, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["lstm", "cnn_lstm", "attention_lstm", "capsule_lstm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_have_the_dtype_of_the_weights(name: str, dtype: torch.dtype):
    model = tiny(name).to(dtype).eval()
    assert model(*token_batch([5, 3])).dtype == dtype


def test_the_memory_of_onednn_is_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CAPACITY, raising=False)
    LSTM(input_size=IN, hidden_size=D)
    assert os.environ[CAPACITY] == "128"
    monkeypatch.setenv(CAPACITY, "7")  # as the user set it
    LSTM(input_size=IN, hidden_size=D)
    assert os.environ[CAPACITY] == "7"


@needs_onednn
def test_when_onednn_computes_a_layer(monkeypatch: pytest.MonkeyPatch):
    x, weight = torch.randn(T, B, IN), torch.nn.Parameter(torch.randn(2, 4 * D, IN))
    assert is_suitable(x, weight)
    assert not is_suitable(x.double(), weight.double())
    assert not is_suitable(x[:0], weight)
    assert not is_suitable(x[:, :0], weight)
    assert not is_suitable(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not is_suitable(x, weight)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert not is_suitable(x, weight)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not is_suitable(x, weight)


def test_equals_torch_with_copied_weights():
    torch.manual_seed(0)
    ours = LSTM(input_size=IN, hidden_size=D, num_layers=2)
    theirs = torch.nn.LSTM(IN, D, num_layers=2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for n, suffix in enumerate(("", "_reverse")):
                getattr(theirs, f"weight_ih_l{number}{suffix}").copy_(layer.weight[n])
                getattr(theirs, f"weight_hh_l{number}{suffix}").copy_(layer.recurrent[n])
                getattr(theirs, f"bias_ih_l{number}{suffix}").copy_(layer.bias[n])
                getattr(theirs, f"bias_hh_l{number}{suffix}").zero_()
    x = torch.randn(B, T, IN)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True)
    out, (h, _) = theirs(packed)
    expected = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    actual = ours(x, MASK)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_states(actual, MASK), torch.cat([h[2], h[3]], -1), rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    lstm, x = LSTM(input_size=IN, hidden_size=D, num_layers=2), torch.randn(B, T, IN)
    noise = torch.where(MASK[..., None], x, torch.randn_like(x))
    assert torch.equal(lstm(x, MASK), lstm(noise, MASK))
    torch.testing.assert_close(lstm(x, MASK)[1:2, :4], lstm(x[1:2, :4], MASK[1:2, :4]), rtol=1e-5, atol=1e-6)
    assert (lstm(x, MASK)[~MASK] == 0).all()


def test_the_second_direction_starts_at_the_last_step():
    x = torch.arange(T * B).view(T, B, 1)
    stacked = stack_directions(x, 2)
    pairs = [(int(first[0]), int(second[0])) for first, second in stacked[:, :, 0].unbind(1)]
    assert pairs == [(B * t, B * (T - 1 - t)) for t in range(T)]
    joined = join_directions(stacked, torch.zeros(T, B, dtype=torch.bool))
    assert torch.equal(joined, x.expand(T, B, 2).transpose(0, 1))


@pytest.mark.parametrize("reverse", [False, True])
def test_time_steps_yields_views_of_each_step(reverse: bool):
    buffers = LSTMStep(*(torch.randn(2, T, B, 1 + k) for k in range(len(LSTMStep._fields))))
    steps = list(time_steps(buffers, reverse=reverse))
    assert len(steps) == T
    for t, step in zip(reversed(range(T)) if reverse else range(T), steps, strict=True):
        for views, buffer in zip(step, buffers, strict=True):
            assert torch.equal(views, buffer[:, t])
            assert views.data_ptr() == buffer[:, t].data_ptr()


@pytest.mark.parametrize("width", [IN, 8])
def test_projection_equals_the_formula_for_any_width(width: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(T, B, width), torch.randn(2, 3, width), torch.randn(2, 3)
    expected = torch.stack([x @ weight[0].T + bias[0], x.flip(0) @ weight[1].T + bias[1]]).flatten(1, 2)
    torch.testing.assert_close(project_inputs(x, weight=weight, bias=bias), expected, rtol=1e-5, atol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    layer = LSTMLayer(input_size=IN, hidden_size=D)
    assert torch.equal(layer.bias[:, D : 2 * D], torch.ones(2, D))
    assert layer.bias.sum() == 2 * D
    bound = (6 / (IN + D)) ** 0.5  # Glorot & Bengio, for the matrix of each gate
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    u = layer.recurrent[1, 2 * D : 3 * D]
    torch.testing.assert_close(u @ u.T, torch.eye(D), rtol=0, atol=1e-5)


def test_last_states_of_one_direction_are_those_of_the_last_real_step():
    lstm, x = LSTM(input_size=IN, hidden_size=D, bidirectional=False), torch.randn(B, T, IN)
    h = lstm(x, MASK)
    expected = torch.stack([h[0, 6], h[1, 3], h[2, 0]])
    assert torch.equal(last_states(h, MASK, bidirectional=False), expected)


def test_the_gradient_of_u_is_rounded_under_autocast():
    a, u = (x.detach().float().requires_grad_() for x in scan_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = fast_lstm(a.clone(), u=u, padding=stack_directions(~MASK.T, 2))
    (du,) = torch.autograd.grad(h.sum(), u)
    assert torch.equal(du, du.bfloat16().float())


def test_a_traced_call_has_the_dtype_of_autocast(monkeypatch: pytest.MonkeyPatch):
    a, u = (x.detach().float() for x in scan_inputs())
    padding = stack_directions(~MASK.T, 2)
    monkeypatch.setattr("nn.recurrence.is_traced", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        traced = fast_lstm(a.clone(), u=u, padding=padding)
    assert torch.equal(traced, plain_lstm(a, u=u, padding=padding, dtype=torch.bfloat16))


def test_projected_inputs_are_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert project_inputs(torch.randn(T, B, IN), torch.randn(2, 3, IN), torch.zeros(2, 3)).dtype == torch.float32


def test_without_a_gradient_of_the_states_there_is_none_of_the_inputs():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, dx: Tensor) -> None:
            return None

    a, u = scan_inputs()
    h = Stop.apply(fast_lstm(a.clone(), u=u, padding=stack_directions(~MASK.T, 2)))
    assert torch.autograd.grad(h.sum(), (a, u), allow_unused=True) == (None, None)


@needs_onednn
def test_onednn_keeps_a_buffer_for_gradients_only(monkeypatch: pytest.MonkeyPatch):
    layer, x, compute, buffers = LSTMLayer(IN, D), torch.randn(B, T, IN), torch.mkldnn_rnn_layer, []

    def recorded(*arguments):
        *states, buffer = compute(*arguments)
        buffers.append(buffer is not None and buffer.numel() > 0)
        return *states, buffer

    monkeypatch.setattr(torch, "mkldnn_rnn_layer", recorded)
    onednn_lstm_without_gradients(layer, x, MASK)
    layer(x, MASK)
    assert buffers == [False, False, True, True]


def test_fewer_than_one_layer_is_refused():
    with pytest.raises(ValueError, match="num_layers 0 must be at least 1"):
        LSTM(input_size=IN, hidden_size=D, num_layers=0)
