"""ELECTRA: the projection of the embeddings, the head, and checkpoints of pretraining."""

from pathlib import Path

import pytest
import torch
from conftest import tiny, token_batch
from safetensors.torch import load_file, save_file

from data.hub import WEIGHTS
from nn.checkpoint import load_pretrained, save_pretrained


def test_embeddings_are_projected_with_a_bias_after_the_norm():
    """x⁰ = W_e LN(word + type + position) + b_e"""
    model, (ids, mask) = tiny("electra", embedding_size=7).eval(), token_batch([6, 4])
    embeddings = model.embeddings
    assert (embeddings.norm.normalized_shape, embeddings.project) == ((7,), None)
    e = embeddings.norm(embeddings.word(ids) + embeddings.token_type.weight[0] + embeddings.position.weight[:6])
    expected = e @ model.project.weight.T + model.project.bias
    torch.testing.assert_close(model.embed(ids, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.embed_words(embeddings.word(ids), mask, 0), model.embed(ids, mask))


def test_there_is_no_projection_between_equal_widths():
    model = tiny("electra", embedding_size=12)
    assert model.project is None
    assert not [name for name, _ in model.named_parameters() if name.startswith("project")]


def test_the_head_is_a_gelu_layer_whatever_the_activation_of_the_layers():
    model = tiny("electra", hidden_act="relu").eval()
    h = torch.randn(2, 5, 12)
    expected = torch.nn.functional.gelu(h[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(model.pool(h, torch.ones(2, 5, dtype=torch.bool)), expected)


@pytest.mark.parametrize(("field", "expected"), [({}, 0.2), ({"classifier_dropout": 0.3}, 0.3)])
def test_the_head_drops_before_and_after_its_hidden_layer(field, expected):
    model = tiny("electra", hidden_dropout_prob=0.2, **field)
    assert (model.pooler.dropout.p, model.dropout.p) == (expected, expected)


@pytest.mark.parametrize(
    "extras",
    [
        ["discriminator_predictions.dense.weight", "discriminator_predictions.dense_prediction.bias"],
        ["generator_predictions.LayerNorm.weight", "generator_lm_head.bias", "electra.embeddings.position_ids"],
    ],
    ids=["discriminator", "generator"],
)
def test_a_checkpoint_of_pretraining_has_no_head(tmp_path: Path, extras):
    model = tiny("electra")
    save_pretrained(model, tmp_path, heads=False)
    tensors = load_file(tmp_path / WEIGHTS)
    assert {key.split(".")[0] for key in tensors} == {"electra"}
    save_file(tensors | {name: torch.zeros(3) for name in extras}, tmp_path / WEIGHTS)
    loaded = load_pretrained(tmp_path)
    head = {f"{part}.{leaf}" for part in ("pooler.dense", "classifier") for leaf in ("weight", "bias")}
    assert loaded.newly_initialized == head
    for name, parameter in loaded.named_parameters():
        assert name in head or torch.equal(parameter, model.get_parameter(name)), name
