import math

import pytest
import reference
import torch
from conftest import ENCODERS, tiny, token_batch
from torch.nn import Embedding, LayerNorm, Linear

from nn.attention import MultiHeadAttention
from nn.dropout import Dropout
from nn.encoder import (
    ACTIVATIONS,
    Embeddings,
    Encoder,
    EncoderBlock,
    FeedForward,
    Pooler,
    activation,
    checkpointed,
    init_weights,
)

B, T, D, H, F = 2, 5, 6, 2, 13


def block(act: str = "gelu", dropout: float = 0.0, **changes: float) -> EncoderBlock:
    """Returns a float64 block with random weights; its attention weights have no dropout."""
    torch.manual_seed(0)
    values = {"hidden_size": D, "feed_forward_size": F, "act": act, "eps": 1e-5, "dropout": dropout} | changes
    return EncoderBlock(attention=MultiHeadAttention(D, H), **values).double()


def random_input() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x [B, T, D] and a mask of real tokens only."""
    return torch.randn(B, T, D, dtype=torch.float64), torch.ones(B, T, dtype=torch.bool)


def post_norm(layer: EncoderBlock, x: torch.Tensor, mask: torch.Tensor, drops: tuple[Dropout, Dropout]) -> torch.Tensor:
    """Computes a = LN(x + drop₁(attention(x))), y = LN(a + drop₂(ffn(a)))."""
    n1, n2 = layer.attention_norm, layer.feed_forward_norm
    a = reference.layer_norm(x + drops[0](layer.attention(x, mask)), n1.weight, n1.bias, 1e-5)
    return reference.layer_norm(a + drops[1](layer.feed_forward(a)), n2.weight, n2.bias, 1e-5)


def test_layer_norm_is_the_equation_over_the_last_axis():
    norm = torch.nn.LayerNorm(D, eps=1e-7).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(norm(x), reference.layer_norm(x, norm.weight, norm.bias, 1e-7))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_norm_has_the_epsilon_of_the_config(name):
    model = tiny(name, layer_norm_eps=0.003, norm_rel_ebd="layer_norm", conv_kernel_size=3)
    found = {module.eps for module in model.modules() if isinstance(module, LayerNorm)}
    assert found == {1e-12 if name == "distilbert" else 0.003}  # DistilBERT's config has no such field


def test_block_is_post_norm():
    """The norm is applied after each residual sum."""
    layer, (x, mask) = block().eval(), random_input()
    for norm in (layer.attention_norm, layer.feed_forward_norm):
        norm.weight.data.normal_(1, 0.2)
    torch.testing.assert_close(layer(x, mask), post_norm(layer, x, mask, (Dropout(0.0), Dropout(0.0))))


@pytest.mark.parametrize("rates", [{}, {"attention_dropout": 0.0}, {"attention_dropout": 0.25}], ids=str)
def test_block_drops_each_sublayer_before_its_residual_sum(rates):
    layer, (x, mask) = block(dropout=0.5, **rates).train(), random_input()
    drops = Dropout(rates.get("attention_dropout", 0.5)).train(), Dropout(0.5).train()
    torch.manual_seed(3)
    ours = layer(x, mask)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, post_norm(layer, x, mask, drops))


def test_block_equals_torch_encoder_layer():
    ours = block("relu").float().eval()
    theirs = torch.nn.TransformerEncoderLayer(D, H, F, 0.0, batch_first=True).train()  # eval() selects a fused path
    a, ff, b = ours.attention, ours.feed_forward, theirs.self_attn
    pairs = [(b.out_proj, a.output), (theirs.linear1, ff.up), (theirs.linear2, ff.down)]
    with torch.no_grad():
        b.in_proj_weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]))
        b.in_proj_bias.copy_(torch.cat([a.query.bias, a.key.bias, a.value.bias]))
        for target, source in pairs:
            target.load_state_dict(source.state_dict())
    x, mask = torch.randn(B, T, D), torch.arange(T) < torch.tensor([T, 3])[:, None]
    torch.testing.assert_close(ours(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask], rtol=1e-5, atol=1e-6)


def test_feed_forward_is_the_equation():
    ff = FeedForward(hidden_size=D, feed_forward_size=F, act="gelu").double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    hidden = x @ ff.up.weight.T + ff.up.bias
    exact = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(ff(x), exact @ ff.down.weight.T + ff.down.bias)


def embeddings(dropout: float = 0.0, num_types: int = 2) -> Embeddings:
    """Returns float64 embeddings of 11 words and 7 positions, of width 4 before the projection."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": D, "num_positions": 7, "num_types": num_types, "embedding_size": 4}
    return Embeddings(**sizes, pad_id=0, eps=1e-12, dropout=dropout).double()


@pytest.mark.parametrize("first_position", [0, 2])
def test_embeddings_add_word_type_and_position_before_the_norm(first_position):
    layer, (ids, mask) = embeddings().eval(), token_batch([T, 3], vocab=11)
    positions = torch.arange(first_position, first_position + T)
    e = layer.word.weight[ids] + layer.token_type.weight[0] + layer.position.weight[positions]
    expected = reference.layer_norm(e @ layer.project.weight.T, layer.norm.weight, layer.norm.bias, 1e-12)
    torch.testing.assert_close(layer(ids, mask, first_position=first_position), expected * mask[..., None])


def test_the_row_of_padding_alone_starts_at_zero():
    layer = Embedding(11, 5, padding_idx=2)
    init_weights(layer, 0.02)
    assert layer.weight.eq(0).all(1).nonzero().tolist() == [[2]]


def test_embeddings_drop_after_the_norm():
    layer, (ids, mask) = embeddings(dropout=0.5), token_batch([T, 3], vocab=11)
    plain = layer.eval()(ids, mask)
    torch.manual_seed(3)
    ours = layer.train()(ids, mask)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, Dropout(0.5).train()(plain))


def test_more_tokens_than_positions_raise():
    layer, (ids, mask) = embeddings(), token_batch([8], vocab=11)
    with pytest.raises(ValueError, match="8 tokens, but the model has 7 positions; lower --max-length"):
        layer(ids, mask)
    with pytest.raises(ValueError, match="8 tokens, but the model has 5 positions"):
        layer(ids, mask, first_position=2)


@pytest.mark.parametrize(("name", "act"), [("bert", torch.tanh), ("deberta", torch.nn.functional.gelu)])
def test_pooler_reads_the_first_token(name, act):
    model = tiny(name).eval()
    h = torch.randn(B, T, 12)
    expected = act(h[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(model.pool(h, torch.ones(B, T, dtype=torch.bool)), expected)


def test_pooler_drops_before_the_dense_layer():
    """f = act(W dropout(h_[CLS]) + b), with the mask of the same seed."""
    torch.manual_seed(0)
    pooler, h = Pooler(hidden_size=D, act="gelu", dropout=0.5).double().train(), random_input()[0]
    torch.manual_seed(3)
    ours = pooler(h)
    torch.manual_seed(3)
    dropped = Dropout(0.5).train()(h[:, 0])
    assert (dropped == 0).any()
    expected = torch.nn.functional.gelu(dropped @ pooler.dense.weight.T + pooler.dense.bias)
    torch.testing.assert_close(ours, expected)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_python": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name):
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activation(name)(x), expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_activation_raises_with_the_known_names():
    with pytest.raises(ValueError, match=r"unknown activation 'laplace'; known: gelu, gelu_python, .*, relu, tanh"):
        activation("laplace")


def test_checkpointing_reproduces_dropout():
    """The gradients are the same with and without activation checkpointing."""
    layer, (x, mask) = block(dropout=0.3).train(), random_input()
    layer.attention.dropout.p = 0.3
    x.requires_grad_()
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(5)
        y = checkpointed(layer, enabled)(x, mask, prefix=None)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    for stored, recomputed in zip(*gradients, strict=True):
        assert torch.equal(stored, recomputed)


def test_checkpointing_runs_a_layer_twice_and_once_without_gradients():
    layer, (x, mask), calls = block(), random_input(), []
    layer.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    checkpointed(layer, True)(x, mask).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        checkpointed(layer, True)(x, mask)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ENCODERS)
def test_attached_modules_are_registered(name):
    """A class attribute None would hide a registered submodule; `Encoder` sets instance attributes."""
    model = tiny(name)
    assert isinstance(model, Encoder)
    for attribute in ("virtual", "projection", "pretraining"):
        assert getattr(model, attribute) is None
        module = Linear(2, 3)
        setattr(model, attribute, module)
        assert getattr(model, attribute) is module
        assert f"{attribute}.weight" in dict(model.named_parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_embed_is_embed_words_on_the_word_embeddings(name):
    model, (ids, mask) = tiny(name).eval(), token_batch([7, 4])
    words = model.embeddings.word(ids)
    for shift in (0, 3):
        assert torch.equal(model.embed(ids, mask, shift), model.embed_words(words, mask, shift))
    same = torch.equal(model.embed(ids, mask), model.embed(ids, mask, 3))
    assert same == (model.embeddings.position is None)
    position = model.config.pad_token_id + 1 if name in ("roberta", "xlm_roberta") else 0
    expected = model.embeddings.combine(words, mask=mask, first_position=position)
    expected = model.project(expected) if name == "electra" else expected
    assert torch.equal(model.embed(ids, mask), expected)
