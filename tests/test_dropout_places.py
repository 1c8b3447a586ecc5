"""Where dropout acts in whole models, and at which rate."""

import pytest
import torch
from conftest import ENCODERS, tiny, token_batch
from torch.nn import Module

from nn import MODELS
from nn.deberta import ConvLayer, DebertaConfig
from nn.dropout import Dropout
from nn.gru import GRU
from nn.lstm import LSTM

B, T, D = 2, 5, 12
MASK = torch.arange(T) < torch.tensor([T, 3])[:, None]
# each field of a config has another rate
FIELDS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "classifier_dropout": 0.3}
FIELDS |= {"cls_dropout": 0.3, "pooler_dropout": 0.4, "mlp_dropout": 0.5, "embedding_dropout": 0.6}
FIELDS |= {"dropout": 0.7, "layer_dropout": 0.8, "conv_kernel_size": 3}
BERT = {"embeddings.dropout": 0.1, "layers.0.attention.dropout": 0.2}
BERT |= {"layers.0.attention_dropout": 0.1, "layers.0.dropout": 0.1, "dropout": 0.3}
LSTM_STATES = {"embeddings.dropout": 0.6, "lstm.dropout": 0.7, "dropout": 0.7}
RATES = {
    "bert": BERT,
    "distilbert": BERT | {"layers.0.attention_dropout": 0.0},
    "roberta": BERT | {"pooler.dropout": 0.3},
    "xlm_roberta": BERT | {"pooler.dropout": 0.3},
    "electra": BERT | {"pooler.dropout": 0.3},
    "deberta": BERT | {"pooler.dropout": 0.4, "layers.0.attention.position_dropout": 0.1, "conv.dropout": 0.1},
    "modernbert": {
        "embeddings.dropout": 0.6,
        "layers.0.attention.dropout": 0.2,
        "layers.0.dropout": 0.2,
        "layers.0.feed_forward.dropout": 0.5,
        "dropout": 0.3,
    },
    "lstm": LSTM_STATES,
    "cnn_lstm": LSTM_STATES,
    "attention_lstm": LSTM_STATES,
    "capsule_lstm": LSTM_STATES,
    "gru": {"embeddings.dropout": 0.6, "gru.dropout": 0.7, "dropout": 0.7},
    "cnn": {"embeddings.dropout": 0.6, "dropout": 0.7},
    "transformer": {
        "embeddings.dropout": 0.6,
        "layers.0.attention.dropout": 0.8,
        "layers.0.dropout": 0.8,
        "dropout": 0.7,
    },
    "nb_linear": {"dropout": 0.7},
}


def rates(model: Module) -> dict[str, float]:
    """Returns the rate of every dropout of a model by its name."""
    return {name: module.p for name, module in model.named_modules() if isinstance(module, Dropout)}


@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_has_the_rate_of_its_field(name):
    assert rates(tiny(name, num_layers=1, one_hot=False, **FIELDS)) == RATES[name]


def test_one_hot_words_have_no_embedding_dropout():
    assert rates(tiny("cnn", one_hot=True, **FIELDS)) == {"dropout": 0.7}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm_roberta", "electra", "deberta"])
def test_a_head_without_a_rate_has_that_of_the_layers(name):
    assert tiny(name, hidden_dropout_prob=0.25).dropout.p == 0.25


def states_and_features(name: str) -> tuple[Module, torch.Tensor, torch.Tensor]:
    """Returns a model whose `dropout` has the rate 0.5, its states, and their pooled features without dropout."""
    model, (ids, mask) = tiny(name).eval(), token_batch([T, 3])
    model.dropout.p = 0.5
    h = model.encode(model.embed(ids, mask), mask)
    return model, h, model.pool(h, mask)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("capsule_lstm", "nb_linear")])
def test_the_pooled_features_are_dropped(name):
    model, h, features = states_and_features(name)
    model.train()
    if name in ENCODERS:
        model.pooler.eval()
    torch.manual_seed(1)
    expected = model.dropout(features)
    assert not torch.equal(expected, features)
    torch.manual_seed(1)
    assert torch.equal(model.pool(h, MASK), expected)


def test_capsules_read_dropped_states():
    model, h, features = states_and_features("capsule_lstm")
    torch.manual_seed(1)
    dropped = model.dropout.train()(h)
    expected = model.eval().pool(dropped, MASK)
    assert not torch.equal(expected, features)
    torch.manual_seed(1)
    assert torch.equal(model.train().pool(h, MASK), expected)


def test_the_convolution_drops_before_its_activation():
    """y = LN(h + tanh(dropout(W * e + b)))"""
    config = DebertaConfig(hidden_size=D, num_heads=3, relative_attention=True, conv_kernel_size=3)
    layer, mask = ConvLayer(config).train(), torch.ones(B, T, dtype=torch.bool)
    layer.dropout.p = 0.5
    e, h = torch.randn(2, B, T, D)
    torch.manual_seed(1)
    local = layer.dropout(layer.conv(e.transpose(1, 2)).transpose(1, 2)).tanh()
    torch.manual_seed(1)
    torch.testing.assert_close(layer(e, h, mask), layer.norm(h + local))


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_recurrent_networks_drop_between_their_layers_only(kind):
    stack, x = kind(input_size=7, hidden_size=3, num_layers=2, dropout=0.5).train(), torch.randn(B, T, 7)
    torch.manual_seed(1)
    expected = stack.layers[1](stack.dropout(stack.layers[0](x, MASK)), MASK)
    torch.manual_seed(1)
    assert torch.equal(stack(x, MASK), expected)
