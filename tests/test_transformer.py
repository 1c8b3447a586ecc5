import math

import pytest
import torch
from conftest import TINY, tiny, token_batch

from nn.transformer import Transformer, TransformerBlock, TransformerConfig, sinusoids

B, T, D, H, F = 2, 7, 12, 3, 17
MASK = torch.arange(T) < torch.tensor([7, 4])[:, None]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_positions_equal_the_formula(dtype: torch.dtype, error: float):
    table = sinusoids(11, 6, dtype)
    for t in range(11):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=error)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=error)
    with pytest.raises(ValueError, match="even width"):
        sinusoids(3, 5)


def copy_weights(block: TransformerBlock, theirs: torch.nn.TransformerEncoderLayer) -> None:
    """Copies our block's weights into torch's layer."""
    projections = [block.attention.query, block.attention.key, block.attention.value]
    theirs.self_attn.in_proj_weight.data = torch.cat([layer.weight.data for layer in projections])
    theirs.self_attn.in_proj_bias.data = torch.cat([layer.bias.data for layer in projections])
    theirs.self_attn.out_proj.load_state_dict(block.attention.output.state_dict())
    theirs.linear1.load_state_dict(block.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(block.feed_forward.down.state_dict())
    theirs.norm1.load_state_dict(block.attention_norm.state_dict())
    theirs.norm2.load_state_dict(block.feed_forward_norm.state_dict())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_torch_with_copied_weights(pre_norm: bool):
    torch.manual_seed(0)
    block = TransformerBlock(hidden_size=D, num_heads=H, feed_forward_size=F, pre_norm=pre_norm, dropout=0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(
        d_model=D, nhead=H, dim_feedforward=F, dropout=0.0, batch_first=True, norm_first=pre_norm
    ).eval()
    for parameter in block.parameters():
        parameter.data.normal_(0, 0.4)
    copy_weights(block, theirs)
    x = torch.randn(B, T, D, requires_grad=True)
    actual, expected = block(x, MASK)[MASK], theirs(x, src_key_padding_mask=~MASK)[MASK]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(y.square().sum(), x) for y in (actual, expected))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_matrices_start_as_glorot_and_bengio():
    """Weights of a matrix [m, n] are uniform within √(6 / (m + n))."""
    model = Transformer(TransformerConfig(vocab_size=50))
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2 and name != "embeddings.word.weight"}
    assert len(matrices) == 2 + 6 * len(model.layers)
    for name, matrix in matrices.items():
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.95 * bound < matrix.abs().max() <= bound, name


def test_logits_depend_on_the_order_of_words():
    model, (ids, mask) = tiny("transformer").eval(), token_batch([7])
    assert not torch.allclose(model(ids, mask), model(ids.flip(1), mask))


def test_features_are_the_masked_mean_of_the_normalized_states():
    model, (ids, mask) = tiny("transformer", pre_norm=True).eval(), token_batch([7, 4])
    h = model.encode(model.embed(ids, mask), mask)
    torch.testing.assert_close(model.features(ids, mask)[1], h[1, :4].mean(0), rtol=1e-5, atol=1e-6)
    assert model.norm is not None
    assert tiny("transformer", pre_norm=False).norm is None


def test_the_last_state_is_that_of_the_last_word():
    model = tiny("transformer", pooling="last").eval()
    ids, mask = token_batch([5, 3])
    h = model.encode(model.embed(ids, mask), mask)
    torch.testing.assert_close(model.pool(h, mask), torch.stack([h[0, 4], h[1, 2]]))


def test_a_float64_model_has_positions_of_float64():
    model = tiny("transformer").double().eval()
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.encode(
        torch.zeros(1, 3, model.config.embedding_size, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    )
    expected = sinusoids(3, TINY["hidden_size"], torch.float64)
    torch.testing.assert_close(seen[0][0] - seen[0][0][:1], expected - expected[:1], rtol=0, atol=1e-14)
