import pytest
import reference
import torch
from conftest import tiny, token_batch

from nn.attention import MultiHeadAttention
from nn.encoder import Embeddings, EncoderBlock, FeedForward, Pooler, activation, run_layer

B, T, D, F = 2, 5, 6, 13


def test_layer_norm_is_the_equation_over_the_last_axis():
    norm = torch.nn.LayerNorm(D, eps=1e-7).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(B, T, D, dtype=torch.float64)
    torch.testing.assert_close(norm(x), reference.layer_norm(x, norm.weight, norm.bias, 1e-7))


def test_block_is_post_norm():
    """a = LN(x + attention(x)), y = LN(a + ffn(a)): the norm comes after each residual sum."""
    torch.manual_seed(0)
    block = EncoderBlock(MultiHeadAttention(D, 2), D, F, "gelu", 1e-5, 0.0).double().eval()
    x, mask = torch.randn(B, T, D, dtype=torch.float64), torch.ones(B, T, dtype=torch.bool)
    n1, n2, ff = block.attention_norm, block.feed_forward_norm, block.feed_forward
    a = reference.layer_norm(x + block.attention(x, mask), n1.weight, n1.bias, 1e-5)
    y = reference.layer_norm(a + ff(a), n2.weight, n2.bias, 1e-5)
    torch.testing.assert_close(block(x, mask), y)


def test_block_equals_torch_encoder_layer():
    torch.manual_seed(0)
    block = EncoderBlock(MultiHeadAttention(D, 2), D, F, "relu", 1e-5, 0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(D, 2, F, 0.0, batch_first=True).train()  # eval() takes a fused path
    a, parts = block.attention, theirs.self_attn
    ff = block.feed_forward
    pairs = [(parts.out_proj, a.output), (theirs.linear1, ff.up), (theirs.linear2, ff.down)]
    with torch.no_grad():
        parts.in_proj_weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]))
        parts.in_proj_bias.copy_(torch.cat([a.query.bias, a.key.bias, a.value.bias]))
        for there, here in pairs:
            there.load_state_dict(here.state_dict())
    x, mask = torch.randn(B, T, D), torch.arange(T) < torch.tensor([T, 3])[:, None]
    torch.testing.assert_close(block(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask], rtol=1e-5, atol=1e-6)


def test_feed_forward_is_the_equation():
    ff = FeedForward(D, F, "gelu").double()
    x = torch.randn(B, T, D, dtype=torch.float64)
    hidden = x @ ff.up.weight.T + ff.up.bias
    exact = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(ff(x), exact @ ff.down.weight.T + ff.down.bias)


def test_embeddings_add_word_type_and_position_before_the_norm():
    torch.manual_seed(0)
    layer = Embeddings(11, D, 7, 2, 0, 1e-12, 0.0, embedding_size=4).double().eval()
    ids, mask = token_batch([T, 3], vocab=11)
    e = layer.word.weight[ids] + layer.token_type.weight[0] + layer.position.weight[torch.arange(T)]
    expected = reference.layer_norm(e @ layer.project.weight.T, layer.norm.weight, layer.norm.bias, 1e-12)
    torch.testing.assert_close(layer(ids, mask), expected * mask[..., None])


def test_too_long_for_the_positions():
    layer = Embeddings(11, D, 7, 0, 0, 1e-12, 0.0)
    ids, mask = token_batch([8], vocab=11)
    with pytest.raises(ValueError, match="8 tokens, but the model has 7 positions"):
        layer(ids, mask)


@pytest.mark.parametrize(("name", "act"), [("bert", torch.tanh), ("deberta", torch.nn.functional.gelu)])
def test_pooler_reads_the_first_token(name, act):
    model = tiny(name).eval()
    h = torch.randn(B, T, 12)
    expected = act(h[:, 0] @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(model.pool(h, torch.ones(B, T, dtype=torch.bool)), expected)


def test_pooler_drops_before_the_dense_layer():
    pooler = Pooler(D, "gelu", 0.5).train()
    assert not torch.equal(pooler(torch.ones(B, T, D)), pooler(torch.ones(B, T, D)))


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown activation 'swish'; known: gelu"):
        activation("swish")


def test_checkpointing_replays_dropout():
    """Same seed, same gradient, with and without recomputing."""
    block = EncoderBlock(MultiHeadAttention(D, 2, 0.3), D, F, "gelu", 1e-5, 0.3).train()
    x, mask = torch.randn(B, T, D, requires_grad=True), torch.ones(B, T, dtype=torch.bool)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(5)
        y = run_layer(block, checkpointing, x, mask, None)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *block.parameters()]))
    for plain, replayed in zip(*gradients, strict=True):
        assert torch.equal(plain, replayed)
