import pytest
import torch
import torch.nn.functional as F
from conftest import token_batch

from nn.cnn import CNN, CNNConfig, Conv1d, parse_widths
from nn.cnn_lstm import CNNLSTM, CNNLSTMConfig

B, T, E, FILTERS, K = 2, 7, 5, 3, 4


def test_convolution_equals_the_loop_with_gradients():
    torch.manual_seed(0)
    layer = Conv1d(E, FILTERS, K).double()
    x = torch.randn(B, T, E, dtype=torch.float64, requires_grad=True)
    rows = [
        [sum(layer.weight[f, k] @ x[b, t + k] for k in range(K)) + layer.bias[f] for f in range(FILTERS)]
        for b in range(B)
        for t in range(T - K + 1)
    ]
    plain = torch.stack([torch.stack(row) for row in rows]).view(B, T - K + 1, FILTERS)
    ours = layer(x)
    torch.testing.assert_close(ours, plain)
    upstream, wanted = torch.randn_like(ours), [x, *layer.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_convolution_equals_torch():
    layer, x = Conv1d(E, FILTERS, K), torch.randn(B, T, E)
    expected = F.conv1d(x.transpose(1, 2), layer.weight.transpose(1, 2), layer.bias).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_features_are_the_maximum_over_all_windows():
    """Kim 2014, Eq. (3), review by review, with zeros around it."""
    model = CNN(CNNConfig(vocab_size=61, embedding_size=E, filters=FILTERS)).eval()
    ids, mask = token_batch([6, 2])
    x = model.embed(ids, mask)
    for b, n in enumerate([6, 2]):
        columns = []
        for layer in model.convolutions:
            padded = F.pad(x[b, :n], (0, 0, layer.width - 1, model.widest - 1))
            columns.append(layer(padded[None])[0].relu().amax(0))
        torch.testing.assert_close(model.features(ids, mask)[b], torch.cat(columns), rtol=1e-5, atol=1e-5)


def test_features_may_hold_the_mean_too():
    config = CNNConfig(vocab_size=61, embedding_size=E, filters=FILTERS, pooling="max+mean")
    model, (ids, mask) = CNN(config).eval(), token_batch([6, 2])
    h, windows = model.encode(model.embed(ids, mask), mask), F.pad(mask, (4, 0), value=True)
    features = model.features(ids, mask)
    for b in range(len(ids)):
        expected = torch.cat([h[b, windows[b]].amax(0), h[b, windows[b]].mean(0)])
        torch.testing.assert_close(features[b], expected, rtol=1e-5, atol=1e-6)


ONE_HOT = CNNConfig(vocab_size=61, filters=FILTERS, widths="1,3,2", one_hot=True, pooling="max+mean")


def test_one_hot_words_are_a_convolution_over_them():
    """Johnson & Zhang 2015, §2.2: the same as Conv1d on vectors of 0 and a single 1."""
    torch.manual_seed(0)
    model, (ids, mask) = CNN(ONE_HOT).double().eval(), token_batch([6, 2])
    h = model.encode(model.embed(ids, mask), mask)
    words = F.one_hot(ids, 61).double() * mask[..., None]
    table, first, expected = model.embeddings.word.weight.detach(), 0, []
    for layer in model.convolutions:
        plain = Conv1d(61, FILTERS, layer.width).double()
        columns = table[:, first : first + FILTERS * layer.width].unflatten(1, (layer.width, FILTERS))  # [V, k, F]
        plain.weight.data = columns.permute(2, 1, 0)
        expected.append(plain(F.pad(words, (0, 0, layer.width - 1, 2))).relu())
        first += FILTERS * layer.width
    torch.testing.assert_close(h, torch.cat(expected, -1))


def test_looking_windows_up_equals_the_plain_form_with_gradients():
    torch.manual_seed(0)
    model, (ids, mask) = CNN(ONE_HOT).double().eval(), token_batch([6, 2, 1])
    ours, plain = model.features(ids, mask), model.pool(model.encode(model.embed(ids, mask), mask), mask)
    torch.testing.assert_close(ours, plain)
    upstream, wanted = torch.randn_like(ours), [model.embeddings.word.weight, *model.convolutions.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().sum() > 0


def test_one_hot_words_are_dropped_too():
    model, (ids, mask) = CNN(ONE_HOT), token_batch([6, 2])
    model.embeddings.drop_words = lambda input_ids, mask: input_ids.masked_fill(mask, 1)
    model.dropout.eval()
    unknown = ids.masked_fill(mask, 1)
    assert torch.equal(model.features(ids, mask), model.pool(model.look_up(unknown, mask), mask))


def test_widths():
    assert parse_widths("3,4, 5") == [3, 4, 5]
    for wrong in ("", "3,x", "0", "3,,4"):
        with pytest.raises(ValueError, match="not numbers with commas"):
            parse_widths(wrong)


def test_the_lstm_runs_over_time():
    """Step s sees the largest of the q windows around the words s·q … s·q + q - 1."""
    torch.manual_seed(0)
    config = CNNLSTMConfig(vocab_size=61, embedding_size=E, filters=FILTERS, width=3, window=2, hidden_size=4)
    model, (ids, mask) = CNNLSTM(config).eval(), token_batch([7, 4])
    seen = []
    model.lstm.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    h = model.encode(model.embed(ids, mask), mask)
    assert h.shape == (2, 4, 8)
    steps, step_mask = seen[0]
    assert step_mask.tolist() == [[True] * 4, [True, True, False, False]]
    x = model.embed(ids, mask)
    for b, n in enumerate([7, 4]):
        local = model.convolution(F.pad(x[b, :n], (0, 0, 1, 1))[None])[0].relu()  # [n, F]
        for s in range(-(-n // 2)):
            torch.testing.assert_close(steps[b, s], local[2 * s : 2 * s + 2].amax(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="width 4 must be odd"):
        CNNLSTM(CNNLSTMConfig(width=4))
