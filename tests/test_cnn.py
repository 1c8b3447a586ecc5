import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import tiny, token_batch

from nn.cnn import CNN, CNNConfig, Conv1d, parse_widths
from nn.cnn_lstm import CNNLSTM, CNNLSTMConfig
from nn.regions import RegionEmbedding

B, T, E, FILTERS, K = 2, 7, 5, 3, 4


def test_convolution_equals_the_loop_with_gradients():
    torch.manual_seed(0)
    layer = Conv1d(input_size=E, filters=FILTERS, width=K).double()
    x = torch.randn(B, T, E, dtype=torch.float64, requires_grad=True)
    actual, expected = layer(x), reference.conv1d(x, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(actual, expected)
    upstream, inputs = torch.randn_like(actual), [x, *layer.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, upstream) for y in (actual, expected)))


def test_convolution_equals_torch():
    layer, x = Conv1d(input_size=E, filters=FILTERS, width=K), torch.randn(B, T, E)
    expected = F.conv1d(x.transpose(1, 2), layer.weight.transpose(1, 2), layer.bias).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_convolutions_start_as_glorot_and_bengio():
    """Weights are uniform within √(6 / (k (E + F)))."""
    weight = Conv1d(input_size=300, filters=100, width=K).weight
    bound = (6 / (K * (300 + 100))) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound


def test_regions_start_small_and_at_padding_from_zero():
    torch.manual_seed(0)
    regions = RegionEmbedding(vocab_size=999, width=10, radius=2, pad_id=3)
    assert regions.word.weight.abs().max().item() == pytest.approx(0.02, rel=1e-3)
    assert not regions.word.weight[3].any()
    assert not regions.bias.any()


def test_features_are_the_maximum_over_all_windows():
    """Compares with Kim 2014, Eq. (3), review by review, each padded with zeros at both ends."""
    model = CNN(CNNConfig(vocab_size=61, embedding_size=E, filters=FILTERS)).eval()
    ids, mask = token_batch([6, 2])
    x = model.embed(ids, mask)
    for b, n in enumerate([6, 2]):
        columns = []
        for layer in model.convolutions:
            padded = F.pad(x[b, :n], (0, 0, layer.width - 1, model.widest - 1))
            columns.append(layer(padded[None])[0].relu().amax(0))
        torch.testing.assert_close(model.features(ids, mask)[b], torch.cat(columns), rtol=1e-5, atol=1e-5)


def test_features_with_maximum_and_mean():
    config = CNNConfig(vocab_size=61, embedding_size=E, filters=FILTERS, pooling="max+mean")
    model, (ids, mask) = CNN(config).eval(), token_batch([6, 2])
    h, windows = model.encode(model.embed(ids, mask), mask), F.pad(mask, (4, 0), value=True)
    features = model.features(ids, mask)
    for b in range(len(ids)):
        expected = torch.cat([h[b, windows[b]].amax(0), h[b, windows[b]].mean(0)])
        torch.testing.assert_close(features[b], expected, rtol=1e-5, atol=1e-6)


ONE_HOT = CNNConfig(vocab_size=61, filters=FILTERS, widths="1,3,2", one_hot=True, pooling="max+mean")


def test_one_hot_convolution_equals_conv1d_over_one_hot_vectors():
    """Compares with Johnson & Zhang 2015, §2.2."""
    torch.manual_seed(0)
    model, (ids, mask) = CNN(ONE_HOT).double().eval(), token_batch([6, 2])
    h = model.encode(model.embed(ids, mask), mask)
    words = F.one_hot(ids, 61).double() * mask[..., None]
    table, first, expected = model.embeddings.word.weight.detach(), 0, []
    for layer in model.convolutions:
        plain = Conv1d(input_size=61, filters=FILTERS, width=layer.width).double()
        columns = table[:, first : first + FILTERS * layer.width].unflatten(1, (layer.width, FILTERS))  # [V, k, F]
        plain.weight.data = columns.permute(2, 1, 0)
        expected.append(plain(F.pad(words, (0, 0, layer.width - 1, 2))).relu())
        first += FILTERS * layer.width
    torch.testing.assert_close(h, torch.cat(expected, -1))


def test_convolution_of_ids_equals_the_plain_form_with_gradients():
    torch.manual_seed(0)
    model, (ids, mask) = CNN(ONE_HOT).double().eval(), token_batch([6, 2, 1])
    actual, expected = model.features(ids, mask), model.pool(model.encode(model.embed(ids, mask), mask), mask)
    torch.testing.assert_close(actual, expected)
    upstream, weights = torch.randn_like(actual), [model.embeddings.word.weight, *model.convolutions.parameters()]
    gradients, plain = (torch.autograd.grad(y, weights, upstream) for y in (actual, expected))
    torch.testing.assert_close(gradients, plain)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_word_dropout_applies_to_one_hot_words():
    model, (ids, mask) = CNN(ONE_HOT), token_batch([6, 2])
    model.embeddings.drop_words = lambda input_ids, mask: input_ids.masked_fill(mask, 1)
    model.dropout.eval()
    unknown = ids.masked_fill(mask, 1)
    assert torch.equal(model.features(ids, mask), model.pool(model.encode_ids(unknown, mask), mask))


def test_parse_widths():
    assert parse_widths("3,4, 5") == [3, 4, 5]
    for wrong in ("", "3,x", "0", "3,,4"):
        with pytest.raises(ValueError, match="not numbers with commas"):
            parse_widths(wrong)


def test_the_lstm_runs_over_time():
    """The LSTM's input at step s is the maximum of the q windows at the words s·q … s·q + q - 1."""
    torch.manual_seed(0)
    config = CNNLSTMConfig(vocab_size=61, embedding_size=E, filters=FILTERS, width=3, window=2, hidden_size=4)
    model, (ids, mask) = CNNLSTM(config).eval(), token_batch([7, 4])
    calls = []
    model.lstm.register_forward_hook(lambda module, inputs, output: calls.append(inputs))
    h = model.encode(model.embed(ids, mask), mask)
    assert h.shape == (2, 4, 8)
    steps, step_mask = calls[0]
    assert step_mask.tolist() == [[True] * 4, [True, True, False, False]]
    x = model.embed(ids, mask)
    for b, n in enumerate([7, 4]):
        local = model.convolution(F.pad(x[b, :n], (0, 0, 1, 1))[None])[0].relu()  # [n, F]
        for s in range(-(-n // 2)):
            torch.testing.assert_close(steps[b, s], local[2 * s : 2 * s + 2].amax(0), rtol=1e-5, atol=1e-6)


def test_an_even_width_is_refused():
    with pytest.raises(ValueError, match="width 4 must be odd"):
        CNNLSTM(CNNLSTMConfig(width=4))


def test_a_cnn_has_no_last_state():
    with pytest.raises(ValueError, match="pooling last is for recurrent networks"):
        tiny("cnn", pooling="max+last")
