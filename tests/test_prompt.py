import pytest
import torch
from conftest import ENCODERS, INIT_IDS, adapt, tiny, token_batch

import peft
from peft.p_tuning import PromptEncoder

P = 4


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prompt_of_words_is_those_words(name):
    """The rows of real tokens before a review, read at their first place, are a longer review."""
    model, (ids, mask) = tiny(name).eval(), token_batch([6, 4])
    longer = torch.cat([torch.tensor([INIT_IDS] * 2), ids], 1)
    expected = model(longer, torch.cat([torch.ones(2, 5, dtype=torch.bool), mask], 1))
    peft.apply(model, "prompt", INIT_IDS, virtual_tokens=5, pool="virtual")
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_classifier_reads_the_real_first_token(name):
    """Behind the prompt; `virtual` reads the prompt's first."""
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
def test_where_a_prompt_starts(init):
    torch.manual_seed(0)
    model = tiny("bert")
    peft.apply(model, "prompt", INIT_IDS, virtual_tokens=7, prompt_init=init)
    rows, table = model.virtual.source(), model.embeddings.word.weight
    if init == "text":
        assert torch.equal(rows, table[torch.tensor([*INIT_IDS, 3, 14])])
    elif init == "vocabulary":
        assert all((table == row).all(1).any() for row in rows)
    else:
        assert rows.std().item() == pytest.approx(table.std().item(), rel=0.4)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_the_encoder_starts_at_its_rows(kind):
    rows = torch.randn(P, 6)
    encoder = PromptEncoder(rows, kind, 5)
    assert torch.equal(encoder(), rows)
    encoder.last.weight.data.normal_()
    assert not torch.allclose(encoder(), rows)


def test_the_mlp_is_its_equation():
    torch.manual_seed(0)
    encoder = PromptEncoder(torch.randn(P, 6), "mlp", 5)
    for parameter in encoder.parameters():
        parameter.data.normal_()
    for p in range(P):
        x = (encoder.first.weight @ encoder.inputs[p] + encoder.first.bias).clamp(min=0)
        x = (encoder.second.weight @ x + encoder.second.bias).clamp(min=0)
        expected = encoder.start[p] + encoder.last.weight @ x + encoder.last.bias
        torch.testing.assert_close(encoder()[p], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_number_of_parameters(name):
    counts = {}
    for method in ("prompt", "p_tuning"):
        model = adapt(tiny(name), method)
        counts[method] = sum(p.numel() for key, p in model.named_parameters() if key.startswith("virtual."))
    assert counts["prompt"] == P * 12
    assert counts["p_tuning"] == P * 12 + (12 * 6 + 6) + (6 * 6 + 6) + (6 * 12 + 12)


def test_bad_settings():
    for options, message in (
        ({"prompt_init": "zero"}, "unknown prompt_init 'zero'; known: vocabulary, text, random"),
        ({"pool": "mean"}, "unknown pool 'mean'; known: cls, virtual"),
        ({"virtual_tokens": 0}, "0 virtual tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.apply(tiny("bert"), "prompt", INIT_IDS, **options)
    with pytest.raises(ValueError, match="unknown prompt_encoder 'gru'; known: mlp, lstm"):
        peft.apply(tiny("bert"), "p_tuning", INIT_IDS, prompt_encoder="gru")
