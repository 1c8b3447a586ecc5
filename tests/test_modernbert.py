"""ModernBERT: rotary positions, local attention, the gated feed-forward layer, the block, pooling and the config."""

import math
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from conftest import GOLDEN, INIT_IDS, tiny, token_batch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Identity

import peft
from data.checked import read_json
from data.files import write_json
from data.hub import CONFIG, WEIGHTS
from nn.checkpoint import load_pretrained, read_config, save_pretrained, write_config
from nn.dropout import Dropout
from nn.modernbert import (
    GatedFeedForward,
    ModernBert,
    ModernBertBlock,
    ModernBertConfig,
    RotaryAttention,
    rotate,
    rotations,
)
from nn.words import masked_mean

B, T, H, K, P, F = 2, 7, 3, 4, 5, 13
D = H * K
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 against float64
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def layer_and_input(reach: int | None, base: float = 50.0) -> tuple[RotaryAttention, Tensor, Tensor]:
    """Returns float64 attention, x [B, T, D] that requires a gradient, and a mask with padding in the second row."""
    torch.manual_seed(0)
    layer = RotaryAttention(hidden_size=D, num_heads=H, base=base, reach=reach, bias=False, dropout=0.0).double()
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.5)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    return layer, x, torch.arange(T) < torch.tensor([T, 4])[:, None]


def assert_equal_with_gradients(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    """Compares two results, and their gradients for the same random upstream gradient."""
    torch.testing.assert_close(ours, plain, **EXACT)
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (ours, plain))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


# ---------------------------------------------------------------------------------------------- rotary positions


def test_rotations_equal_the_loop_over_pairs_with_gradients():
    torch.manual_seed(0)
    x = torch.randn(B, H, T, K, dtype=torch.float64, requires_grad=True)
    cos, sin = rotations(T, K, base=50.0, dtype=torch.float64, device=x.device)
    assert cos.shape == sin.shape == (T, K // 2)
    rows = [reference.rotary(x[b, h, t], t, 50.0) for b in range(B) for h in range(H) for t in range(T)]
    assert_equal_with_gradients(rotate(x, cos, sin), torch.stack(rows).view_as(x), [x])


@pytest.mark.parametrize("base", [10_000.0, 160_000.0])
def test_a_score_depends_on_the_distance_only_and_norms_stay(base):
    """R(q, t)·R(k, s) is a function of t - s (Su et al. 2021, Eq. 16)."""
    torch.manual_seed(0)
    cos, sin = rotations(600, 64, base=base, dtype=torch.float64, device=torch.device("cpu"))
    q, k = (rotate(torch.randn(1, 1, 1, 64).double().expand(1, 1, 600, 64), cos, sin)[0, 0] for _ in range(2))
    scores = q @ k.T  # [600, 600]
    for distance in (-500, -1, 0, 3, 64, 599):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), **EXACT)
    torch.testing.assert_close(q.norm(dim=1), q[:1].norm(dim=1).expand(600), **EXACT)
    assert not torch.allclose(scores.diagonal(-3)[0], scores.diagonal(-4)[0])


def test_an_odd_width_per_head_raises():
    with pytest.raises(ValueError, match="need an even width per head, not 9 / 3"):
        RotaryAttention(hidden_size=9, num_heads=3, base=50.0, reach=None, bias=False, dropout=0.0)


def test_bf16_is_rotated_in_fp32():
    """The result is that of fp32, rounded once."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 300, 64).bfloat16()
    cos, sin = rotations(300, 64, base=10_000.0, dtype=torch.float32, device=x.device)
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())
    layer = RotaryAttention(64, 1, base=10_000.0, reach=None, bias=False, dropout=0.0).bfloat16()
    mask = torch.ones(1, 300, dtype=torch.bool)
    seen = []
    rotations.cache_clear()
    layer.output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    layer(x[:, 0], mask)
    assert seen == [torch.bfloat16]
    assert rotations(300, 32 * 2, base=10_000.0, dtype=torch.float32, device=x.device)[0].dtype == torch.float32
    assert rotations.cache_info().hits == 1  # the layer asked for fp32


# ----------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("with_prefix", [False, True], ids=["", "prefix"])
@pytest.mark.parametrize("reach", [None, 0, 2, T])
def test_attention_equals_the_loop_with_gradients(reach, with_prefix):
    layer, x, mask = layer_and_input(reach)
    prefix = [torch.randn(1, H, P, K, dtype=torch.float64, requires_grad=True) for _ in range(2)] if with_prefix else []
    pair = (prefix[0], prefix[1]) if with_prefix else None
    weights = (layer.query_key_value.weight, layer.output.weight)
    ours = layer(x, mask, prefix=pair)
    plain = reference.rotary_attention(x, weights, H, mask, 50.0, math.inf if reach is None else reach, pair)
    assert_equal_with_gradients(ours[mask], plain[mask], [x, *weights, *prefix])
    assert ours.isfinite().all()  # padding may see no key at all


@pytest.mark.parametrize("queries", [3, torch.tensor([[6, 0, 2], [3, 1, 1]])], ids=["first n", "indices"])
@pytest.mark.parametrize("reach", [None, 2])
def test_selected_queries_keep_their_positions_and_windows(reach, queries):
    layer, x, mask = layer_and_input(reach)
    full = layer(x, mask)
    rows = torch.arange(3).expand(B, -1) if isinstance(queries, int) else queries
    expected = torch.stack([full[b, rows[b]] for b in range(B)])
    torch.testing.assert_close(layer(x, mask, queries=queries), expected, **EXACT)


@pytest.mark.parametrize("window", [4, 5, 128])
def test_a_local_layer_sees_half_the_window_on_both_sides(window):
    """In one local layer, a token changes exactly the outputs at most w/2 away."""
    reach = window // 2
    length, middle = 3 * reach + 4, reach + 2
    model = tiny("modernbert", num_layers=1, layer_types=(LOCAL,), local_attention=window).eval()
    mask = torch.arange(length + reach + 2)[None] < length
    ids = torch.where(mask, 7, 0)
    other = ids.clone()
    other[0, middle] = 8
    h, changed = (model.encode(model.embed(tokens, mask), mask) for tokens in (ids, other))
    assert h.isfinite().all()
    moved = (h != changed).any(-1)[0, :length].nonzero()[:, 0]
    assert moved.tolist() == list(range(middle - reach, middle + reach + 1))


def test_global_and_local_layers_have_their_own_base_and_window():
    model = tiny("modernbert", num_layers=7, global_rope_theta=77.0, local_rope_theta=11.0, local_attention=10)
    found = [(layer.attention.base, layer.attention.reach) for layer in model.layers]
    assert found == [(77.0, None), (11.0, 5), (11.0, 5)] * 2 + [(77.0, None)]


# --------------------------------------------------------------------------------------------- feed-forward, block


@pytest.mark.parametrize("bias", [False, True])
def test_the_gated_feed_forward_equals_the_loop_with_gradients(bias):
    """y = W₂ (gelu(u) ⊙ g); u is the first half of W₁ x."""
    torch.manual_seed(0)
    layer = GatedFeedForward(hidden_size=D, feed_forward_size=F, act="gelu", bias=bias, dropout=0.0).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    rows = []
    for row in x.flatten(0, 1):
        hidden = [layer.up.weight[j] @ row + (layer.up.bias[j] if bias else 0) for j in range(2 * F)]
        gated = [hidden[f] * 0.5 * (1 + torch.erf(hidden[f] / 2**0.5)) * hidden[F + f] for f in range(F)]
        rows.append(layer.down.weight @ torch.stack(gated) + (layer.down.bias if bias else 0))
    inputs = [x, *layer.parameters()]
    assert len(inputs) == (5 if bias else 3)
    assert_equal_with_gradients(layer(x), torch.stack(rows).view_as(x), inputs)


@pytest.mark.parametrize("number", [0, 1])
def test_the_block_is_pre_norm_and_drops_the_attention_and_the_gated_values(number):
    """a = x + drop(attention(LN(x))), y = a + W₂ drop(act(u) ⊙ g), without the first LN in layer 0"""
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "num_heads": H, "feed_forward_size": F, "num_layers": 2}
    config = ModernBertConfig(**sizes, mlp_dropout=0.5, attention_probs_dropout_prob=0.25)
    block, zeros = ModernBertBlock(config, number).double().train(), torch.zeros(D, dtype=torch.float64)
    x, mask = torch.randn(B, T, D, dtype=torch.float64), torch.ones(B, T, dtype=torch.bool)
    block.feed_forward_norm.weight.data.normal_(1, 0.2)
    assert isinstance(block.attention_norm, Identity) == (number == 0)
    normed = x
    if number:
        block.attention_norm.weight.data.normal_(1, 0.2)
        normed = reference.layer_norm(x, block.attention_norm.weight, zeros, 1e-5)
    torch.manual_seed(3)
    ours = block(x, mask)
    torch.manual_seed(3)
    assert block.attention.dropout.p == 0.25
    a = x + Dropout(0.25).train()(block.attention(normed, mask))
    u, g = block.feed_forward.up(reference.layer_norm(a, block.feed_forward_norm.weight, zeros, 1e-5)).chunk(2, -1)
    expected = a + block.feed_forward.down(Dropout(0.5).train()(torch.nn.functional.gelu(u) * g))
    torch.testing.assert_close(ours, expected)


def test_words_and_the_states_of_the_last_layer_are_normalized():
    """There are no positions in the embeddings, and no norm has a bias."""
    model, (ids, mask) = tiny("modernbert").eval(), token_batch([7, 4])
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")][:-1]  # the classifier's
    x = model.embed(ids, mask)
    e = reference.layer_norm(model.embeddings.word(ids), model.embeddings.norm.weight, torch.zeros(12), 1e-5)
    torch.testing.assert_close(x, e * mask[..., None])
    for layer in model.layers:
        x = layer(x, mask)
    expected = reference.layer_norm(x, model.final_norm.weight, torch.zeros(12), 1e-5)
    torch.testing.assert_close(model.encode(model.embed(ids, mask), mask), expected)


# -------------------------------------------------------------------------------------------------- head, pooling


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_head_reads_the_first_token_or_the_mean_of_the_real_tokens(pooling):
    """f = LN(act(W p))"""
    model = tiny("modernbert", classifier_pooling=pooling, classifier_activation="relu").eval()
    h, mask = torch.randn(B, T, 12), torch.arange(T) < torch.tensor([T, 4])[:, None]
    p = h[:, 0] if pooling == "cls" else torch.stack([h[0].mean(0), h[1, :4].mean(0)])
    inner = (p @ model.pooler.dense.weight.T).clamp(min=0)
    expected = reference.layer_norm(inner, model.pooler.norm.weight, torch.zeros(12), 1e-5)
    torch.testing.assert_close(model.pool(h, mask), expected, rtol=1e-5, atol=1e-5)


def test_a_mean_needs_all_queries_of_the_last_layer():
    model, (ids, mask) = tiny("modernbert", classifier_pooling="mean").eval(), token_batch([7, 4])
    assert (model.pooled_queries(), model.pooled_queries(3)) == (None, None)
    assert (tiny("modernbert").pooled_queries(), tiny("modernbert").pooled_queries(3)) == (1, 4)
    h = model.encode(model.embed(ids, mask), mask)
    expected = model.classifier(model.pooler(masked_mean(h, mask)[:, None]))
    torch.testing.assert_close(model(ids, mask), expected)


@pytest.mark.parametrize("pool", ["cls", "virtual"])
def test_the_mean_leaves_virtual_tokens_out_or_includes_them_as_in_huggingface_peft(pool):
    model, (ids, mask) = tiny("modernbert", classifier_pooling="mean").eval(), token_batch([6, 4])
    longer = torch.cat([torch.tensor([INIT_IDS] * 2), ids], 1)
    wide = torch.cat([torch.ones(2, 5, dtype=torch.bool), mask], 1)
    h = model.encode(model.embed(longer, wide), wide)
    first = 5 if pool == "cls" else 0
    expected = model.classifier(model.pool(h[:, first:], wide[:, first:]))
    peft.apply(model, "prompt", INIT_IDS, virtual_tokens=5, pool=pool)
    torch.testing.assert_close(model(ids, mask), expected, rtol=1e-5, atol=1e-5)


def test_a_prefix_starts_from_the_unrotated_keys_of_its_text_and_goes_with_a_mean():
    model, (ids, mask) = tiny("modernbert", classifier_pooling="mean").eval(), token_batch([7, 4])
    peft.apply(model, "p_tuning_v2", INIT_IDS, virtual_tokens=5)
    pairs, x = model.virtual.pairs(), model.embed(torch.tensor([INIT_IDS]), torch.ones(1, 5, dtype=torch.bool))
    k = x[0] @ model.layers[0].attention.query_key_value.weight[12:24].T  # [P, D]; layer 0 has no norm
    torch.testing.assert_close(pairs[0][0][0], k.view(5, H, 4).transpose(0, 1))
    h = model.encode(model.embed(ids, mask), mask, prefix=pairs)
    torch.testing.assert_close(model(ids, mask), model.classifier(model.pool(h, mask)))


# ---------------------------------------------------------------------------------------- config and checkpoints

HUB = {  # config.json of answerdotai/ModernBERT-base, written by transformers 4.48, with other sizes
    "model_type": "modernbert", "attention_bias": False, "attention_dropout": 0.0, "classifier_activation": "gelu",
    "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean", "decoder_bias": True,
    "deterministic_flash_attn": False, "embedding_dropout": 0.0, "global_attn_every_n_layers": 2,
    "global_rope_theta": 500.0, "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 24,
    "initializer_cutoff_factor": 2.0, "initializer_range": 0.03, "intermediate_size": 11, "layer_norm_eps": 1e-05,
    "local_attention": 6, "local_rope_theta": 30.0, "max_position_embeddings": 99, "mlp_bias": False,
    "mlp_dropout": 0.0, "norm_bias": False, "norm_eps": 1e-06, "num_attention_heads": 4, "num_hidden_layers": 5,
    "pad_token_id": 7, "position_embedding_type": "absolute", "sparse_prediction": False, "vocab_size": 61,
}  # fmt: skip
NEW = {  # the same in transformers 5: these fields instead of three
    "rope_parameters": {
        GLOBAL: {"rope_type": "default", "rope_theta": 500.0},
        LOCAL: {"rope_type": "default", "rope_theta": 30.0},
    },
    "layer_types": [GLOBAL, LOCAL, GLOBAL, LOCAL, GLOBAL],
}
OLD = ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers")
EXPECTED = ModernBertConfig(
    vocab_size=61, hidden_size=24, num_layers=5, num_heads=4, feed_forward_size=11, classifier_pooling="mean",
    global_attn_every_n_layers=2, local_attention=6, global_rope_theta=500.0, local_rope_theta=30.0,
    max_position_embeddings=99, layer_norm_eps=1e-6, initializer_range=0.03, pad_token_id=7,
)  # fmt: skip


def read(published: dict[str, Any]) -> ModernBertConfig:
    return read_config(ModernBert, published, ("negative", "positive"))


def test_old_and_new_config_files_are_read_alike_and_written_for_both():
    new = {key: value for key, value in HUB.items() if key not in OLD} | NEW
    assert read(HUB) == read(new) == read(HUB | NEW) == EXPECTED
    written = write_config(ModernBert(EXPECTED))
    assert {key: written[key] for key in OLD} == {key: HUB[key] for key in OLD}
    assert not written.keys() & NEW.keys()
    assert read(written) == EXPECTED


def test_defaults_are_those_of_the_published_code():
    assert read({}) == ModernBertConfig()
    config = ModernBertConfig()
    assert (config.global_rope_theta, config.local_rope_theta, config.local_attention) == (160_000, 10_000, 128)
    assert [layer for layer in range(22) if config.is_global(layer)] == list(range(0, 22, 3))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sliding_window": 32}, 64),
        ({"sliding_window": 32, "local_attention": 64}, 64),
        ({"sliding_window": 3, "local_attention": 7}, 7),
        ({"sliding_window": 32, "local_attention": 128}, 64),  # as in transformers
    ],
)
def test_a_sliding_window_replaces_the_default_of_local_attention(fields, expected):
    assert read(fields).local_attention == expected
    assert read(fields).sliding_window is None


def test_a_new_file_overrides_old_fields_and_null_means_the_global_base():
    assert read({"global_rope_theta": 7.0, "rope_parameters": {GLOBAL: {"rope_theta": 9.0}}}).global_rope_theta == 9.0
    assert read({"global_rope_theta": 7.0, "local_rope_theta": None}).local_rope_theta == 7.0
    kept = read({"global_rope_theta": 7.0, "rope_parameters": {GLOBAL: {"rope_type": "default"}, LOCAL: None}})
    assert (kept.global_rope_theta, kept.local_rope_theta) == (7.0, 10_000.0)


def test_a_pattern_of_layers_without_a_period_is_kept():
    types = (LOCAL, GLOBAL, GLOBAL)
    config = read({"num_hidden_layers": 3, "layer_types": list(types)})
    assert config.layer_types == types
    assert [config.is_global(layer) for layer in range(3)] == [False, True, True]
    model = tiny("modernbert", num_layers=3, layer_types=types)
    assert write_config(model)["layer_types"] == types
    assert [layer.attention.reach for layer in model.layers] == [64, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling = 'max' is not supported; supported: cls, mean"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling = .* is not supported"),
        (
            {"rope_parameters": {GLOBAL: {"rope_type": "yarn", "rope_theta": 5.0}}},
            r"rope_parameters\.full_attention\.rope_type = 'yarn' is not supported",
        ),
        ({"rope_parameters": {LOCAL: {"factor": 2.0}}}, r"rope_parameters\.sliding_attention\.factor = 2\.0"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "keys: full_attention, sliding_attention"),
        ({"rope_parameters": 5.0}, r"rope_parameters = 5\.0 is not supported"),
        ({"layer_types": [GLOBAL, "chunked_attention"]}, "'chunked_attention'.* is not supported; supported: full"),
        ({"layer_types": 3.0}, r"layer_types = 3\.0 is not supported"),
        ({"layer_types": [GLOBAL] * 4}, "layer_types has 4 entries for 5 layers"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0 is less than 1"),
        ({"sliding_window": 5}, r"sliding_window = 5, local_attention = \d+: the second must be twice the first"),
        ({"hidden_activation": "laplace"}, "unknown activation 'laplace'"),
        ({"classifier_activation": "laplace"}, "unknown activation 'laplace'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ModernBert(read(HUB | changes))


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"])
def test_each_bias_field_adds_its_biases(field):
    biases = {
        "attention_bias": [f"layers.{n}.attention.{part}" for n in range(2) for part in ("query_key_value", "output")],
        "mlp_bias": [f"layers.{n}.feed_forward.{part}" for n in range(2) for part in ("up", "down")],
        "norm_bias": [
            *("embeddings.norm", "layers.0.feed_forward_norm", "layers.1.attention_norm"),
            *("layers.1.feed_forward_norm", "final_norm", "pooler.norm"),
        ],
        "classifier_bias": ["pooler.dense"],
    }
    names = {name for name, _ in tiny("modernbert", **{field: True}).named_parameters() if name.endswith("bias")}
    assert names == {f"{module}.bias" for module in (*biases[field], "classifier")}


def test_a_checkpoint_of_pretraining_lacks_the_last_layer_only(tmp_path: Path):
    """ModernBERT-base contains the head's hidden layer, which masked language modelling trained."""
    model = tiny("modernbert").eval()
    save_pretrained(model, tmp_path)
    tensors = {key: t for key, t in load_file(tmp_path / WEIGHTS).items() if not key.startswith("classifier")}
    save_file(tensors | {"decoder.bias": torch.zeros(61), "decoder.weight": torch.zeros(61, 12)}, tmp_path / WEIGHTS)
    loaded, batch = load_pretrained(tmp_path).eval(), token_batch([7, 4])
    assert loaded.newly_initialized == {"classifier.weight", "classifier.bias"}
    assert torch.equal(loaded.features(*batch), model.features(*batch))


def test_a_golden_checkpoint_with_old_fields_gives_the_same_logits(tmp_path: Path):
    folder = GOLDEN / "modernbert_mean"
    expected, published = load_file(folder / "expected.safetensors"), read_json(folder / CONFIG)
    assert published.keys() >= NEW.keys()
    old = {key: value for key, value in published.items() if key not in NEW}
    write_json(tmp_path / CONFIG, old | {"global_rope_theta": 500.0, "local_rope_theta": 30.0})
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    ours = load_pretrained(tmp_path).eval()(expected["input_ids"], expected["mask"])
    torch.testing.assert_close(ours, expected["logits"], rtol=1e-5, atol=1e-5)


def test_no_padding_token_is_saved_as_none(tmp_path: Path):
    """A missing pad_token_id means the default, 50283, which is outside a small vocabulary."""
    model = tiny("modernbert", pad_token_id=None)
    save_pretrained(model, tmp_path)
    assert read_json(tmp_path / CONFIG)["pad_token_id"] is None
    assert load_pretrained(tmp_path).config == model.config
