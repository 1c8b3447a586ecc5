"""Batches: padding, their order, token budgets, the passes of a step, and the cache of token ids."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import required_shape, rows_of, tiny, training_of

import train
from data.batches import Share
from data.corpus import MANY_UNKNOWN, Corpus, build_corpus, examples_of, unknown_share, warn_unknown, write_rows
from data.imdb import as_frame
from data.options import Options
from data.orders import Stream, batches, shuffled_order, sorted_order, step_batches
from data.tokenization import train_tokenizer
from data.windows import Truncation
from losses import OBJECTIVES
from nn import MODELS
from nn.runtime import choose_machine
from peft.classifier import Scorer

LENGTHS = [5, 2, 9, 3, 7, 4, 11, 2, 6, 8, 3]


def corpus() -> Corpus:
    """Returns 11 random examples with alternating labels."""
    stream = np.random.default_rng(0)
    return Corpus.from_rows([stream.integers(1, 61, n).tolist() for n in LENGTHS], [i % 2 for i in range(11)], pad_id=0)


def test_a_batch_is_padded_on_the_right():
    c = corpus()
    batch = c.batch(np.array([0, 2]))
    assert batch.input_ids.shape == (2, 9)
    assert batch.mask.sum(1).tolist() == [5, 9]
    assert batch.input_ids[0, 5:].tolist() == [0] * 4
    assert batch.input_ids[1].tolist() == rows_of(c)[2]
    assert batch.labels.tolist() == [0, 0]
    assert batch.rows.tolist() == [0, 2]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_an_epoch_contains_every_example_once(size: int):
    lengths = np.array(LENGTHS * 40)
    order = shuffled_order(lengths, batch_size=size, seed=1, epoch=2)
    assert sorted(np.concatenate(order)) == list(range(len(lengths)))
    assert max(map(len, order)) <= size


def test_order_is_a_pure_function_of_seed_and_epoch():
    lengths = np.array(LENGTHS * 40)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(shuffled_order(lengths, batch_size=4, seed=seed, epoch=epoch)).tolist()

    state = torch.get_rng_state()
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used


def test_batches_are_not_in_the_order_of_their_lengths():
    """Within a bucket, the longest review of the next batch is longer about half the time."""
    lengths = np.random.default_rng(0).integers(1, 200, 160)
    longest = [lengths[rows].max() for rows in shuffled_order(lengths, batch_size=4, seed=1, epoch=0)]
    assert 0.3 < np.mean(np.diff(longest) > 0) < 0.7


def test_length_buckets_leave_little_padding():
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 4000).astype(int) + 3
    order = shuffled_order(lengths, batch_size=16, seed=0, epoch=0)
    positions = sum(len(rows) * lengths[rows].max() for rows in order)
    assert positions < 1.08 * lengths.sum()


def test_sorted_order_is_longest_first_within_a_token_budget():
    lengths = np.array(LENGTHS)
    order = sorted_order(lengths, max_tokens=20)
    assert sorted(np.concatenate(order)) == list(range(11))
    assert all(len(rows) * lengths[rows].max() <= 20 or len(rows) == 1 for rows in order)
    assert lengths[order[0]].max() == 11


def test_examples_without_tokens_are_a_batch_too():
    assert [rows.tolist() for rows in sorted_order(np.array([0, 2, 0]), max_tokens=4)] == [[1, 0], [2]]


def test_an_example_that_is_longer_than_the_budget_is_scored_alone():
    assert [rows.tolist() for rows in sorted_order(np.array([5, 30, 4, 21]), max_tokens=20)] == [[1], [3], [0, 2]]


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_bucketing_do_not_change_logits(name: str):
    c, model = corpus(), tiny(name).eval()
    single = [c.batch(np.array([i])) for i in range(len(c))]
    expected = torch.cat([model(batch.input_ids, batch.mask) for batch in single])
    orders = (shuffled_order(c.lengths, batch_size=4, seed=0, epoch=0), sorted_order(c.lengths, max_tokens=20))
    for order in orders:
        for batch in batches(c, order=order, device=torch.device("cpu")):
            torch.testing.assert_close(model(batch.input_ids, batch.mask), expected[batch.rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_ids_at_padded_positions_do_not_change_logits(name: str):
    model, batch = tiny(name).eval(), corpus().batch(np.array([0, 2]))
    noise = torch.where(batch.mask, batch.input_ids, torch.randint(1, 61, batch.input_ids.shape))
    torch.testing.assert_close(model(noise, batch.mask), model(batch.input_ids, batch.mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_fully_padded_row_gives_finite_logits_and_gradients(name: str):
    model, batch = tiny(name), corpus().batch(np.array([0, 2]))
    batch.mask[0] = False
    logits = model(batch.input_ids, batch.mask)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_cached_corpus_is_memory_mapped_and_equal(tmp_path: Path):
    c = corpus()
    for made in (lambda: rows_of(c), lambda: pytest.fail("called twice")):
        again = Corpus.cached(tmp_path / "ids.npy", make=made, labels=c.labels, pad_id=0)
        assert isinstance(again.ids, np.memmap)
        assert again.ids.tolist() == c.ids.tolist()
        assert again.offsets.tolist() == c.offsets.tolist()
    batch = again.batch(np.array([0, 2]))
    assert torch.equal(batch.input_ids, c.batch(np.array([0, 2])).input_ids)


def test_a_cache_file_is_the_array_that_numpy_saves(tmp_path: Path):
    rows = [[3, 14, 15], [], [9], [26, 2**31 - 1]]
    expected = np.concatenate([[len(rows)], [len(row) for row in rows], *rows]).astype(np.int32)
    for made in (rows, []):
        write_rows(tmp_path / "rows.npy", iter(made))
        np.save(tmp_path / "plain.npy", expected if made else np.zeros(1, np.int32))
        assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_the_name_of_a_cache_file_depends_on_all_reviews(tmp_path: Path):
    frame = as_frame([("a", "good film", 1), ("b", "bad \ud800", 0), ("c", "", 0)])
    tokenizer = train_tokenizer("wordlevel", ["good bad film"], 100)
    build_corpus(tokenizer, frame, max_length=9, truncate="head", cache=tmp_path)
    text = f"{tokenizer.fingerprint} 9 head " + "".join(f"{len(review)} {review}" for review in frame["review"])
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    assert [path.name for path in tmp_path.glob("*.npy")] == [f"{key}.npy"]


def test_a_cache_file_depends_on_the_ends_of_the_reviews(tmp_path: Path):
    tokenizer = train_tokenizer("wordlevel", ["good bad film"], 100)
    for texts in (["a\0b", "c"], ["a", "b\0c"], ["a", "b", "c"], ["a2 b", "c"], ["a", "b2 c"]):
        build_corpus(tokenizer, as_frame([("x", text, 0) for text in texts]), 8, "head", tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 5


def test_texts_in_another_script_are_warned_of(capsys: pytest.CaptureFixture[str]):
    tokenizer = train_tokenizer("wordpiece", ["good bad film"], 100)
    for texts, share in ((["good film"], 0), (["หนังดีมาก"], 1), (["good film", "ดี", "film"], 1 / 4)):
        corpus = build_corpus(tokenizer, as_frame([("x", text, 0) for text in texts]), 8, "head", None)
        assert unknown_share(tokenizer, corpus) == share
        warn_unknown(tokenizer, corpus, "; x")
        warned = f"warning: {share:.0%} of the tokens of these texts are unknown to the tokenizer; x\n"
        assert capsys.readouterr().out == (warned if share > MANY_UNKNOWN else "")
    assert unknown_share(tokenizer, Corpus.from_rows([], [], pad_id=0)) == 0


def test_an_empty_review_is_not_an_unknown_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    tokenizer = train_tokenizer("wordlevel", ["good bad film"], 100)
    frame = as_frame([("x", text, 0) for text in ("", "good film", "", "", "ดี film")])
    for truncation in (Truncation(8), Truncation(8, "windows")):
        corpus = examples_of(tokenizer, frame, truncation, None)
        assert unknown_share(tokenizer, corpus) == 4 / 7
        assert unknown_share(tokenizer, corpus, (frame["review"] != "").to_numpy()) == 1 / 4
        for sample, share in ((0, 0), (1, 0), (3, 0), (6, 1 / 3), (7, 1 / 4)):
            with monkeypatch.context() as patch:
                patch.setattr("data.corpus.SAMPLE", sample)
                assert unknown_share(tokenizer, corpus, (frame["review"] != "").to_numpy()) == share
    model = tiny("gru", vocab_size=tokenizer.backend.get_vocab_size())
    Scorer(model, tokenizer, choose_machine("cpu", "fp32"), Truncation(8)).score_frame(frame[frame["review"] == ""])
    assert "unknown" not in capsys.readouterr().out


def test_no_examples_are_no_batches():
    for tokens in (0, 99):
        assert shuffled_order(np.zeros(0, np.int64), 4, seed=1, epoch=0, tokens_per_batch=tokens) == []


def test_batches_by_token_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    lengths[7] = 999  # more than the budget: a batch of its own
    order = shuffled_order(lengths, batch_size=16, seed=1, epoch=0, tokens_per_batch=256)
    assert sorted(np.concatenate(order).tolist()) == list(range(500))
    positions = [len(rows) * lengths[rows].max() for rows in order if 7 not in rows]
    assert max(positions) <= 256
    assert np.mean(positions) > 0.8 * 256
    again = shuffled_order(lengths, batch_size=16, seed=1, epoch=0, tokens_per_batch=256)
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))
    other = shuffled_order(lengths, batch_size=16, seed=1, epoch=1, tokens_per_batch=256)
    assert not np.array_equal(order[0], other[0])


@pytest.mark.parametrize("size", [{"batch_size": 7}, {"tokens_per_batch": 64}])
def test_the_steps_of_each_epoch_are_those_of_its_order(size: dict[str, int]):
    texts = one_token_rows(np.random.default_rng(0).integers(1, 60, 300))
    options = Options(epochs=5, accumulation=2, **size)
    expected = [math.ceil(len(train.epoch_order(texts, options, epoch)) / 2) for epoch in range(5)]
    assert train.steps_of_epochs(texts, options) == expected
    assert (len(set(expected)) > 1) == ("tokens_per_batch" in size)


def test_many_epochs_need_one_order(monkeypatch: pytest.MonkeyPatch):
    computed = []
    monkeypatch.setattr(train, "shuffled_order", lambda *arguments: computed.append(arguments) or [[0]] * 5)
    assert train.steps_of_epochs(corpus(), Options(epochs=100_000)) == [5] * 100_000
    assert len(computed) == 1


def one_token_rows(lengths: Iterable[int]) -> Corpus:
    """Returns examples of the given lengths with alternating labels. All tokens of an example have the same id."""
    rows = [[number + 1] * length for number, length in enumerate(lengths)]
    return Corpus.from_rows(rows, labels=[number % 2 for number in range(len(rows))], pad_id=0)


def step_gradients(num_splits: int) -> list[torch.Tensor]:
    """Returns the gradients of a step of two micro-batches (7 and 6 examples), each split into num_splits passes."""
    torch.manual_seed(0)
    corpus = one_token_rows(number % 5 + 2 for number in range(13))
    model = tiny("bert").eval()
    micro_batches = [np.arange(7), np.arange(7, 13)]
    batches = list(step_batches(corpus, stream=None, micro_batches=micro_batches, number=0, num_splits=num_splits))
    assert len(batches) == min(2 * num_splits, 13)
    train.gradient(training_of(model), batches, sum(len(b.labels) for b in batches))
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("num_splits", [2, 13])
def test_split_passes_give_the_gradient_of_the_whole_batch(num_splits: int):
    for a, b in zip(step_gradients(1), step_gradients(num_splits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def split_sizes(micro_batches: list[np.ndarray], num_splits: int, tokens_per_pass: int) -> list[int]:
    """Returns the examples of each pass of a step, for a corpus of 20 examples with 1 to 20 tokens."""
    batches = step_batches(
        one_token_rows(range(1, 21)),
        stream=None,
        micro_batches=micro_batches,
        number=0,
        num_splits=num_splits,
        tokens_per_pass=tokens_per_pass,
    )
    return [len(batch.labels) for batch in batches]


def test_passes_are_split_by_tokens():
    """Their number is 1 or even, unless there are too few examples."""
    halves = [np.arange(10), np.arange(10, 20)]
    assert split_sizes(halves, num_splits=1, tokens_per_pass=40) == [3, 3, 2, 2, 2, 2, 2, 2, 1, 1]
    assert split_sizes(halves[:1], num_splits=1, tokens_per_pass=100) == [10]
    assert split_sizes([np.arange(18, 20)], num_splits=1, tokens_per_pass=5) == [1, 1]
    assert split_sizes([np.arange(17, 20)], num_splits=1, tokens_per_pass=5) == [1, 1, 1]
    assert len(split_sizes([np.arange(20)], num_splits=4, tokens_per_pass=200)) == 4


def test_each_micro_batch_has_the_next_unlabelled_batch_in_an_order_of_its_own():
    """Two steps of two micro-batches, each in two passes."""
    corpus = one_token_rows(range(1, 21))
    stream, micro_batches = Stream(corpus, batch_size=3, seed=5), [np.arange(4), np.arange(4, 8)]
    found = [
        batch.unlabelled.rows.tolist()
        for number in (0, 2)
        for batch in step_batches(corpus, stream, micro_batches, number=number, num_splits=2)
    ]
    assert found == [stream.batch(number).rows.tolist() for number in (0, 0, 1, 1, 2, 2, 3, 3)]
    labelled = shuffled_order(corpus.lengths, batch_size=3, seed=5, epoch=0)
    assert found[::2] != [rows.tolist() for rows in labelled[:4]]


def test_an_epoch_of_a_stream_has_every_example_and_a_batch_depends_on_its_number_alone():
    corpus = one_token_rows(range(1, 21))
    stream = Stream(corpus, batch_size=3, seed=5)
    rows = [stream.batch(number).rows for number in range(14)]
    for epoch in (rows[:7], rows[7:]):
        assert sorted(np.concatenate(epoch)) == list(range(20))
    assert not np.array_equal(np.concatenate(rows[:7]), np.concatenate(rows[7:]))
    assert np.array_equal(stream.batch(2).rows, rows[2])  # of the epoch before


def test_the_batches_of_an_order_are_on_the_device():
    assert all(batch.input_ids.is_meta for batch in batches(corpus(), [np.array([0, 1])], torch.device("meta")))


@pytest.mark.parametrize("loss", [name for name, entry in OBJECTIVES.items() if entry.additive])
def test_an_additive_loss_is_the_mean_over_the_splits_of_a_batch(loss: str):
    corpus = replace(one_token_rows([6] * 8), teacher=np.linspace(-2, 2, 16, dtype=np.float32).reshape(8, 2))
    torch.manual_seed(0)
    shape = required_shape(loss)
    model = tiny("capsule_lstm" if shape else "bert", **shape).eval()
    entry = OBJECTIVES[loss]
    whole, *halves = (
        entry.objective(model, corpus.batch(rows), entry.options())[0]
        for rows in (np.arange(8), np.arange(4), np.arange(4, 8))
    )
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_a_budget_below_every_length_makes_batches_of_one():
    """Also if a bucket of such a budget has less than one example of average length."""
    for tokens in (1, 20):
        order = shuffled_order(np.full(7, 99), batch_size=4, seed=1, epoch=0, tokens_per_batch=tokens)
        assert sorted(rows.tolist() for rows in order) == [[row] for row in range(7)]


def test_examples_of_one_length_are_scored_in_their_order():
    """The order is then the same on every machine."""
    lengths = np.tile([5, 9], 500)
    rows = np.concatenate(sorted_order(lengths, max_tokens=90))
    assert rows.tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


def test_a_batch_without_a_counted_token_has_a_part_of_zero():
    """With several ranks, masking may choose no token of the whole batch."""
    whole = corpus().batch(np.array([0, 2, 4]))
    own = whole._replace(share=Share(whole, start=1, stop=2, seed=None))
    for counted, part in ((torch.zeros(3, 9), 0.0), (torch.tensor([[1, 1], [1, 0], [0, 0]]), 2.0 / 3)):
        assert own.part_of(torch.tensor(2.0), counted.bool()).item() == pytest.approx(part)


def test_a_rank_has_its_rows_of_the_batch_of_all_ranks():
    whole = corpus().batch(np.array([2, 0, 4]))
    own = corpus().batch(np.array([0]))._replace(share=Share(whole, start=1, stop=2, seed=0))
    assert (own.start, own.counted, own.total) == (1, 1, 3)
    assert torch.equal(own.own(whole.input_ids), own.input_ids)  # without the columns of longer texts
    assert own.generator().initial_seed() == 0


def test_a_rank_without_rows_selects_no_token():
    whole = corpus().batch(np.array([2, 0, 4]))
    none = whole._replace(share=Share(whole, start=2, stop=2, seed=None))
    assert torch.equal(none.share.own(whole.input_ids), whole.input_ids[:1])  # for a pass that adds nothing
    assert not none.own(whole.mask).any()
    assert none.part_of(torch.tensor(2.0), whole.mask) == 0


def test_a_copy_has_all_tensors_on_the_device():
    batch = corpus().batch(np.array([0, 1]))
    batch = batch._replace(class_weights=torch.ones(2), teacher=torch.ones(2, 2), unlabelled=batch)
    copied = batch._replace(share=Share(batch, start=0, stop=2, seed=None)).to(torch.device("meta"))
    for part in (copied, copied.unlabelled, copied.whole, copied.whole.unlabelled):
        assert all(x.is_meta for x in part if isinstance(x, torch.Tensor))
