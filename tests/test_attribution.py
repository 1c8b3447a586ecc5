"""nn/attribution.py: completeness for every model, method and 8-bit weights, against a plain Riemann sum."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ENCODERS, adapt, tiny, token_batch
from reference import riemann_gradients

from nn import MODELS, attribution
from nn.attribution import (
    Attribution,
    baseline_id,
    erasure,
    integrated_gradients,
    log_odds,
    logits_of_embeddings,
    ngram_effects,
    pooling_weights,
    shared_by_tokens,
    token_effects,
)
from nn.quant import Int8Linear, quantize_int8
from peft import METHODS

WITHIN = 0.01  # of the difference of the log-odds
BLANK = 4


def completeness(model: torch.nn.Module, labels: int = 2) -> None:
    """Holds the sum of attributions equal to the difference of log-odds, both computed from `model` itself."""
    ids, _ = token_batch([11])
    ids, in_text = ids[0], torch.ones(11, dtype=torch.bool)
    in_text[[0, -1]] = False  # [CLS] and [SEP]
    mask, blank = torch.ones(1, 11, dtype=torch.bool), ids.masked_fill(in_text, BLANK)
    for label in range(labels):
        found = token_effects(model, ids, in_text, label, BLANK)
        with torch.no_grad():
            model.eval()
            expected = float(log_odds(model(ids[None], mask), label) - log_odds(model(blank[None], mask), label))
        assert abs(float(found.effects.sum()) - expected) <= WITHIN * abs(expected), (label, expected)
        assert not found.effects[~in_text].any()
        assert found.effects.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "nb_linear"])
def test_attributions_sum_to_the_difference_of_log_odds(name: str):
    completeness(tiny(name))
    completeness(tiny(name, labels=("a", "b", "c")), labels=3)


@pytest.mark.parametrize(
    "changes",
    [{"pooling": "max+mean"}, {"one_hot": True}, {"one_hot": True, "region_width": 5}, {"pooling": "attention"}],
)
def test_completeness_of_other_convolutions(changes: dict):
    completeness(tiny("cnn", **changes))


def test_completeness_with_class_capsules():
    completeness(tiny("capsule_lstm", head="capsules"))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_completeness_with_an_adapter(name: str, method: str):
    completeness(adapt(tiny(name), method))


@pytest.mark.parametrize("method", ["none", "lora", "prefix"])
@pytest.mark.parametrize("name", ENCODERS)
def test_completeness_with_8_bit_weights(name: str, method: str):
    """The products are those of the path fp32, which rounds no activation; afterwards the paths are as before."""
    model = quantize_int8(tiny(name))
    model = model if method == "none" else adapt(model, method)
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    for layer in layers:
        layer.path = "fp32"
    completeness(model)
    for layer in layers:
        layer.path = "int8"
    ids, _ = token_batch([11])
    token_effects(model.train(), ids[0], torch.ones(11, dtype=torch.bool), 0, BLANK)
    assert model.training
    assert layers
    assert all(layer.path == "int8" for layer in layers)


def test_equals_a_riemann_sum_of_two_thousand_steps():
    model, (ids, _) = tiny("bert").double().eval(), token_batch([5])
    table = model.embeddings.word
    x, baseline = table(ids[0]).detach(), table(torch.full((5,), BLANK)).detach()

    def function(x: torch.Tensor) -> torch.Tensor:
        return log_odds(logits_of_embeddings(model, ids[0], x), 1)

    found = integrated_gradients(function, x, baseline)
    expected = riemann_gradients(function, x, baseline, steps=2_000)
    torch.testing.assert_close(found.effects, expected, rtol=0.01, atol=0.01 * abs(found.difference))


def test_other_threads_keep_their_embeddings():
    model, ids = tiny("bert").eval(), torch.arange(5, 11)
    expected, found = model(ids[None], ids[None] > 0), []

    def other() -> None:
        found.append(model(ids[None], ids[None] > 0))

    def embedded(*_: Any) -> None:  # runs between the embeddings and the rest of the pass of this thread
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    hook = model.layers[0].register_forward_pre_hook(embedded)
    zero = logits_of_embeddings(model, ids, torch.zeros(1, 6, model.config.hidden_size))
    hook.remove()
    assert torch.equal(found[0], expected)
    assert not torch.allclose(zero, expected)


def test_a_linear_function_is_exact():
    """Equation (1) of a linear function is w ⊙ (x - x')."""
    torch.manual_seed(0)
    w, x, baseline = torch.randn(3, 7, 5, dtype=torch.float64).unbind(0)
    found = integrated_gradients(lambda x: (w * x).sum((1, 2)), x, baseline)
    torch.testing.assert_close(found.effects, (w * (x - baseline)).sum(1))


def test_a_function_that_is_not_finite_ends_the_integration():
    x, baseline = torch.ones(3, 5), torch.zeros(3, 5)
    assert integrated_gradients(lambda x: (x * torch.nan).sum((1, 2)), x, baseline).effects.isnan().all()


def test_a_linear_model_adds_its_ngrams_exactly():
    model, (ids, mask) = tiny("nb_linear").eval(), token_batch([11])
    spans, found = ngram_effects(model, ids[0], 1)
    _, parts = model.ngrams(ids[0])
    torch.testing.assert_close(found.effects, (parts[:, 1] - parts[:, 0]).double(), rtol=1e-5, atol=1e-5)
    bias = model.classifier.bias
    expected = log_odds(model(ids, mask), 1) - log_odds(bias[None], 1)
    torch.testing.assert_close(found.effects.sum(), expected[0].double(), rtol=1e-5, atol=1e-5)
    shared = shared_by_tokens([range(0, 1), range(0, 3)], torch.tensor([1.0, 6.0]), 4)
    assert shared.tolist() == [3.0, 2.0, 2.0, 0.0]
    torch.testing.assert_close(shared_by_tokens(spans, found.effects, 11).sum(), found.effects.sum())


def test_a_linear_model_with_three_labels_is_complete():
    model, (ids, mask) = tiny("nb_linear", labels=("a", "b", "c")).eval(), token_batch([11])
    _, found = ngram_effects(model, ids[0], 2)
    with torch.no_grad():
        expected = float(log_odds(model(ids, mask), 2) - log_odds(model.classifier.bias[None], 2))
    assert abs(float(found.effects.sum()) - expected) <= WITHIN * abs(expected)


def test_own_weights_are_those_of_the_pooling():
    ids, _ = token_batch([11])
    ((title, alpha),) = pooling_weights(tiny("attention_lstm"), ids[0], 1)
    assert title == "attention"
    assert float(alpha.sum()) == pytest.approx(1, abs=1e-5)
    model = tiny("capsule_lstm").eval()
    v, c = model.routing(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(c.sum(-1), torch.ones(1, 11))
    logits = model(ids, torch.ones_like(ids, dtype=torch.bool))
    bias = model.classifier.bias
    scores = model.capsule_scores(v).sum(1)[0] + bias - bias.mean()
    torch.testing.assert_close(scores, logits[0] - logits[0].mean(), rtol=1e-4, atol=1e-4)
    assert len(pooling_weights(model, ids[0], 0)) == 3
    assert len(pooling_weights(tiny("capsule_lstm", head="capsules"), ids[0], 0)) == 3
    assert pooling_weights(tiny("lstm"), ids[0], 0) == []


def test_erasure_of_a_linear_model_equals_its_weights():
    """The log-odds of a bag of words are a sum: without a word they decrease by the weight of that word."""
    weights = torch.tensor([1.5, -0.5, 0.0, 2.0])
    whole = torch.stack([torch.zeros(1), weights.sum()[None]], 1)
    without = torch.stack([torch.zeros(4), weights.sum() - weights], 1)
    torch.testing.assert_close(erasure(whole, without, 1), weights)
    torch.testing.assert_close(erasure(whole.flip(1), without.flip(1), 0), weights)  # also for the other label


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_no_model_has_is_refused(label: int):
    with pytest.raises(ValueError, match=f"label {label} is outside 0 … 2"):
        log_odds(torch.zeros(5, 3), label)


def test_the_error_is_an_absolute_difference():
    assert Attribution(torch.tensor([1.0, 1.5]), 4.0).error == Attribution(torch.tensor([1.0, 4.5]), 4.0).error == 1.5


@pytest.mark.parametrize(("difference", "allowed"), [(0.0, 1e-4), (1.0, 0.005), (-1.0, 0.005)])
def test_a_kink_is_resolved_to_the_tolerance(difference: float, allowed: float):
    """Half a percent of the difference, and 1e-4 of a difference of 0."""

    def function(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten()
        return difference * x + 50 * ((x - 0.3).abs() - 0.4 * x)  # the kink alone has equal ends

    found = integrated_gradients(function, torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    assert found.difference == pytest.approx(difference)
    assert found.error <= allowed


def test_a_pass_has_at_most_its_number_of_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attribution, "PASS_TOKENS", 7)
    points = []

    def function(x: torch.Tensor) -> torch.Tensor:
        points.append(len(x))
        return x.sum((1, 2))

    integrated_gradients(function, torch.ones(3, 5), torch.zeros(3, 5))
    assert max(points) == 2
    none = torch.zeros(0, 5)  # a text without a token
    assert integrated_gradients(function, none, none).effects.shape == (0,)


def test_the_baseline_is_the_mask_token_or_else_the_unknown_one():
    for mask, blank in ((4, 4), (0, 0), (None, 1)):
        assert baseline_id(SimpleNamespace(role_id={"mask": mask}.get, unk_id=1)) == blank


def test_8_bit_layers_have_the_effects_of_their_path_fp32():
    model, (ids, _) = quantize_int8(tiny("bert")).eval(), token_batch([11])
    found = []
    for path in ("fp32", "int8"):
        for layer in (module for module in model.modules() if isinstance(module, Int8Linear)):
            layer.path = path
        found.append(token_effects(model, ids[0], torch.ones(11, dtype=torch.bool), 1, BLANK).effects)
    torch.testing.assert_close(*found)


def test_log_odds_of_a_model_in_16_bits_are_computed_in_32():
    model, (ids, mask) = tiny("gru", labels=("a", "b", "c")).bfloat16().eval(), token_batch([5])
    blank = torch.full_like(ids, BLANK)
    with torch.no_grad():
        odds = [log_odds(model(batch, mask).float(), 1).item() for batch in (ids, blank)]
    found = token_effects(model, ids[0], torch.ones(5, dtype=torch.bool), 1, BLANK)
    assert found.difference == pytest.approx(odds[0] - odds[1], rel=1e-5)


def test_log_odds_of_three_labels_are_those_of_their_probabilities():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3)))
    p = logits.softmax(1)
    torch.testing.assert_close(log_odds(logits, 1), (p[:, 1] / (1 - p[:, 1])).log())


def test_a_text_longer_than_a_pass_takes_one_pass_for_each_point(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attribution, "PASS_TOKENS", 3)
    w, x, baseline = torch.randn(3, 7, 5, dtype=torch.float64).unbind(0)
    found = integrated_gradients(lambda x: (w * x).sum((1, 2)), x, baseline)
    torch.testing.assert_close(found.effects, (w * (x - baseline)).sum(1))


def counted_points(function: Callable) -> int:
    """Returns the number of points at which a function of one number is evaluated to integrate its gradients."""
    points = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        points.extend(x.flatten().tolist())
        return function(x.flatten())

    integrated_gradients(counted, torch.ones(1, 1), torch.zeros(1, 1))
    return len(points)


def test_a_function_that_falls_needs_the_intervals_of_one_that_rises():
    assert counted_points(lambda x: 9 * (x - 0.3).abs()) == counted_points(lambda x: -9 * (x - 0.3).abs()) > 40


def test_equal_log_odds_at_both_ends_need_no_finer_intervals():
    """The errors, of rounding alone, are below SMALLEST_ERROR; half a percent of a difference of 0 would be 0."""
    assert counted_points(lambda x: torch.sin(torch.pi * x) ** 2 + 1) < 200


def test_a_step_ends_with_the_largest_number_of_intervals(monkeypatch: pytest.MonkeyPatch):
    """Its slope is 0, so that halving the interval of the step never lowers the error."""
    monkeypatch.setattr(attribution, "MOST_INTERVALS", 8)
    assert counted_points(lambda x: (x > 0.3).float() + 0 * x) < 100


def test_the_routing_that_is_shown_is_that_of_the_largest_contributions():
    """Also of those against the label: with two labels each contribution has its opposite for the other."""
    model, (ids, mask) = tiny("capsule_lstm", num_capsules=7).eval(), token_batch([11])
    v, c = model.routing(ids, mask)
    for label in (0, 1):
        scores = model.capsule_scores(v)[0, :, label].tolist()
        largest = sorted(range(7), key=lambda j: -abs(scores[j]))[:3]
        found = pooling_weights(model, ids[0], label)
        assert [title for title, _ in found] == [f"routing to capsule {j} ({scores[j]:+.2f})" for j in largest]
        for j, (_, weights) in zip(largest, found, strict=True):
            torch.testing.assert_close(weights, c[0, :, j])
