import numpy as np
import pytest
import torch
from conftest import tiny, wanted_shape

import train
from data.batches import Corpus, batches, shuffled_order, sorted_order, step_batches
from nn import MODELS
from nn.runtime import Machine

LENGTHS = [5, 2, 9, 3, 7, 4, 11, 2, 6, 8, 3]


def corpus() -> Corpus:
    stream = np.random.default_rng(0)
    return Corpus.from_rows([stream.integers(1, 61, n).tolist() for n in LENGTHS], [i % 2 for i in range(11)], pad_id=0)


def test_a_batch_is_padded_on_the_right():
    c = corpus()
    batch = c.batch(np.array([0, 2]))
    assert batch.input_ids.shape == (2, 9)
    assert batch.mask.sum(1).tolist() == [5, 9]
    assert batch.input_ids[0, 5:].tolist() == [0] * 4
    assert batch.input_ids[1].tolist() == c.ids[c.offsets[2] : c.offsets[3]].tolist()
    assert batch.labels.tolist() == [0, 0]
    assert batch.rows.tolist() == [0, 2]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_every_example_once_an_epoch(size):
    lengths = np.array(LENGTHS * 40)
    order = shuffled_order(lengths, size, seed=1, epoch=2)
    assert sorted(np.concatenate(order)) == list(range(len(lengths)))
    assert max(map(len, order)) <= size


def test_order_is_a_function_of_seed_and_epoch():
    lengths = np.array(LENGTHS * 40)

    def order(seed, epoch):
        return np.concatenate(shuffled_order(lengths, 4, seed, epoch)).tolist()

    state = torch.get_rng_state()
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert torch.equal(torch.get_rng_state(), state)  # no other stream is touched


def test_buckets_leave_little_padding():
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 4000).astype(int) + 3
    places = sum(len(rows) * lengths[rows].max() for rows in shuffled_order(lengths, 16, 0, 0))
    assert places < 1.08 * lengths.sum()


def test_scoring_order_is_longest_first_within_a_token_budget():
    lengths = np.array(LENGTHS)
    order = sorted_order(lengths, tokens=20)
    assert sorted(np.concatenate(order)) == list(range(11))
    assert all(len(rows) * lengths[rows].max() <= 20 or len(rows) == 1 for rows in order)
    assert lengths[order[0]].max() == 11


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_bucketing_never_change_a_logit(name):
    c, model = corpus(), tiny(name).eval()
    alone = torch.stack([model(*c.batch(np.array([i]))[:2])[0] for i in range(len(c))])
    for order in (shuffled_order(c.lengths, 4, 0, 0), sorted_order(c.lengths, 20)):
        for batch in batches(c, order, torch.device("cpu")):
            torch.testing.assert_close(model(batch.input_ids, batch.mask), alone[batch.rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_in_the_padding_does_not_matter(name):
    model, batch = tiny(name).eval(), corpus().batch(np.array([0, 2]))
    noise = torch.where(batch.mask, batch.input_ids, torch.randint(1, 61, batch.input_ids.shape))
    torch.testing.assert_close(model(noise, batch.mask), model(batch.input_ids, batch.mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_fully_padded_row_stays_finite(name):
    model, batch = tiny(name), corpus().batch(np.array([0, 2]))
    batch.mask[0] = False
    logits = model(batch.input_ids, batch.mask)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_cached_corpus_is_mapped_and_equal(tmp_path):
    c = corpus()
    rows = [c.ids[c.offsets[i] : c.offsets[i + 1]].tolist() for i in range(len(c))]
    for made in (lambda: rows, lambda: pytest.fail("made twice")):
        again = Corpus.cached(tmp_path / "ids.npy", made, c.labels, 0)
        assert isinstance(again.ids, np.memmap)
        assert again.ids.tolist() == c.ids.tolist()
        assert again.offsets.tolist() == c.offsets.tolist()
    batch = again.batch(np.array([0, 2]))
    assert torch.equal(batch.input_ids, c.batch(np.array([0, 2])).input_ids)


def test_batches_by_token_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    lengths[7] = 999  # more than the budget: a batch of its own
    order = shuffled_order(lengths, 16, seed=1, epoch=0, tokens=256)
    assert sorted(np.concatenate(order).tolist()) == list(range(500))
    places = [len(rows) * lengths[rows].max() for rows in order if 7 not in rows]
    assert max(places) <= 256
    assert np.mean(places) > 0.8 * 256
    again = shuffled_order(lengths, 16, seed=1, epoch=0, tokens=256)
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))
    assert not np.array_equal(order[0], shuffled_order(lengths, 16, seed=1, epoch=1, tokens=256)[0])


def test_pieces_give_the_gradient_of_the_whole():
    torch.manual_seed(0)
    corpus = Corpus.from_rows([[k + 1] * (k % 5 + 2) for k in range(13)], [k % 2 for k in range(13)], 0)
    machine, options = Machine(torch.device("cpu"), torch.float32), train.Options()
    gradients = []
    for pieces in (1, 2, 13):
        model = tiny("bert").eval()
        batches = list(step_batches(corpus, None, [np.arange(7), np.arange(7, 13)], 0, pieces))
        assert len(batches) == min(2 * pieces, 13)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        train.gradient(model, train.OBJECTIVES["ce"].objective, batches, scaler, machine, options)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_passes_have_no_more_places_than_asked_for():
    corpus = Corpus.from_rows([[1] * (k + 1) for k in range(20)], [0] * 20, 0)
    batches = list(step_batches(corpus, None, [np.arange(10), np.arange(10, 20)], 0, 1, 40))
    assert [len(batch.labels) for batch in batches] == [4, 3, 3, 2, 2, 2, 2, 2]
    assert [len(batch.labels) for batch in step_batches(corpus, None, [np.arange(18, 20)], 0, 1, 5)] == [1, 1]
    assert len(list(step_batches(corpus, None, [np.arange(20)], 0, 4, 200))) == 4


@pytest.mark.parametrize("loss", [name for name, entry in train.OBJECTIVES.items() if entry.additive])
def test_an_additive_loss_of_a_batch_is_the_mean_of_its_parts(loss):
    corpus = Corpus.from_rows([[k + 1] * 6 for k in range(8)], [k % 2 for k in range(8)], 0)
    torch.manual_seed(0)
    shape = wanted_shape(loss)
    model = tiny("capsule_lstm" if shape else "bert", **shape).eval()
    whole, *parts = (
        train.OBJECTIVES[loss].objective(model, corpus.batch(rows), train.Options())[0]
        for rows in (np.arange(8), np.arange(4), np.arange(4, 8))
    )
    torch.testing.assert_close(whole, sum(parts) / 2)
