"""Prompt tuning and P-tuning: virtual tokens before the words of a review."""

import pytest
import reference
import torch
from conftest import ENCODERS, INIT_IDS, adapt, tiny, token_batch
from torch import Tensor

import peft
from peft.p_tuning import PromptEncoder

P, E, HIDDEN = 4, 7, 5


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prompt_of_word_embeddings_equals_a_longer_review(name):
    """The prompt is the embeddings of five tokens, and the classifier reads the first of them."""
    model, (ids, mask) = tiny(name).eval(), token_batch([6, 4])
    longer = torch.cat([torch.tensor([INIT_IDS] * 2), ids], 1)
    expected = model(longer, torch.cat([torch.ones(2, 5, dtype=torch.bool), mask], 1))
    peft.apply(model, "prompt", INIT_IDS, virtual_tokens=5, pool="virtual")
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_classifier_reads_the_real_first_token_or_the_first_virtual_one(name):
    model, (ids, mask) = adapt(tiny(name), "prompt").eval(), token_batch([6, 4])
    words = torch.cat([model.virtual.source().expand(2, -1, -1), model.embeddings.word(ids)], 1)
    wide = torch.cat([mask.new_ones(2, P), mask], 1)
    h = model.encode(model.embed_words(words, wide), wide)  # of all tokens
    read = []
    model.pooler.register_forward_hook(lambda module, inputs, output: read.append(inputs[0][:, 0]))
    model(ids, mask)
    model.virtual.pool = "virtual"
    model(ids, mask)
    torch.testing.assert_close(read[0], h[:, P])
    torch.testing.assert_close(read[1], h[:, 0])


@pytest.mark.parametrize("init", ["vocabulary", "text", "random"])
def test_initial_rows(init):
    torch.manual_seed(0)
    model = tiny("bert")
    peft.apply(model, "prompt", INIT_IDS, virtual_tokens=107, prompt_init=init)
    rows, table = model.virtual.source(), model.embeddings.word.weight
    if init == "text":
        assert torch.equal(rows, table[torch.tensor([*INIT_IDS * 21, 3, 14])])
    elif init == "vocabulary":
        drawn = [(table == row).all(1).nonzero().item() for row in rows]
        assert len({*drawn}) > 40  # of 61 words
    else:
        assert rows.std().item() == pytest.approx(table.std().item(), rel=0.1)


def random_encoder(kind: str) -> PromptEncoder:
    """Returns a float64 encoder whose parameters are all random."""
    torch.manual_seed(0)
    encoder = PromptEncoder(torch.randn(P, E), kind=kind, hidden_size=HIDDEN).double()
    for parameter in encoder.parameters():
        parameter.data.normal_()
    return encoder


def assert_equal_with_gradients(encoder: PromptEncoder, plain: Tensor) -> None:
    """Compares the encoder's output and the gradients of all its parameters with a plain form."""
    ours, wanted, upstream = encoder(), [*encoder.parameters()], torch.randn(P, E, dtype=torch.float64)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_lstm_encoder_equals_the_loop_with_gradients():
    """p = e₀ + W₂ ReLU(W₁ BiLSTM(e) + b₁) + b₂, with an LSTM of two layers."""
    encoder = random_encoder("lstm")
    states = encoder.inputs
    assert len(encoder.lstm.layers) == 2
    for layer in encoder.lstm.layers:
        states = reference.bilstm(states, weight=layer.weight, recurrent=layer.recurrent, bias=layer.bias)
    rows = []
    for p in range(P):
        x = (encoder.first.weight @ states[p] + encoder.first.bias).clamp(min=0)
        rows.append(encoder.start[p] + encoder.last.weight @ x + encoder.last.bias)
    assert encoder.first.weight.shape == (2 * HIDDEN, 2 * HIDDEN)
    assert_equal_with_gradients(encoder, torch.stack(rows))


def test_the_mlp_encoder_equals_the_loop_with_gradients():
    """p = e₀ + W₃ ReLU(W₂ ReLU(W₁ e + b₁) + b₂) + b₃"""
    encoder = random_encoder("mlp")
    rows = []
    for p in range(P):
        x = (encoder.first.weight @ encoder.inputs[p] + encoder.first.bias).clamp(min=0)
        x = (encoder.second.weight @ x + encoder.second.bias).clamp(min=0)
        rows.append(encoder.start[p] + encoder.last.weight @ x + encoder.last.bias)
    assert_equal_with_gradients(encoder, torch.stack(rows))


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_an_encoder_starts_at_its_initial_rows(kind):
    rows = torch.randn(P, E)
    encoder = PromptEncoder(rows, kind=kind, hidden_size=HIDDEN)
    assert torch.equal(encoder(), rows)
    torch.testing.assert_close(encoder.inputs, rows / rows.std())
    encoder.last.weight.data.normal_()
    assert not torch.allclose(encoder(), rows)


@pytest.mark.parametrize("name", ENCODERS)
def test_number_of_parameters(name):
    counts, width = {}, tiny(name).embeddings.word.embedding_dim
    for method in ("prompt", "p_tuning"):
        model = adapt(tiny(name), method)
        counts[method] = sum(p.numel() for key, p in model.named_parameters() if key.startswith("virtual."))
    assert counts["prompt"] == P * width
    assert counts["p_tuning"] == P * width + (width * 6 + 6) + (6 * 6 + 6) + (6 * width + width)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("prompt", {"prompt_init": "zero"}, "unknown prompt_init 'zero'; known: vocabulary, text, random"),
        ("prompt", {"pool": "mean"}, "unknown pool 'mean'; known: cls, virtual"),
        ("prompt", {"virtual_tokens": 0}, "0 virtual tokens"),
        ("p_tuning", {"prompt_encoder": "gru"}, "unknown prompt_encoder 'gru'; known: mlp, lstm"),
    ],
)
def test_unsupported_settings_raise(method, options, message):
    with pytest.raises(ValueError, match=message):
        peft.apply(tiny("bert"), method, INIT_IDS, **options)


def test_initial_rows_from_a_text_need_its_ids():
    with pytest.raises(ValueError, match="needs the ids of a text"):
        peft.apply(tiny("bert"), "prompt")
    assert peft.apply(tiny("bert"), "prompt", prompt_init="vocabulary").virtual is not None
