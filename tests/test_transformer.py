import math

import pytest
import torch
from conftest import tiny, token_batch

from nn.transformer import TransformerBlock, sinusoids

B, T, D, H, F = 2, 7, 12, 3, 17
MASK = torch.arange(T) < torch.tensor([7, 4])[:, None]


def test_positions_equal_the_formula():
    found = sinusoids(11, 6)
    for t in range(11):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert found[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    with pytest.raises(ValueError, match="even width"):
        sinusoids(3, 5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_torch_with_copied_weights(pre_norm):
    torch.manual_seed(0)
    ours = TransformerBlock(D, H, F, pre_norm, dropout=0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(D, H, F, 0.0, batch_first=True, norm_first=pre_norm).eval()
    for parameter in ours.parameters():
        parameter.data.normal_(0, 0.4)
    parts = [ours.attention.query, ours.attention.key, ours.attention.value]
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        for mine, other in (
            (ours.attention.output, theirs.self_attn.out_proj),
            (ours.feed_forward.up, theirs.linear1),
            (ours.feed_forward.down, theirs.linear2),
            (ours.attention_norm, theirs.norm1),
            (ours.feed_forward_norm, theirs.norm2),
        ):
            other.load_state_dict(mine.state_dict())
    x = torch.randn(B, T, D, requires_grad=True)
    y = ours(x, MASK)
    z = theirs(x, src_key_padding_mask=~MASK)
    torch.testing.assert_close(y[MASK], z[MASK], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        *(torch.autograd.grad(out[MASK].square().sum(), x)[0] for out in (y, z)), rtol=1e-4, atol=1e-4
    )


def test_order_of_words_counts():
    model, (ids, mask) = tiny("transformer").eval(), token_batch([7])
    assert not torch.allclose(model(ids, mask), model(ids.flip(1), mask))


def test_features_are_the_masked_mean_of_the_normed_states():
    model, (ids, mask) = tiny("transformer", pre_norm=True).eval(), token_batch([7, 4])
    h = model.encode(model.embed(ids, mask), mask)
    torch.testing.assert_close(model.features(ids, mask)[1], h[1, :4].mean(0), rtol=1e-5, atol=1e-6)
    assert model.norm is not None
    assert tiny("transformer", pre_norm=False).norm is None
