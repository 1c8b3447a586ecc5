"""Language modelling of networks over words: adaptive softmax, the loss, what each direction reads, runs."""

import json

import pytest
import reference
import torch
from conftest import fail_at, tiny, token_batch
from safetensors.torch import load_file
from torch.nn import AdaptiveLogSoftmaxWithLoss

import train
from data.batches import Batch
from data.errors import Stopped
from losses.lm import LMOptions, objective, prepare
from losses.mixed import MixedOptions, Reviews, virtual_perturbation
from nn.adaptive_softmax import AdaptiveSoftmax
from nn.checkpoint import load_pretrained, save_pretrained

RECURRENT = ["lstm", "gru", "attention_lstm", "capsule_lstm", "cnn_lstm"]
V, LENGTHS = 61, [13, 11, 1, 2]
recurrent = pytest.mark.parametrize("name", RECURRENT)
directions = pytest.mark.parametrize("bidirectional", [True, False], ids=["two directions", "one direction"])


def softmax(width: int = 17, cutoffs: tuple[int, ...] = (7, 23)) -> AdaptiveSoftmax:
    torch.manual_seed(0)
    return AdaptiveSoftmax(width=width, vocab_size=V, cutoffs=list(cutoffs)).double()


def prepared(name: str, **changes):
    model = tiny(name, num_layers=1, **changes).double().eval()
    prepare(model, LMOptions(cutoffs="7,23"), None)
    model.pretraining.double()
    ids, mask = token_batch(LENGTHS)
    return model, Batch(ids, mask, torch.full((4,), -1), torch.arange(4))


# ------------------------------------------------------------------------------------------------ adaptive softmax


@pytest.mark.parametrize("cutoffs", [(7, 23), (7, 23, 40), (7, 100), (61,)], ids=str)
def test_the_adaptive_softmax_equals_its_dense_form_with_gradients(cutoffs):
    layer, h = softmax(cutoffs=cutoffs), torch.randn(2 * V, 17, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(V).repeat(2)
    log_p = layer.log_probabilities(h)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2 * V, dtype=torch.float64))
    expected = -log_p.gather(1, targets[:, None]).squeeze(1)
    loss, correct = layer(h, targets)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(correct, layer.head(h)[:, : layer.ends[0]].argmax(1) == targets)
    inputs, upstream = [h, *layer.parameters()], torch.randn_like(loss)
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, upstream) for y in (loss, expected)))


def test_the_adaptive_softmax_equals_torch():
    layer, theirs = softmax(), AdaptiveLogSoftmaxWithLoss(17, V, [7, 23]).double()
    theirs.head.weight.data = layer.head.weight.data
    for ours, tail in zip(layer.tails, theirs.tail, strict=True):
        tail[0].weight.data, tail[1].weight.data = ours[0].weight.data, ours[1].weight.data
    h, targets = torch.randn(V, 17, dtype=torch.float64), torch.arange(V)
    torch.testing.assert_close(layer(h, targets)[0], -theirs(h, targets).output)
    torch.testing.assert_close(layer.log_probabilities(h), theirs.log_prob(h))


@pytest.mark.parametrize("cutoffs", [[], [0, 3], [5, 3], [3, 3]], ids=str)
def test_cutoffs_that_are_not_ascending_are_refused(cutoffs):
    with pytest.raises(ValueError, match="ascending order"):
        AdaptiveSoftmax(width=5, vocab_size=V, cutoffs=cutoffs)
    with pytest.raises(ValueError, match="are not numbers"):
        LMOptions(cutoffs="2000,many")


# -------------------------------------------------------------------------------------------------------- the loss


@directions
@pytest.mark.parametrize("name", ["lstm", "gru", "attention_lstm", "capsule_lstm"])
def test_the_loss_equals_the_loop_over_words_with_gradients(name, bidirectional):
    model, batch = prepared(name, bidirectional=bidirectional)
    h = model.encode(model.embeddings.word(batch.input_ids), batch.mask)
    losses = []
    for number, states in enumerate(h.chunk(1 + bidirectional, -1)):
        layer = model.pretraining.directions[number]
        losses.append(
            reference.language_model_loss(
                states, batch.input_ids, LENGTHS, lambda s, p=layer: p.log_probabilities(s[None])[0], number == 0
            )
        )
    expected, (loss, found) = sum(losses) / len(losses), objective(model, batch, LMOptions())
    torch.testing.assert_close(loss, expected)
    assert len(found["nats"]) == sum(n - 1 for n in LENGTHS)
    inputs = [p for key, p in model.named_parameters() if key.split(".")[0] not in model.HEAD]
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs) for y in (loss, expected)))


@directions
@recurrent
def test_a_word_changes_no_term_that_predicts_it_or_a_word_before_it(name, bidirectional):
    """With one review, terms are in the order of time: forward those before the word stay, backward those after it.

    Of the networks with one state for each word, exactly the terms that read or predict the word change.
    """
    model, _ = prepared(name, bidirectional=bidirectional)
    ids, mask = token_batch([13])
    stride, ahead = model.reading.stride, model.reading.ahead

    def terms(ids):
        return objective(model, Batch(ids, mask, torch.tensor([-1]), torch.tensor([0])), LMOptions())[1]

    before = terms(ids)
    forward = [s * stride + ahead + 1 for s in range(13)]  # the word that each step predicts
    backward = [s * stride - model.reading.behind - 1 for s in range(13) if s * stride < 13]
    forward, backward = [t for t in forward if t < 13], [t for t in backward if t >= 0]
    for word in range(13):
        changed = ids.clone()
        changed[0, word] = changed[0, word] % (V - 1) + 1
        after = terms(changed)
        early = torch.tensor([t < word for t in forward])
        assert torch.equal(before["nats"][early], after["nats"][early])
        own = torch.tensor([t >= word for t in forward])
        assert (before["nats"][own] != after["nats"][own]).all()
        if bidirectional:
            late = torch.tensor([t > word for t in backward])
            assert torch.equal(before["back_nats"][late], after["back_nats"][late])
            assert (before["back_nats"][~late] != after["back_nats"][~late]).all()


@recurrent
def test_padding_never_counts(name):
    model, batch = prepared(name)
    wide_ids, wide_mask = torch.full((4, 19), 17), torch.zeros(4, 19, dtype=torch.bool)
    wide_ids[:, :13], wide_mask[:, :13] = torch.where(batch.mask, batch.input_ids, 29), batch.mask
    loss, found = objective(model, batch, LMOptions())
    wide_loss, wide_found = objective(model, batch._replace(input_ids=wide_ids, mask=wide_mask), LMOptions())
    torch.testing.assert_close(loss, wide_loss)
    for key in found:
        torch.testing.assert_close(found[key], wide_found[key])


def test_a_batch_of_single_words_has_the_loss_0():
    model, _ = prepared("lstm")
    ids, mask = token_batch([1, 1])
    loss, _ = objective(model, Batch(ids, mask, torch.tensor([-1, -1]), torch.arange(2)), LMOptions())
    assert loss == 0
    loss.backward()


@recurrent
def test_every_parameter_but_those_of_the_head_gets_a_gradient(name):
    model, batch = prepared(name)
    objective(model.train(), batch, LMOptions())[0].backward()
    for key, parameter in model.named_parameters():
        if key.split(".")[0] in model.HEAD:
            assert parameter.grad is None, key
        else:
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [("cnn", {}, "not cnn"), ("bert", {}, "not bert"), ("lstm", {"num_layers": 2}, "bidirectional=false")],
)
def test_networks_that_read_what_they_predict_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(tiny(name, **changes), LMOptions(), None)


# ------------------------------------------------------------------------------------------------------------ runs


@recurrent
def test_a_checkpoint_of_a_language_model_lacks_the_head_only(name, tmp_path):
    model, _ = prepared(name)
    save_pretrained(model.float(), tmp_path, heads=False)
    loaded = load_pretrained(tmp_path)
    head = {key for key, _ in model.named_parameters() if key.split(".")[0] in model.HEAD}
    assert loaded.newly_initialized == head
    ours = dict(model.named_parameters())
    for key, parameter in loaded.named_parameters():
        assert key in head or torch.equal(parameter, ours[key]), key
        assert parameter.isfinite().all(), key


RUN = "--model lstm --loss lm --data demo --train-reviews 90 --validation-reviews 20 --epochs 2 --batch-size 32"


def run(folder, *more: str) -> None:
    shape = "hidden_size=12 embedding_size=10 bidirectional=false"
    train.main([*RUN.split(), "--shape", shape, "--runs", str(folder), *more])


def test_a_stopped_run_continues_bit_for_bit_and_a_classifier_starts_from_it(tmp_path, monkeypatch, capsys):
    run(tmp_path, "--name", "whole")
    with monkeypatch.context() as patch:
        fail_at(5, patch, Stopped)
        with pytest.raises(SystemExit):
            run(tmp_path, "--name", "stopped", "--save-minutes", "0")
    train.main(["--resume", str(tmp_path / "stopped")])
    states = [load_file(tmp_path / name / "state/state.safetensors") for name in ("whole", "stopped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    events = map(json.loads, (tmp_path / "whole" / "log.jsonl").read_text().splitlines())
    first, last = (event["val_nats"] for event in events if event["event"] == "epoch")
    assert last < first
    best = tmp_path / "whole" / "best"
    small = f"--data demo --train-reviews 20 --validation-reviews 20 --test-reviews 20 --epochs 1 --runs {tmp_path} --weights {best} --model lstm"
    for name, more in (("fine", ()), ("vat", ("--loss", "adversarial", "--vat-weight", "1", "--normalize-embeddings"))):
        capsys.readouterr()
        train.main([*small.split(), "--name", name, *more])
        assert "newly initialized: classifier.bias, classifier.weight" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- virtual adversarial training


def test_a_perturbation_by_dimension_equals_one_of_normalized_embeddings():
    """Miyato et al. 2017, §3: x = σ x̂ + μ, and the perturbation of x̂ has length ε."""
    torch.manual_seed(0)
    model, (ids, mask) = tiny("lstm").double().eval(), token_batch([7, 5])
    model.embeddings.word.weight.data *= torch.linspace(0.5, 3, 10)
    reviews = Reviews.embed(model, ids, mask, by_dimension=True)
    target = reviews.logits().detach()
    found = virtual_perturbation(reviews, target, 5.0) / reviews.spread()
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.full((2,), 5.0), check_dtype=False)
    torch.manual_seed(0)
    sigma, mu = reviews.spread().double(), reviews.x.detach()[mask].mean(0)
    normalized = (reviews.x.detach() - mu) / sigma

    class Normalized:
        classifier, pool = model.classifier, model.pool

        @staticmethod
        def encode(x, mask):
            return model.encode(x * sigma + mu, mask)

    torch.manual_seed(1)
    plain = virtual_perturbation(reviews._replace(model=Normalized, x=normalized, by_dimension=False), target, 5.0)
    torch.manual_seed(1)
    found = virtual_perturbation(reviews, target, 5.0) / reviews.spread()
    scale = normalized[mask].std()  # 1 up to the correction of the variance
    torch.testing.assert_close(found.double() * scale, plain.double(), rtol=0.02, atol=0.02)
    assert MixedOptions().normalize_embeddings is False
