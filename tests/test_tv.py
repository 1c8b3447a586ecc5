"""Region embeddings, and their pretraining by two views of a text."""

import math

import pytest
import torch
from conftest import tiny, token_batch
from safetensors.torch import load_file
from test_pretraining_runs import pretrain
from torch.nn.functional import logsigmoid, pad

import train
from data.batches import Batch
from data.options import Options
from data.resolve import resolve
from losses import tv
from losses.tv import TVOptions, draw_words, prepare
from nn.cnn import CNN, CNNConfig
from nn.optim import parameter_groups
from nn.regions import RegionEmbedding
from train import TABLES

LENGTHS = [17, 13, 4, 1]
V, D, RADIUS, FIRST = 61, 5, 1, 7
FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}
OPTIONS = TVOptions(skipped_words=FIRST, negatives=9, negative_weight=3.0)


def loop_region(ids, weight, bias, t: int, radius: int):
    """Computes u_t of one text. ids: [T];  weight: [V, D] -> [D]"""
    words = range(max(0, t - radius), min(len(ids), t + radius + 1))
    return torch.stack([weight[ids[j]] for j in words]).sum(0).add(bias).relu()


def prepared(**changes) -> tuple[CNN, Batch]:
    """Returns a CNN in float64 without dropout, prepared for the objective, and a batch of four texts."""
    model = tiny("cnn", vocab_size=V, region_width=D, region_radius=RADIUS, **changes)
    tv.prepare(model, OPTIONS, None)
    for parameter in (*model.regions.parameters(), *model.pretraining.parameters()):
        parameter.data.normal_(0, 0.5)
    model.regions.word.weight.data[0] = 0  # of padding
    ids, mask = token_batch(LENGTHS, V)
    return model.double().eval(), Batch(ids, mask, torch.full((4,), -1), torch.arange(4))


def test_region_embeddings_equal_the_loop_over_words():
    torch.manual_seed(0)
    regions = RegionEmbedding(V, D, radius=2, pad_id=0).double()
    for parameter in regions.parameters():
        parameter.data.normal_()
    ids, mask = token_batch(LENGTHS, V)
    u = regions(regions.word(ids).masked_fill(~mask[..., None], 0))
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            expected = loop_region(ids[b, :length], regions.word.weight, regions.bias, t, 2)
            torch.testing.assert_close(u[b, t], expected, **FLOAT64)


def test_the_loss_equals_the_loop_over_pairs_with_gradients(monkeypatch):
    model, batch = prepared()
    drawn = torch.tensor([7, 9, 60, 7, 33, 20, 21, 22, 59])
    monkeypatch.setattr(tv, "draw_words", lambda *_: drawn)
    loss, found = tv.objective(model, batch, OPTIONS)

    o, c, near, far = model.pretraining.word.weight, model.pretraining.bias, [], []
    for ids, length in zip(batch.input_ids, LENGTHS, strict=True):
        for t in range(length):
            u = loop_region(ids[:length], model.regions.word.weight, model.regions.bias, t, RADIUS)
            far += [logsigmoid(-(o[w] @ u + c[w])) for w in drawn]
            size = 2 * RADIUS + 1
            around = [*range(t - RADIUS - size, t - RADIUS), *range(t + RADIUS + 1, t + RADIUS + size + 1)]
            words = [ids[j] for j in around if 0 <= j < length and ids[j] >= FIRST]
            near += [logsigmoid(o[w] @ u + c[w]) for w in words]
    expected = -torch.stack(near).mean() - OPTIONS.negative_weight * torch.stack(far).mean()
    torch.testing.assert_close(loss, expected, **FLOAT64)
    assert len(found["acc"]) == len(near) < sum(LENGTHS) * 6
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, **FLOAT64)
        assert ours.abs().sum() > 0


@pytest.mark.parametrize("weight", [0.5, 5.0])
def test_scores_start_near_the_bias_that_is_optimal_without_information(weight):
    """O is uniform in (-0.1, 0.1), and c is -log k."""
    torch.manual_seed(0)
    start = tv.TwoViews(V, D, negative_weight=weight)
    torch.testing.assert_close(start.bias.detach(), torch.full((V,), -math.log(weight)))
    assert 0.09 < start.word.weight.abs().max() <= 0.1


def test_padding_changes_nothing(monkeypatch):
    model, batch = prepared()
    monkeypatch.setattr(tv, "draw_words", lambda *_: torch.arange(FIRST, V))
    loss, _ = tv.objective(model, batch, OPTIONS)
    longer = Batch(pad(batch.input_ids, (0, 9)), pad(batch.mask, (0, 9)), batch.labels, batch.rows)
    torch.testing.assert_close(tv.objective(model, longer, OPTIONS)[0], loss, **FLOAT64)


def test_words_are_drawn_log_uniformly():
    torch.manual_seed(0)
    drawn = draw_words(200_000, FIRST, V, torch.device("cpu"))
    ids = torch.arange(FIRST, V).double()
    expected = torch.log1p(1 / (ids + 1)) / math.log((V + 1) / (FIRST + 1))
    frequency = torch.bincount(drawn, minlength=V)[FIRST:] / len(drawn)
    assert drawn.min() == FIRST
    torch.testing.assert_close(frequency.double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("one_hot", [True, False])
def test_a_window_reads_the_region_around_its_middle_word(one_hot):
    torch.manual_seed(0)
    shape = {"one_hot": one_hot, "widths": "1,3,2", "filters": 3, "embedding_size": 4}
    model = CNN(CNNConfig(vocab_size=V, region_width=D, region_radius=2, **shape)).double().eval()
    model.regions.bias.data.normal_()
    ids, mask = token_batch(LENGTHS, V)
    h = model.encode(model.embed(ids, mask), mask)
    plain = CNN(CNNConfig(vocab_size=V, **shape)).double().eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    for layer in (model, plain):
        for convolution in layer.convolutions:
            convolution.bias.data.fill_(100.0)  # all windows are above 0: ReLU changes none
    h, alone = (layer.encode(layer.embed(ids, mask), mask).chunk(3, -1) for layer in (model, plain))
    for width, view, ours, without in zip((1, 3, 2), model.views, h, alone, strict=True):
        for b, length in enumerate(LENGTHS):
            text = pad(ids[b, :length], (9, 9))  # id 0, whose rows are 0
            for t in range(length + width - 1):
                u = loop_region(text, model.regions.word.weight, model.regions.bias, 9 + t - width + 1 + width // 2, 2)
                torch.testing.assert_close(ours[b, t] - without[b, t], view(u / D**0.5), **FLOAT64)


def test_convolution_of_ids_equals_the_plain_form():
    torch.manual_seed(0)
    model = CNN(CNNConfig(vocab_size=V, one_hot=True, filters=3, widths="1,2,3", region_width=D)).double().eval()
    model.regions.bias.data.normal_()
    ids, mask = token_batch(LENGTHS, V)
    plain = model.pool(model.encode(model.embed(ids, mask), mask), mask)
    torch.testing.assert_close(model.features(ids, mask), plain, **FLOAT64)
    torch.testing.assert_close(model.embed(ids, mask), model.rows(ids), **FLOAT64)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lstm", {}, "regions of a CNN"),
        ("cnn", {}, "none --shape region_width=200 makes one"),
        ("bert", {}, "has none"),
    ],
)
def test_models_without_regions_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        tv.prepare(tiny(name, **changes), TVOptions(), None)


def test_a_vocabulary_without_predicted_words_is_refused():
    with pytest.raises(ValueError, match="--skipped-words 100 leaves no word of 61"):
        tv.prepare(tiny("cnn", vocab_size=V, region_width=D), TVOptions(), None)


@pytest.mark.parametrize(("negatives", "weight"), [(0, 5.0), (9, 0.0), (9, -1.0)])
def test_options_without_drawn_words_are_refused(negatives, weight):
    with pytest.raises(ValueError, match="must be above 0"):
        TVOptions(negatives=negatives, negative_weight=weight)


def test_a_negative_number_of_skipped_words_is_refused():
    with pytest.raises(ValueError, match="--skipped-words -1 is negative"):
        TVOptions(skipped_words=-1)


def test_a_model_without_the_fields_of_an_objective_is_refused_by_name():
    with pytest.raises(ValueError, match="--loss tv is for --model cnn, not lstm"):
        resolve(["--model", "lstm", "--loss", "tv"], TABLES)
    with pytest.raises(ValueError, match="--loss margin is for --model capsule_lstm, not gru"):
        resolve(["--model", "gru", "--loss", "margin"], TABLES)


def test_weights_keep_their_own_shape(tmp_path):
    """The shape that an objective requires is for new models; weights bring their config."""
    for name, objective in (("cnn", "tv"), ("capsule_lstm", "margin")):
        settings, _ = resolve(["--model", name, "--loss", objective, "--weights", str(tmp_path)], TABLES)
        assert settings.options.shape == ""
        settings, _ = resolve(["--model", name, "--loss", objective], TABLES)
        assert settings.options.shape != ""


def test_the_loss_falls_and_a_classifier_starts_from_regions_that_stay(tmp_path, capsys):
    lines = [" ".join(f"{word}{n % 5}" for word in "abcdefgh") for n in range(200)]
    (tmp_path / "toy.txt").write_text("\n".join(lines))
    shape = "--shape region_width=8␣region_radius=1␣filters=4"
    text = f"--model cnn --loss tv {shape} --data {tmp_path / 'toy.txt'} --epochs 4 --batch-size 16 --min-count 1"
    epochs = pretrain(tmp_path, "pre", f"{text} --skipped-words 2 --learning-rate 3e-2")
    assert epochs[-1]["val_loss"] < 0.8 * epochs[0]["train_loss"]
    best = tmp_path / "pre" / "best"
    text = f"--model cnn --data demo --train-reviews 20 --epochs 1 --runs {tmp_path} --name fine"
    train.main([*text.split(), "--weights", str(best)])
    assert "newly initialized: classifier" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "best/model.safetensors") for name in ("pre", "fine"))
    for key in ("regions.word.weight", "regions.bias"):
        assert torch.equal(before[key], after[key])
        assert before[key].abs().sum() > 0
    assert not torch.equal(before["views.0.weight"], after["views.0.weight"])
    assert not any(key.startswith("pretraining") for key in before)


def test_the_bias_of_a_word_is_not_decayed():
    model = tiny("cnn", region_width=6)
    prepare(model, TVOptions(skipped_words=0), None)
    decayed = [p for g in parameter_groups(model, Options()) if g["weight_decay"] for p in g["params"]]
    assert not any(p is model.pretraining.bias for p in decayed)
    assert any(p is model.pretraining.word.weight for p in decayed)


def test_the_extreme_draws_are_words_that_are_predicted(monkeypatch):
    """exp(log(n)) in fp32 may be below n."""
    for uniform in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(torch, "rand", lambda count, uniform=uniform, **_: torch.full((count,), uniform))
        for first in range(300):
            drawn = draw_words(1, first, first + 50, torch.device("cpu")).item()
            assert first <= drawn < first + 50


def test_skipping_all_words_of_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=f"--skipped-words {V} leaves no word of {V}"):
        tv.prepare(tiny("cnn", vocab_size=V, region_width=D), TVOptions(skipped_words=V), None)
    tv.prepare(tiny("cnn", vocab_size=V, region_width=D), TVOptions(skipped_words=V - 1), None)
