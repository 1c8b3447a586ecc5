import math

import pytest
import torch
from conftest import ENCODERS, INIT_IDS, adapt, tiny, token_batch

import peft
from nn.attention import masked_softmax
from peft.prefix import DeepPrefix, PrefixEncoder, keys_and_values
from peft.prompt import Table

P, L, H, K = 4, 2, 3, 4


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prefix_of_the_models_own_keys_is_a_longer_review(name):
    """Every layer sees the prefix as it would see these tokens, but for their positions: so with the keys and values of
    the first tokens of a review without positions, the rest comes out alike in the first layer."""
    model = tiny(name).eval()
    rows = keys_and_values(model, torch.tensor(INIT_IDS))
    assert rows.shape == (len(INIT_IDS), 2 * L * H * K)
    x = model.embed(torch.tensor([INIT_IDS]), torch.ones(1, 5, dtype=torch.bool))
    key = model.layers[0].attention.key(x)[0]
    torch.testing.assert_close(rows[:, : H * K], key)
    value = model.layers[0].attention.value(x)[0]
    torch.testing.assert_close(rows[:, H * K : 2 * H * K], value)


def test_rows_are_keys_and_values_layer_by_layer():
    rows = torch.arange(P * 2 * L * H * K, dtype=torch.float32).view(P, -1)
    pairs = DeepPrefix(Table(rows), L, H).pairs()
    for layer in range(L):
        for which in range(2):
            for h in range(H):
                for p in range(P):
                    start = ((2 * layer + which) * H + h) * K
                    assert torch.equal(pairs[layer][which][0, h, p], rows[p, start : start + K])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_prefix_is_the_base(name):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    before = model(*batch)
    model.virtual = DeepPrefix(Table(torch.zeros(0, 2 * L * H * K)), L, H)
    torch.testing.assert_close(model(*batch), before)


def test_prefix_on_deberta_equals_the_loop_over_pairs():
    """c2c + c2p + p2c for real keys, c2c alone for prefix keys, all over √(3K)."""
    torch.manual_seed(0)
    model = tiny("deberta").double().eval()
    layer, table = model.layers[0].attention, model.relative_norm(model.relative.weight)
    x, mask = torch.randn(2, 5, 12, dtype=torch.float64), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    prefix = tuple(torch.randn(1, H, P, K, dtype=torch.float64) for _ in range(2))
    q, k, v = (part(x).view(2, 5, H, K) for part in (layer.query, layer.key, layer.value))
    pos_q, pos_k = (part(table).view(-1, H, K) for part in (layer.query, layer.key))
    rows = []
    for b in range(2):
        for i in range(5):
            heads = []
            for h in range(H):
                scores = [q[b, i, h] @ prefix[0][0, h, p] for p in range(P)]
                for j in range(5):
                    delta = layer.span + i - j  # short distances have a row each
                    scores.append(q[b, i, h] @ k[b, j, h] + q[b, i, h] @ pos_k[delta, h] + k[b, j, h] @ pos_q[delta, h])
                seen = torch.tensor([True] * P + mask[b].tolist())
                weights = masked_softmax(torch.stack(scores) / math.sqrt(3 * K), seen)
                heads.append(weights @ torch.cat([prefix[1][0, h], v[b, :, h]]))
            rows.append(layer.output(torch.cat(heads)))
    torch.testing.assert_close(layer(x, mask, prefix, None, table), torch.stack(rows).view(2, 5, 12))


def test_the_mlp_is_its_equation_and_starts_at_the_start():
    torch.manual_seed(0)
    start = torch.randn(P, 24)
    encoder = PrefixEncoder(start, 5, 7)
    assert torch.equal(encoder(), start)
    encoder.up.weight.data.normal_()
    encoder.up.bias.data.normal_()
    for p in range(P):
        inner = (encoder.down.weight @ encoder.inputs[p] + encoder.down.bias).tanh()
        expected = start[p] + encoder.up.weight @ inner + encoder.up.bias
        torch.testing.assert_close(encoder()[p], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_number_of_parameters(name):
    counts = {}
    for method in ("prefix", "p_tuning_v2"):
        model = adapt(tiny(name), method)
        counts[method] = sum(p.numel() for key, p in model.named_parameters() if key.startswith("virtual."))
    assert counts["p_tuning_v2"] == 2 * P * L * 12
    assert counts["prefix"] == P * 12 + (12 * 7 + 7) + (7 + 1) * 2 * L * 12


def test_dropout_hits_keys_and_values():
    model = peft.apply(tiny("bert"), "p_tuning_v2", INIT_IDS, virtual_tokens=20, prefix_dropout=0.5)
    keys, _ = model.virtual.train().pairs()[0]
    assert 0.3 < (keys == 0).float().mean() < 0.7
    keys, _ = model.virtual.eval().pairs()[0]
    assert (keys != 0).all()


def test_bad_settings():
    for options, message in (
        ({"prefix_init": "zero"}, "unknown prefix_init 'zero'; known: text, random"),
        ({"virtual_tokens": 0}, "0 virtual tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.apply(tiny("bert"), "prefix", INIT_IDS, **options)
    with pytest.raises(ValueError, match="needs the ids of a text"):
        peft.apply(tiny("bert"), "prefix")
    assert peft.apply(tiny("bert"), "prefix", prefix_init="random").virtual is not None
