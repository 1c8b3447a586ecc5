"""nn/nb_linear.py against dense matrices, and against scikit-learn's solver."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.corpus import Corpus
from nn import nb_linear
from nn.checkpoint import load_pretrained, save_pretrained
from nn.nb_linear import NBLinear, NBLinearConfig, count_ngrams, first_occurrences, log_count_ratios, ngram_keys

V, C = 11, 3
GOLDEN = (
    [
        0.51760637,
        0.22555758,
        0.03087744,
        0.03183372,
        0.00123225,
        0.27529866,
        0.51760637,
        0.03087744,
        0.6631476,
        0.08816741,
        0.1695079,
        0.31313622,
        0.27529866,
        0.51760637,
        0.6631476,
        0.6631476,
        0.1695079,
        0.6631476,
        0.31313622,
        0.27529866,
    ],
    0.86687077,
)  # weights and intercept of LogisticRegression, see test_the_optimum_is_that_of_scikit_learn
REVIEWS = [[2, 3, 4, 2, 3], [5, 2, 3], [4], [3, 4, 2, 3, 4, 5], [2, 3], [7, 4, 2], [1, 1, 1, 1]]
LABELS = [0, 1, 2, 0, 1, 2, 0]


def corpus(labels: list[int] = LABELS) -> Corpus:
    return Corpus.from_rows(REVIEWS, labels, pad_id=0)


def ngrams(ids: list[int]) -> list[tuple[int, ...]]:
    """Lists the n-grams of a review, with repetitions."""
    return [tuple(ids[i : i + n]) for n in (1, 2, 3) for i in range(len(ids) - n + 1)]


def key(ngram: tuple[int, ...]) -> int:
    value = 0
    for word in ngram:
        value = value * V + word
    return value


def fitted(labels: list[int] = LABELS, min_reviews: int = 1) -> NBLinear:
    """Returns a model with random weights over the n-grams of REVIEWS."""
    classes = tuple("abc"[: max(labels) + 1])
    model = NBLinear(NBLinearConfig(vocab_size=V, labels=classes, min_reviews=min_reviews))
    model.fit(corpus(labels))
    torch.manual_seed(0)
    model.embeddings.word.weight.data.normal_()
    model.classifier.bias.data.normal_()
    return model.double().eval()


def dense(model: NBLinear, reviews: list[list[int]]) -> torch.Tensor:
    """Returns f: [B, G], 1 where a review contains an n-gram of the table."""
    rows = [[float(k in {key(g) for g in ngrams(ids)}) for k in model.embeddings.keys.tolist()] for ids in reviews]
    return torch.tensor(rows, dtype=torch.float64)


def test_keys_are_those_of_all_ngrams_and_distinct():
    batch = corpus().batch(np.arange(len(REVIEWS)))
    keys = ngram_keys(batch.input_ids, batch.mask, V)
    for row, ids in zip(keys, REVIEWS, strict=True):
        assert set(row[row >= 0].tolist()) == {key(g) for g in ngrams(ids)}
        assert (row[:, len(ids) :] == -1).all()
    every = [g for ids in REVIEWS for g in ngrams(ids)]
    assert len({key(g) for g in every}) == len(set(every))
    with pytest.raises(ValueError, match="exceed 64 bits; use fewer words"):
        ngram_keys(batch.input_ids, batch.mask, 2_100_000)


def test_ids_outside_the_vocabulary_are_refused_except_at_padding():
    mask = torch.tensor([[True, False]])
    for word in (-1, V):
        with pytest.raises(IndexError, match=f"word ids {min(word, 0)} … {max(word, 0)} are outside 0 … {V - 1}"):
            ngram_keys(torch.tensor([[word, 0]]), mask, V)
        assert ngram_keys(torch.tensor([[V - 1, word]]), mask, V).tolist() == [[[V - 1, -1]] * 3]
    assert ngram_keys(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool), V).shape == (0, 3, 4)


def test_another_padding_id_is_refused():
    with pytest.raises(ValueError, match="pad_token_id = 3 is not supported; supported: 0"):
        NBLinear(NBLinearConfig(vocab_size=V, pad_token_id=3))


def test_first_occurrences():
    keys = torch.tensor([[5, 3, 5, 5, 3], [1, 1, 2, 1, 0]])
    expected = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    assert torch.equal(first_occurrences(keys), expected)


def test_a_table_without_ngrams_is_refused():
    with pytest.raises(ValueError, match="no n-gram is in 99 training reviews; lower --shape min_reviews"):
        fitted(min_reviews=99)
    assert fitted(min_reviews=5).embeddings.keys.tolist() == [2]


@pytest.mark.parametrize("min_reviews", [1, 2])
def test_counts_and_ratios_equal_the_loop(min_reviews):
    keys, counts = count_ngrams(corpus(), V, C, min_reviews)
    sets = [{key(g) for g in ngrams(ids)} for ids in REVIEWS]
    expected = {
        k: [sum(k in s and y == c for s, y in zip(sets, LABELS, strict=True)) for c in range(C)]
        for k in set.union(*sets)
    }
    expected = {k: row for k, row in sorted(expected.items()) if sum(row) >= min_reviews}
    assert keys.tolist() == list(expected)
    assert counts.tolist() == list(expected.values())
    ratios = log_count_ratios(counts)
    table = np.array(list(expected.values()), dtype=np.float64)
    for c in range(C):
        p, q = table[:, c] + 1, table.sum(1) - table[:, c] + 1
        torch.testing.assert_close(
            ratios[:, c].double().numpy(), np.log(p / p.sum()) - np.log(q / q.sum()), rtol=1e-6, atol=1e-6
        )


def test_counts_do_not_depend_on_the_reviews_that_are_read_at_once(monkeypatch):
    expected = count_ngrams(corpus(), V, C, 1)
    for tokens in (1, 4, 9):
        monkeypatch.setattr(nb_linear, "PASS_TOKENS", tokens)
        for found, one in zip(count_ngrams(corpus(), V, C, 1), expected, strict=True):
            assert torch.equal(found, one)


def test_the_windows_of_a_review_count_once():
    whole = corpus()
    cut = [[2, 3, 4], [3, 4, 2], [5, 2], [2, 3], [4], [3, 4, 2, 3], [4, 5], [7, 4, 2], [1, 1, 1, 1]]
    labels = [0, 1, 2, 0, 1, 2]
    review = np.array([0, 0, 1, 1, 2, 3, 3, 4, 5])
    windows = replace(
        whole,
        ids=np.concatenate([np.array(ids, dtype=whole.ids.dtype) for ids in cut]),
        offsets=np.cumsum([0, *map(len, cut)]),
        labels=np.array(labels),
        review=review,
    )
    sets = [set.union(*({key(g) for g in ngrams(cut[row])} for row in np.flatnonzero(review == r))) for r in range(6)]
    keys, counts = count_ngrams(windows, V, C, min_reviews=2)
    expected = {
        k: [sum(k in s and y == c for s, y in zip(sets, labels, strict=True)) for c in range(C)]
        for k in sorted(set.union(*sets))
    }
    expected = {k: row for k, row in expected.items() if sum(row) >= 2}
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected


def test_two_classes_have_opposite_ratios():
    ratios = fitted([0, 1, 1, 0, 1, 1, 0]).embeddings.ratios
    torch.testing.assert_close(ratios[:, 0], -ratios[:, 1])


def test_logits_and_gradients_equal_the_dense_product():
    model = fitted()
    reviews = [*REVIEWS, [9, 9, 2], [8]]  # n-grams that are not in the table
    batch = Corpus.from_rows(reviews, [0] * len(reviews), pad_id=0).batch(np.arange(len(reviews)))
    ours = model(batch.input_ids, batch.mask)
    table, bias = model.embeddings.word.weight, model.classifier.bias
    expected = dense(model, reviews) @ (model.embeddings.ratios * table) + bias  # Eq. (1)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, (table, bias), upstream) for y in (ours, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_each_word_adds_its_part_to_the_logits():
    """x_t is the change of the logits from the first t - 1 words to the first t words."""
    model = fitted()
    ids = torch.tensor([REVIEWS[3]])
    parts = model.embed(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    logits = [model(ids[:, :n], torch.ones_like(ids[:, :n], dtype=torch.bool))[0] for n in range(1, ids.size(1) + 1)]
    steps = [logits[0] - model.classifier.bias, *(after - before for before, after in pairwise(logits))]
    torch.testing.assert_close(parts, torch.stack(steps))


def test_the_logits_of_ngrams_add_up():
    model = fitted()
    ids = torch.tensor(REVIEWS[3])
    spans, parts = model.ngrams(ids)
    logits = model(ids[None], torch.ones_like(ids, dtype=torch.bool)[None])[0]
    torch.testing.assert_close(parts.sum(0) + model.classifier.bias, logits)
    assert sorted(tuple(ids[span.start : span.stop].tolist()) for span in spans) == sorted(set(ngrams(REVIEWS[3])))


def test_the_optimum_is_that_of_scikit_learn():
    """Golden: LogisticRegression(C=2.0, tol=1e-12, max_iter=100000) of scikit-learn 1.9.1 on f ∘ r of class 1.

    At its weights the gradient of our loss plus its L2 term is 0 when both classes share one weight vector, ±v/2.
    """
    labels = [0, 1, 1, 0, 1, 1, 0]
    model = fitted(labels)
    table = model.embeddings.word.weight
    x = (dense(model, REVIEWS) * model.embeddings.ratios[:, 1]).numpy()
    v, b = GOLDEN
    with torch.no_grad():
        table.copy_(torch.tensor(v, dtype=torch.float64)[:, None].expand(-1, 2) / 2)  # ratios have opposite signs
        model.classifier.bias.copy_(torch.tensor([-b / 2, b / 2]))
    batch = corpus(labels).batch(np.arange(len(REVIEWS)))
    logits = model(batch.input_ids, batch.mask)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).detach().numpy(), x @ np.array(v) + b, atol=1e-6)
    loss = (
        2.0 * torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum") + table.sum(1).square().sum() / 2
    )
    gradient = torch.autograd.grad(loss, table)[0].sum(1) / 2
    np.testing.assert_allclose(gradient.numpy(), 0, atol=1e-5)


def test_dropout_leaves_out_words_with_their_ngrams():
    model = fitted().train()
    ids = torch.tensor([REVIEWS[3]] * 2000)
    mask = torch.ones_like(ids, dtype=torch.bool)
    parts = model.embed(ids[:1], mask[:1])[0]  # [T, C]
    torch.manual_seed(0)
    dropped = model(ids, mask) - model.classifier.bias
    torch.manual_seed(0)
    kept = model.dropout(mask.double())  # [2000, T]
    torch.testing.assert_close(dropped, kept @ parts)
    assert 0 < (kept == 0).double().mean() < 0.3


def test_a_checkpoint_keeps_the_table(tmp_path):
    model = fitted().float()
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.embeddings.keys.dtype == torch.int64
    assert not again.embeddings.ratios.requires_grad


def test_a_checkpoint_follows_the_order_of_the_classes(tmp_path):
    model = fitted().float()
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path, labels=("c", "a", "b")).eval()
    batch = corpus().batch(np.arange(len(REVIEWS)))
    expected = model(batch.input_ids, batch.mask)[:, [2, 0, 1]]
    torch.testing.assert_close(again(batch.input_ids, batch.mask), expected)


@pytest.mark.parametrize("damage", [lambda keys: keys.flip(0), lambda keys: keys.float(), lambda keys: keys * 0])
def test_keys_that_binary_search_cannot_find_are_refused(damage, tmp_path):
    save_pretrained(fitted().float(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"embeddings.keys": damage(tensors["embeddings.keys"]).contiguous()}, file)
    with pytest.raises(
        ValueError, match=r"embeddings\.keys does not hold (64-bit integers|numbers in ascending order)"
    ):
        load_pretrained(tmp_path)
