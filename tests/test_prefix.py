"""Prefix tuning and P-tuning v2: keys and values before those of a review, in every layer."""

import math

import pytest
import torch
from conftest import ENCODERS, INIT_IDS, adapt, tiny, token_batch

import peft
from nn.attention import masked_softmax
from peft.prefix import DeepPrefix, PrefixEncoder, initial_prefix, keys_and_values
from peft.prompt import Table

P, L, H, K = 4, 2, 3, 4


@pytest.mark.parametrize("name", ENCODERS)
def test_keys_and_values_are_the_outputs_of_each_layers_projections(name):
    model = tiny(name).train()
    inputs = []
    for layer in model.layers:
        layer.attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    rows = keys_and_values(model, torch.tensor(INIT_IDS))
    expected = []
    for layer, x in zip(model.layers, inputs, strict=True):
        a = layer.attention
        keys, values = a.query_key_value(x)[..., 12:].chunk(2, -1) if name == "modernbert" else (a.key(x), a.value(x))
        expected += [keys[0], values[0]]
    torch.testing.assert_close(rows, torch.cat(expected, 1))
    assert rows.shape == (len(INIT_IDS), 2 * L * H * K)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "xlm_roberta"])
def test_a_prefix_of_own_keys_and_values_equals_a_longer_review(name):
    """In one layer, with positions that start after the prefix, the prefix has the effect of the tokens themselves."""
    model, (ids, mask) = tiny(name, num_layers=1).eval(), token_batch([6, 4])
    longer = torch.cat([torch.tensor([INIT_IDS] * 2), ids], 1)
    wide = torch.cat([torch.ones(2, 5, dtype=torch.bool), mask], 1)
    h = model.encode(model.embed(longer, wide), wide)[:, 5:]
    peft.apply(model, "p_tuning_v2", INIT_IDS, virtual_tokens=5)
    torch.testing.assert_close(model(ids, mask), model.classifier(model.pool(h, mask)), rtol=1e-5, atol=1e-5)


def test_rows_are_keys_and_values_layer_by_layer():
    rows = torch.arange(P * 2 * L * H * K, dtype=torch.float32).view(P, -1)
    pairs = DeepPrefix(Table(rows), num_layers=L, num_heads=H).pairs()
    for layer in range(L):
        for which in range(2):
            for h in range(H):
                for p in range(P):
                    start = ((2 * layer + which) * H + h) * K
                    assert torch.equal(pairs[layer][which][0, h, p], rows[p, start : start + K])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_prefix_changes_nothing(name):
    model, batch = tiny(name).eval(), token_batch([7, 4])
    before = model(*batch)
    model.virtual = DeepPrefix(Table(torch.zeros(0, 2 * L * H * K)), num_layers=L, num_heads=H)
    torch.testing.assert_close(model(*batch), before)


def test_prefix_on_deberta_equals_the_loop_over_pairs():
    """The scores are c2c + c2p + p2c for real keys and c2c for prefix keys, all divided by √(3K)."""
    torch.manual_seed(0)
    model = tiny("deberta").double().eval()
    layer, table = model.layers[0].attention, model.relative_norm(model.relative.weight)
    x, mask = torch.randn(2, 5, 12, dtype=torch.float64), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    prefix = tuple(torch.randn(1, H, P, K, dtype=torch.float64) for _ in range(2))
    q, k, v = (projection(x).view(2, 5, H, K) for projection in (layer.query, layer.key, layer.value))
    pos_q, pos_k = (projection(table).view(-1, H, K) for projection in (layer.query, layer.key))
    rows = []
    for b in range(2):
        for i in range(5):
            heads = []
            for h in range(H):
                scores = [q[b, i, h] @ prefix[0][0, h, p] for p in range(P)]
                for j in range(5):
                    delta = layer.span + i - j  # each of these short distances has its own row
                    scores.append(q[b, i, h] @ k[b, j, h] + q[b, i, h] @ pos_k[delta, h] + k[b, j, h] @ pos_q[delta, h])
                visible = torch.tensor([True] * P + mask[b].tolist())
                weights = masked_softmax(torch.stack(scores) / math.sqrt(3 * K), visible)
                heads.append(weights @ torch.cat([prefix[1][0, h], v[b, :, h]]))
            rows.append(layer.output(torch.cat(heads)))
    ours = layer(x, mask, prefix=prefix, queries=None, relative=table)
    torch.testing.assert_close(ours, torch.stack(rows).view(2, 5, 12))


def test_the_mlp_equals_the_loop_with_gradients_and_starts_at_the_initial_rows():
    """row_p = e₀ + W₂ tanh(W₁ e_p + b₁) + b₂"""
    torch.manual_seed(0)
    start = torch.randn(P, 24, dtype=torch.float64)
    encoder = PrefixEncoder(start, width=5, hidden_size=7).double()
    assert torch.equal(encoder(), start)
    for parameter in (encoder.up.weight, encoder.up.bias):
        parameter.data.normal_()
    rows = []
    for p in range(P):
        inner = (encoder.down.weight @ encoder.inputs[p] + encoder.down.bias).tanh()
        rows.append(start[p] + encoder.up.weight @ inner + encoder.up.bias)
    ours, plain, wanted, upstream = encoder(), torch.stack(rows), [*encoder.parameters()], torch.randn_like(start)
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(*(torch.autograd.grad(y, wanted, upstream) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_inputs_of_the_mlp_are_standard_normal():
    torch.manual_seed(0)
    inputs = PrefixEncoder(torch.zeros(20, 24), width=100, hidden_size=7).inputs
    assert inputs.std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ENCODERS)
def test_number_of_parameters(name):
    counts = {}
    for method in ("prefix", "p_tuning_v2"):
        model = adapt(tiny(name), method)
        counts[method] = sum(p.numel() for key, p in model.named_parameters() if key.startswith("virtual."))
    assert counts["p_tuning_v2"] == 2 * P * L * 12
    assert counts["prefix"] == P * 12 + (12 * 7 + 7) + (7 + 1) * 2 * L * 12


@pytest.mark.parametrize("method", ["prefix", "p_tuning_v2"])
def test_dropout_acts_on_keys_and_values(method):
    model = peft.apply(tiny("bert"), method, INIT_IDS, virtual_tokens=20, prefix_dropout=0.5)
    for keys_or_values in model.virtual.train().pairs()[1]:
        assert 0.3 < (keys_or_values == 0).float().mean() < 0.7
    for keys_or_values in model.virtual.eval().pairs()[1]:
        assert (keys_or_values != 0).all()


def test_a_random_prefix_has_the_stated_standard_deviation():
    torch.manual_seed(0)
    model = peft.apply(tiny("bert"), "p_tuning_v2", virtual_tokens=50, prefix_init="random")
    assert model.virtual.source().std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_init": "zero"}, "unknown prefix_init 'zero'; known: text, random"),
        ({"virtual_tokens": 0}, "0 virtual tokens"),
    ],
)
def test_unsupported_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        peft.apply(tiny("bert"), "prefix", INIT_IDS, **options)


def test_a_prefix_that_is_longer_than_the_position_table_raises():
    with pytest.raises(ValueError, match=r"999 virtual tokens, but the model has \d+ positions; lower --virtual"):
        peft.apply(tiny("bert"), "p_tuning_v2", INIT_IDS, virtual_tokens=999)


def test_the_initial_rows_leave_the_mode_of_each_module():
    model = tiny("bert").train()
    model.embeddings.eval()
    peft.apply(model, "p_tuning_v2", INIT_IDS, virtual_tokens=3)
    assert not any(module.training for module in model.embeddings.modules())
    assert model.layers[0].training


def test_initial_rows_from_a_text_need_its_ids():
    with pytest.raises(ValueError, match="needs the ids of a text"):
        peft.apply(tiny("bert"), "prefix")


def test_a_prefix_starts_from_keys_and_values_without_dropout():
    model = tiny("bert", hidden_dropout_prob=0.5).train()
    expected = initial_prefix(model.eval(), 3, "text", INIT_IDS)
    model.train()
    assert torch.equal(initial_prefix(model, 3, "text", INIT_IDS), expected)
    assert all(module.training for module in model.modules())


def test_a_prefix_of_a_text_may_have_a_token_for_each_position():
    model = tiny("bert", max_position_embeddings=9)
    assert len(initial_prefix(model, 9, "text", INIT_IDS)) == 9
    with pytest.raises(ValueError, match="10 virtual tokens, but the model has 9 positions"):
        initial_prefix(model, 10, "text", INIT_IDS)
