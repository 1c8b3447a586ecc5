"""Language modelling with recurrent networks, and the adaptive softmax."""

import copy

import pytest
import torch
from conftest import fail_at, same, tiny, token_batch
from safetensors.torch import load_file
from test_pretraining_runs import pretrain

import train
from data.batches import Batch
from losses import OBJECTIVES, lm
from losses.lm import LMOptions
from nn.adaptive_softmax import AdaptiveSoftmax

RECURRENT = ["lstm", "gru", "attention_lstm", "capsule_lstm", "cnn_lstm"]
LENGTHS = [17, 13, 11, 7]
V = 61  # of `token_batch`
FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}


def prepared(name: str, **changes):
    """Returns a tiny network in float64 without dropout, with its softmaxes, and a batch of four texts."""
    model = tiny(name, num_layers=1, vocab_size=V, **changes)
    lm.prepare(model, LMOptions(cutoffs="11,29"), None)
    for parameter in model.pretraining.parameters():
        parameter.data.normal_(0, 0.3)
    ids, mask = token_batch(LENGTHS, V)
    return model.double().eval(), Batch(ids, mask, torch.full((4,), -1), torch.arange(4))


# ----------------------------------------------------------------------------------------------- adaptive softmax


@pytest.mark.parametrize("cutoffs", [[11, 29], [11], [V], [11, 90]])
def test_the_adaptive_softmax_equals_its_dense_form(cutoffs):
    torch.manual_seed(0)
    softmax, h, targets = AdaptiveSoftmax(13, V, cutoffs).double(), torch.randn(19, 13).double(), torch.arange(19) * 3
    loss, correct = softmax(h, targets)
    dense = softmax.log_probabilities(h)  # [19, V]
    torch.testing.assert_close(loss, -dense[torch.arange(19), targets], **FLOAT64)
    torch.testing.assert_close(dense.exp().sum(1), torch.ones(19).double(), **FLOAT64)
    torch.testing.assert_close(correct, dense[:, : cutoffs[0]].argmax(1) == targets)


def test_the_adaptive_softmax_equals_torchs_with_gradients():
    torch.manual_seed(0)
    softmax = AdaptiveSoftmax(16, V, [11, 29]).double()
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, V, [11, 29], div_value=4.0).double()
    theirs.head.weight.data.copy_(softmax.head.weight)
    for ours, other in zip(softmax.tails, theirs.tail, strict=True):
        other[0].weight.data.copy_(ours[0].weight)
        other[1].weight.data.copy_(ours[1].weight)
    h, targets = torch.randn(31, 16).double(), torch.randint(V, (31,))
    softmax(h, targets)[0].mean().backward()
    theirs(h, targets).loss.backward()
    torch.testing.assert_close(softmax(h, targets)[0].mean(), theirs(h, targets).loss, **FLOAT64)
    torch.testing.assert_close(softmax.head.weight.grad, theirs.head.weight.grad, **FLOAT64)
    for ours, other in zip(softmax.tails, theirs.tail, strict=True):
        torch.testing.assert_close(ours[0].weight.grad, other[0].weight.grad, **FLOAT64)
        torch.testing.assert_close(ours[1].weight.grad, other[1].weight.grad, **FLOAT64)


def test_the_adaptive_softmax_of_bf16_scores_is_computed_in_fp32():
    """Small whole numbers have exact products, so that only the sums of the softmax could be rounded."""
    torch.manual_seed(0)
    softmax, targets = AdaptiveSoftmax(13, V, [11, 29]).bfloat16(), torch.arange(19) * 3
    for parameter in softmax.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape).bfloat16()
    h = torch.randint(-1, 2, (19, 13)).bfloat16()
    exact = copy.deepcopy(softmax).float()
    torch.testing.assert_close(softmax(h, targets)[0], exact(h.float(), targets)[0])
    torch.testing.assert_close(softmax.log_probabilities(h), exact.log_probabilities(h.float()))


@pytest.mark.parametrize("cutoffs", [[], [0, 3], [5, 5], [9, 3]])
def test_cutoffs_that_do_not_ascend_raise(cutoffs):
    with pytest.raises(ValueError, match="positive numbers in ascending order"):
        AdaptiveSoftmax(8, V, cutoffs)
    with pytest.raises(ValueError, match="not numbers with commas"):
        LMOptions(cutoffs="many")


# ------------------------------------------------------------------------------------------------------- the loss


def loop_loss(model, ids, mask):
    """Computes the loss word by word from the definition, for networks with one state a word."""
    h, directions = model.encode(model.embeddings.word(ids), mask), model.pretraining.directions
    total = []
    for step, states, softmax in zip((1, -1), h.chunk(len(directions), -1), directions, strict=False):
        losses = [
            -softmax.log_probabilities(states[b, t][None])[0, ids[b, t + step]]
            for b, length in enumerate(LENGTHS)
            for t in range(length)
            if 0 <= t + step < length
        ]
        total.append(sum(losses) / len(losses))
    return sum(total) / len(total)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("name", RECURRENT[:4])
def test_the_loss_equals_the_loop_over_words_with_gradients(name, bidirectional):
    model, batch = prepared(name, bidirectional=bidirectional)
    parameters = [p for key, p in model.named_parameters() if key.split(".")[0] not in model.HEAD]
    loss, found = lm.objective(model, batch, LMOptions())
    expected = loop_loss(model, batch.input_ids, batch.mask)
    torch.testing.assert_close(loss, expected, **FLOAT64)
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, **FLOAT64)
    assert len(found["nats"]) == sum(LENGTHS) - 4  # every word but the first of each text
    assert ("back_nats" in found) == bidirectional
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("name", RECURRENT)
def test_no_state_has_read_the_word_that_it_predicts(name):
    """Another word at position t changes no state that predicts it or is before it in the direction of reading."""
    model, batch = prepared(name)
    ids, mask = batch.input_ids[:1], batch.mask[:1]
    for t in (4, 9, 12):
        other = ids.clone()
        other[0, t] = ids[0, t] % (V - 1) + 1
        pairs = []
        for words in (ids, other):
            h = model.encode(model.embeddings.word(words), mask)
            positions = torch.arange(ids.size(1))[None]  # in place of words, so that each state names its target
            pairs.append(lm.predicted_words(h, positions, mask, model.receptive_field))
        for sign, (states, targets), (changed, _) in zip((1, -1), *pairs, strict=True):
            unread = sign * targets <= sign * t
            assert unread.any()
            assert torch.equal(states[unread], changed[unread])
            assert not torch.equal(states[~unread], changed[~unread]) or not (~unread).any()


@pytest.mark.parametrize("name", RECURRENT)
def test_a_state_has_read_the_word_next_to_the_one_that_it_predicts(name):
    model, batch = prepared(name)
    ids, mask = batch.input_ids[:1], batch.mask[:1]
    x = model.embeddings.word(ids).detach().requires_grad_()
    pairs = lm.predicted_words(model.encode(x, mask), torch.arange(ids.size(1))[None], mask, model.receptive_field)
    for sign, (states, targets) in zip((1, -1), pairs, strict=True):
        gradients = [torch.autograd.grad(h.sum(), x, retain_graph=True)[0][0] for h in states]
        assert any(dx[t - sign].abs().sum() > 0 for dx, t in zip(gradients, targets, strict=True))


@pytest.mark.parametrize("name", RECURRENT)
def test_padding_changes_nothing_and_every_trained_parameter_has_a_gradient(name):
    model, batch = prepared(name)
    loss, _ = lm.objective(model, batch, LMOptions())
    ids, mask = (torch.nn.functional.pad(x, (0, 6)) for x in (batch.input_ids, batch.mask))
    padded, _ = lm.objective(model, Batch(ids, mask, batch.labels, batch.rows), LMOptions())
    torch.testing.assert_close(loss, padded, **FLOAT64)
    loss.backward()
    for key, parameter in model.named_parameters():
        if key.split(".")[0] in model.HEAD:
            assert parameter.grad is None, key
        else:
            assert parameter.grad.abs().sum() > 0, key


def test_training_drops_columns_and_states_but_no_words():
    model, batch = prepared("lstm", word_dropout=0.9, embedding_dropout=0.0, dropout=0.0)
    expected, _ = lm.objective(model, batch, LMOptions())
    assert torch.equal(lm.objective(model.train(), batch, LMOptions())[0], expected)
    for dropout in (model.embeddings.dropout, model.dropout):
        dropout.p = 0.5
        assert not torch.isclose(lm.objective(model, batch, LMOptions())[0], expected)
        dropout.p = 0.0


def test_the_softmaxes_read_dropped_states(monkeypatch):
    model, batch = prepared("lstm", embedding_dropout=0.0, dropout=0.5)
    monkeypatch.setattr(model, "encode", lambda x, mask: torch.ones(*mask.shape, 24, dtype=x.dtype))
    seen = []
    model.pretraining.directions[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lm.objective(model.train(), batch, LMOptions())
    assert seen[0].unique().tolist() == [0, 2]


def test_a_text_of_one_word_predicts_nothing():
    model, batch = prepared("lstm")
    one = Batch(batch.input_ids[:, :1], batch.mask[:, :1], batch.labels, batch.rows)
    loss, found = lm.objective(model, one, LMOptions())
    assert loss == 0
    assert len(found["nats"]) == 0


# ------------------------------------------------------------------------------------------------- runs, messages


@pytest.mark.parametrize("model", ["lstm", "cnn_lstm"])
def test_the_loss_falls_and_a_classifier_starts_from_it(model, tmp_path, capsys):
    (tmp_path / "toy.txt").write_text("\n".join(f"the cat number {n % 7} sat on the mat again" for n in range(200)))
    shape = "--shape hidden_size=8␣embedding_size=8" + ("␣filters=8" if model == "cnn_lstm" else "")
    small = f"{shape} --data {tmp_path / 'toy.txt'} --epochs 3 --batch-size 16 --learning-rate 3e-2"
    epochs = pretrain(tmp_path, "pre", f"--model {model} --loss lm {small} --cutoffs 5,9")
    assert epochs[-1]["val_loss"] < 0.7 * epochs[0]["train_loss"]
    assert {"val_nats", "val_back_nats"} <= epochs[0].keys()
    best = tmp_path / "pre" / "best"
    text = f"--model {model} --data demo --train-reviews 20 --epochs 1 --runs {tmp_path} --name fine --layer-decay 0.5"
    train.main([*text.split(), "--weights", str(best)])
    assert "newly initialized: classifier" in capsys.readouterr().out


def test_a_stopped_run_continues_bit_for_bit(tmp_path, monkeypatch):
    def run(name: str, *more: str) -> None:
        shape = ["--shape", "hidden_size=12 embedding_size=10 bidirectional=false"]
        small = "--model lstm --loss lm --data demo --train-reviews 90 --validation-reviews 20 --epochs 2"
        train.main([*small.split(), *shape, "--batch-size", "32", "--runs", str(tmp_path), "--name", name, *more])

    run("whole")
    with monkeypatch.context() as patch:
        fail_at(5, patch)
        with pytest.raises(SystemExit):
            run("stopped", "--save-minutes", "0")
    train.main(["--resume", str(tmp_path / "stopped")])
    whole, stopped = (load_file(tmp_path / name / "state/state.safetensors") for name in ("whole", "stopped"))
    assert same(whole, stopped)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {}, "pretrains recurrent networks over words, not bert; see --loss mlm"),
        ("cnn", {}, "not cnn"),
        ("nb_linear", {}, "not nb_linear"),
        ("lstm", {"num_layers": 2}, "needs --shape num_layers=1 or bidirectional=false"),
    ],
)
def test_networks_that_would_read_what_they_predict_are_refused(name, changes, message):
    entry = OBJECTIVES["lm"]
    with pytest.raises(ValueError, match=message):
        entry.prepare(tiny(name, **changes), entry.options(), None)


def test_one_direction_may_have_several_layers():
    model = tiny("lstm", num_layers=2, bidirectional=False)
    lm.prepare(model, LMOptions(cutoffs="11, 29"), None)  # spaces after the commas are allowed
    assert [softmax.ends for softmax in model.pretraining.directions] == [[11, 29, V]]
    with pytest.raises(ValueError, match="needs --shape num_layers=1 or bidirectional=false"):
        lm.prepare(tiny("lstm", num_layers=2), LMOptions(cutoffs="11,29"), None)
