import pytest
import torch
from conftest import tiny, token_batch

from nn.words import Pooling, WordEmbedding, last_states, masked_max, masked_mean

B, T, D = 3, 7, 10
LENGTHS = [7, 4, 1]
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def embedding(
    embedding_size: int = 3, word_dropout: float = 0.0, dropout: float = 0.0, pad_id: int = 0
) -> WordEmbedding:
    return WordEmbedding(
        vocab_size=50,
        embedding_size=embedding_size,
        embedding_range=0.5,
        pad_id=pad_id,
        unk_id=1,
        word_dropout=word_dropout,
        dropout=dropout,
    )


def test_poolings_equal_the_loop():
    torch.manual_seed(0)
    h = torch.randn(B, T, D, dtype=torch.float64)
    for b, n in enumerate(LENGTHS):
        real = h[b, :n]
        torch.testing.assert_close(masked_mean(h, MASK)[b], sum(real) / n)
        assert torch.equal(masked_max(h, MASK)[b], torch.stack([max(column) for column in real.T]))
        assert torch.equal(last_states(h, MASK)[b], torch.cat([real[-1, :5], real[0, 5:]]))
        assert torch.equal(last_states(h, MASK, bidirectional=False)[b], real[-1])


def test_several_poolings_are_concatenated():
    h = torch.randn(B, T, D)
    pooling = Pooling("max+mean+last", D)
    assert pooling.width == 3 * D
    expected = torch.cat([masked_max(h, MASK), masked_mean(h, MASK), last_states(h, MASK)], -1)
    assert torch.equal(pooling(h, MASK), expected)
    with pytest.raises(ValueError, match="unknown pooling 'sum'; known: last, mean, max, attention"):
        Pooling("max+sum", D)


def test_embeddings_are_uniform_in_their_range():
    torch.manual_seed(0)
    weight = embedding(embedding_size=100).word.weight
    assert (weight[0] == 0).all()
    assert weight.abs().max() <= 0.5
    assert abs(weight[1:].std() - 0.5 / 3**0.5) < 0.01


def test_word_dropout_has_its_rate_in_training_only():
    torch.manual_seed(0)
    layer = embedding(word_dropout=0.25)
    mask = torch.arange(40).expand(100, 40) < 30
    ids = torch.full((100, 40), 7) * mask
    x = layer.train()(ids, mask)
    dropped = (x == layer.word.weight[1]).all(-1)
    assert abs(dropped[mask].float().mean() - 0.25) < 0.03
    assert (x[~mask] == 0).all()
    assert torch.equal(layer.eval()(ids, mask), layer.word(ids))


def test_embedding_dropout_drops_columns_of_a_review():
    torch.manual_seed(0)
    layer = embedding(embedding_size=200, dropout=0.5).train()
    ids = torch.randint(2, 50, (2, 9))
    dropped = layer(ids, torch.ones_like(ids, dtype=torch.bool)) == 0
    assert torch.equal(dropped.all(1), dropped.any(1))  # a column is 0 at all positions or at none
    assert 0.4 < dropped.float().mean() < 0.6
    assert not torch.equal(dropped[0], dropped[1])


def test_word_dropout_must_be_a_probability():
    with pytest.raises(ValueError, match=r"word_dropout 1\.0 is outside"):
        embedding(word_dropout=1.0)


@pytest.mark.parametrize("name", ["lstm", "gru", "cnn_lstm"])
def test_a_network_of_one_direction_pools_its_last_state(name: str):
    model, (ids, mask) = tiny(name, bidirectional=False, pooling="last", window=1).eval(), token_batch([7, 4])
    h = model.encode(model.embed(ids, mask), mask)
    assert torch.equal(model.pool(h, mask), torch.stack([h[0, 6], h[1, 3]]))


def test_the_row_of_another_padding_id_is_zero_and_has_no_gradient():
    layer = embedding(pad_id=2)
    layer(torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    for table in (layer.word.weight, layer.word.weight.grad):
        assert (table[2] == 0).all()
        assert (table[0] != 0).all()


def test_the_mean_of_bf16_states_is_rounded_once():
    torch.manual_seed(0)
    h, mask = torch.randn(2, 301, 8).bfloat16(), torch.ones(2, 301, dtype=torch.bool)
    assert torch.equal(masked_mean(h, mask), masked_mean(h.float(), mask).bfloat16())
