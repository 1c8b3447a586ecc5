"""Adversarial training, virtual adversarial training and entropy minimisation against their equations."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from conftest import adapt, tiny, token_batch
from torch import Tensor
from torch.nn import Module

import train
from data.batches import Batch
from data.corpus import Corpus
from data.orders import Stream
from losses import mixed
from losses.divergence import entropy, kl_divergence, symmetric_kl
from losses.mixed import (
    AdversarialOptions,
    MixedOptions,
    Reviews,
    adversarial_perturbation,
    objective,
    prepare,
    scale_to_length,
    vat_loss,
    virtual_perturbation,
)
from nn.runtime import Machine

SOME_MODELS = ["lstm", "bert", "deberta"]
some_models = pytest.mark.parametrize("name", SOME_MODELS)
dropout = pytest.mark.parametrize("training", [False, True], ids=["no dropout", "equal dropout masks"])
WEIGHTS = {"adversarial_weight": 0.7, "vat_weight": 0.6, "entropy_weight": 0.3}
FP32 = 2e-3  # relative error: the gradient of KL near its minimum is a difference of nearly equal fp32 probabilities


def embedded_reviews(name: str, training: bool = True) -> Reviews:
    """Returns three embedded reviews of a float64 model with three classes."""
    torch.manual_seed(0)
    model, (ids, mask) = three_classes(name).train(training), token_batch([5, 2, 4])
    return Reviews.embed(model, ids, mask)


def three_classes(name: str) -> Module:
    """Returns a float64 model. With two classes the gradients of KL(P ‖ Q) and KL(Q ‖ P) would have one direction."""
    return tiny(name, labels=("a", "b", "c")).double()


def labelled_and_unlabelled() -> Batch:
    """Returns four labelled reviews together with three unlabelled ones of other lengths."""
    labelled = Batch(*token_batch([5, 4, 3, 1]), torch.tensor([0, 1, 2, 1]), torch.arange(4))
    return labelled._replace(unlabelled=Batch(*token_batch([2, 4, 3], seed=1), torch.full((3,), -1), torch.arange(3)))


# ------------------------------------------------------------------------------------------------------ the terms


def test_divergence_and_entropy_equal_the_loops_with_gradients():
    torch.manual_seed(0)
    a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for ours, plain, inputs in (
        (kl_divergence(a, b), reference.kl_divergence(a, b), [a, b]),
        (entropy(a), reference.entropy(a), [a]),
    ):
        torch.testing.assert_close(ours, plain)
        for mine, theirs in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (ours, plain)), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_failed_pass_restores_the_random_state():
    model, (ids, mask) = tiny("bert"), token_batch([4, 3])
    reviews = Reviews.embed(model, ids, mask)
    model.pooler.dense = torch.nn.Linear(3, 3)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        reviews.logits()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_norm_is_taken_over_all_real_tokens_of_a_review():
    mask, direction = torch.tensor([[True, True, False], [True, False, False]]), torch.randn(2, 3, 5)
    expected = reference.scale_reviews(direction, mask, [2.5, 2.5])
    torch.testing.assert_close(scale_to_length(direction, mask, 2.5), expected)
    torch.testing.assert_close(expected.flatten(1).norm(dim=1), torch.full((2,), 2.5))
    assert (scale_to_length(torch.zeros(2, 3, 5), mask, 2.5) == 0).all()


@some_models
def test_all_passes_of_a_review_use_the_same_dropout_masks(name):
    reviews = embedded_reviews(name)
    before = torch.get_rng_state()
    assert torch.equal(reviews.logits(), reviews.logits())
    assert torch.equal(torch.get_rng_state(), before)  # noise that is drawn later has other numbers than the masks
    assert not torch.equal(reviews.logits(), embedded_reviews(name, training=False).logits())


@dropout
@pytest.mark.parametrize(("name", "xi"), [("lstm", 0.1), ("lstm", 2.0), ("bert", 2.0), ("deberta", 0.1)])
def test_the_virtual_perturbation_equals_a_power_iteration_by_finite_differences(name, xi, training, monkeypatch):
    """With a large ξ, KL is not symmetric and its gradient depends on ξ."""
    reviews, drawn = embedded_reviews(name, training), recorded_noise(monkeypatch)
    if xi != 0.1:  # the default
        monkeypatch.setattr(mixed, "XI", xi)
    r = virtual_perturbation(reviews, reviews.logits().detach(), radius=2.0)
    epsilon = 2.0 * reviews.x.detach()[reviews.mask].std()
    d = start_of_the_iteration(*drawn, reviews.x, reviews.mask, xi=xi)
    plain = reference.virtual_perturbation(pass_of(reviews), d, reviews.mask, [epsilon] * 3)
    torch.testing.assert_close(r, plain, rtol=0, atol=FP32 * epsilon.item(), check_dtype=False)
    assert not r.requires_grad


def recorded_noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Returns a list to which every later result of torch.randn_like is appended."""
    drawn, randn_like = [], torch.randn_like

    def record(*arguments: Tensor, **keywords: torch.dtype) -> Tensor:
        drawn.append(randn_like(*arguments, **keywords))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn_like", record)
    return drawn


def start_of_the_iteration(noise: Tensor, x: Tensor, mask: Tensor, xi: float = 0.1) -> Tensor:
    """Scales the noise of each review of n tokens to ξ √n standard deviations of the embeddings: [B, T, E]"""
    lengths = [xi * x.detach()[mask].std() * n**0.5 for n in mask.sum(1).tolist()]
    return reference.scale_reviews(noise.double(), mask, lengths)


def pass_of(reviews: Reviews) -> Callable[[Tensor], Tensor]:
    """Returns a function: shift of the embeddings [B, T, E] -> logits [B, C], under the dropout masks of `reviews`."""

    def logits(shift: Tensor) -> Tensor:
        torch.manual_seed(reviews.seed)
        h = reviews.model.encode(reviews.x + shift, reviews.mask)
        return reviews.model.classifier(reviews.model.pool(h, reviews.mask))

    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["cnn", "lstm", "capsule_lstm", "bert", "deberta"])
def test_half_precision_finds_the_direction_of_fp32(name: str, dtype: torch.dtype):
    """The head is small, as at the start of a training: its probabilities differ by less than half precision shows."""
    model, (ids, mask) = tiny(name), token_batch([5, 2, 4, 7])
    if name != "capsule_lstm":  # its answers are lengths, without a weight
        model.classifier.weight.data *= 0.01
    found = {}
    for precision in (torch.float32, dtype):
        torch.manual_seed(1)
        with Machine(torch.device("cpu"), precision).autocast():
            reviews = Reviews.embed(model, ids, mask)
            target = reviews.logits().detach()
            found[precision] = virtual_perturbation(reviews, target, radius=2.0) / reviews.spread()
    lengths = found[dtype].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), 2.0), rtol=1e-5, atol=0)
    similarity = torch.nn.functional.cosine_similarity(found[dtype].flatten(1), found[torch.float32].flatten(1))
    assert similarity.min() > 0.98


@some_models
def test_the_virtual_perturbation_changes_the_answer_more_than_noise_of_its_length(name):
    reviews = embedded_reviews(name, training=False)
    target = reviews.logits().detach()
    r = virtual_perturbation(reviews, target, radius=0.5)
    with torch.no_grad():
        noise = [scale_to_length(torch.randn_like(r), reviews.mask, 0.5 * reviews.spread()) for _ in range(20)]
        found, *others = (kl_divergence(target, reviews.logits(shift)).mean() for shift in (r, *noise))
        assert found > max(others)


def test_the_adversarial_direction_of_confident_reviews_in_fp16():
    """Their gradient is below the smallest fp16 number."""
    model, (ids, mask), found = tiny("bert"), token_batch([5, 2, 4, 7]), {}
    labels = torch.tensor([0, 1, 1, 0])
    model.classifier.weight.data *= 0.01

    def loss_of(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits + 12 * torch.nn.functional.one_hot(labels), labels)

    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(1)
        with Machine(torch.device("cpu"), dtype).autocast():
            reviews = Reviews.embed(model, ids, mask)
            shift = adversarial_perturbation(reviews, loss_of(reviews.logits()), loss_of, radius=2.0)
            found[dtype] = shift.flatten(1)
    similarity = torch.nn.functional.cosine_similarity(found[torch.float16], found[torch.float32])
    assert similarity.min() > 0.98


def test_no_gradient_flows_through_the_target():
    reviews = embedded_reviews("lstm", training=False)
    clean = reviews.logits()
    torch.manual_seed(1)
    loss = vat_loss(reviews, clean, 1.0)
    (through,) = torch.autograd.grad(loss, clean, allow_unused=True, retain_graph=True)
    assert through is None
    gradients = torch.autograd.grad(loss, list(reviews.model.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


# -------------------------------------------------------------------------------------------------- the objective


def embed_for_plain_form(model: Module, batch: Batch) -> Reviews:
    """Embeds a batch and draws the seed of its passes, as the objective does."""
    x = model.embed(batch.input_ids, batch.mask)
    return Reviews(model, x, batch.mask, int(torch.randint(2**62, ())))


def plain_terms(model: Module, batch: Batch, options: AdversarialOptions, drawn: list[Tensor]) -> dict[str, Tensor]:
    """Computes the terms of L by the plain forms. drawn: the noise of each virtual perturbation."""
    parts = [embed_for_plain_form(model, part) for part in (batch, batch.unlabelled) if part is not None]
    shifts = [options.radius * part.x.detach()[part.mask].std() for part in parts]

    def log_p(x: Tensor) -> Tensor:
        """Computes Σ_c q_c log p(c|s), which is log p(y|s) without label smoothing: [B]"""
        log_p = pass_of(parts[0]._replace(x=x))(torch.zeros_like(x)).log_softmax(-1)
        true = log_p.gather(1, batch.labels[:, None]).squeeze(1)
        return (1 - options.label_smoothing) * true + options.label_smoothing * log_p.mean(1)

    r = reference.adversarial_perturbation(log_p, parts[0].x, batch.mask, [shifts[0]] * len(batch.labels))
    divergences = []
    for part, noise, shift in zip(parts, drawn, shifts, strict=False):
        logits, d = pass_of(part), start_of_the_iteration(noise, part.x, part.mask)
        r_v = reference.virtual_perturbation(logits, d, part.mask, [shift] * len(d))
        divergences.append(reference.kl_divergence(logits(torch.zeros_like(d)).detach(), logits(r_v)))
    return {
        "likelihood": -log_p(parts[0].x).mean(),
        "adversarial": -log_p(parts[0].x + r).mean(),
        "virtual": torch.cat(divergences).mean() if divergences else torch.tensor(0.0),
        "entropy": reference.entropy(pass_of(parts[-1])(torch.zeros_like(parts[-1].x))).mean(),
    }


def assert_equal_with_gradients(model: Module, ours: Tensor, plain: Tensor) -> None:
    """Compares two losses and their gradients with respect to all parameters."""
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6, check_dtype=False)
    parameters = [*model.parameters()]
    gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (ours, plain)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 + FP32 * theirs.abs().max().item())


@dropout
@some_models
def test_adversarial_training_equals_its_equations(name, training):
    """L = L_ML + λ_AT L_AT: Miyato et al., Eq. (5) and (6)."""
    torch.manual_seed(0)
    model, batch = three_classes(name).train(training), labelled_and_unlabelled()._replace(unlabelled=None)
    options = AdversarialOptions(adversarial_weight=0.7, radius=2.0, label_smoothing=0.1)
    torch.manual_seed(3)
    loss, logits = objective(model, batch, options)
    torch.manual_seed(3)
    plain = plain_terms(model, batch, options, drawn=[])
    assert logits.shape == (4, 3)
    assert plain["adversarial"] > plain["likelihood"]
    assert_equal_with_gradients(model, loss, plain["likelihood"] + 0.7 * plain["adversarial"])


@dropout
@pytest.mark.parametrize("name", ["lstm", "bert"])
def test_the_mixed_objective_equals_its_equations(name, training, monkeypatch):
    """L = L_ML + λ_AT L_AT + λ_VAT L_VAT + λ_EM L_EM: Sachan et al., Eq. (5), with Miyato et al., Eq. (5)–(8)."""
    torch.manual_seed(0)
    model, batch = three_classes(name).train(training), labelled_and_unlabelled()
    options, drawn = MixedOptions(**WEIGHTS, radius=2.0), recorded_noise(monkeypatch)
    torch.manual_seed(3)
    loss, logits = objective(model, batch, options)
    torch.manual_seed(3)
    plain = plain_terms(model, batch, options, drawn)
    assert logits.shape == (4, 3)
    assert [noise.shape[:2] for noise in drawn] == [(4, 5), (3, 4)]
    total = plain["likelihood"] + 0.7 * plain["adversarial"] + 0.6 * plain["virtual"] + 0.3 * plain["entropy"]
    assert_equal_with_gradients(model, loss, total)


def test_virtual_adversarial_training_without_unlabelled_reviews(monkeypatch):
    """L_VAT is then the mean over the labelled reviews, and L_EM is omitted."""
    torch.manual_seed(0)
    model, batch = three_classes("lstm").eval(), labelled_and_unlabelled()._replace(unlabelled=None)
    drawn = recorded_noise(monkeypatch)
    for options in (
        AdversarialOptions(adversarial_weight=0.0, vat_weight=0.6, radius=2.0),
        MixedOptions(**WEIGHTS | {"adversarial_weight": 0.0}, radius=2.0),
    ):
        drawn.clear()
        loss, _ = objective(model, batch, options)
        plain = plain_terms(model, batch, options, drawn)
        assert_equal_with_gradients(model, loss, plain["likelihood"] + 0.6 * plain["virtual"])


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_weight_scales_its_term(weight):
    """L is linear in each weight, with the term as its slope."""
    losses = []
    for value in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        options = dataclasses.replace(MixedOptions(**dict.fromkeys(WEIGHTS, 0.0)), **{weight: value})
        losses.append(objective(three_classes("bert").eval(), labelled_and_unlabelled(), options)[0])
    torch.testing.assert_close(losses[2] - losses[0], 3 * (losses[1] - losses[0]), rtol=1e-4, atol=1e-6)
    assert losses[1] > losses[0] + 1e-4


def test_without_gradients_the_adversarial_terms_are_omitted():
    """A perturbation is a gradient, which no_grad rules out; L_ML and L_EM remain."""
    torch.manual_seed(0)
    model, batch = three_classes("bert").eval(), labelled_and_unlabelled()
    with torch.no_grad():
        loss, logits = objective(model, batch, MixedOptions(**WEIGHTS))
        unlabelled = model(batch.unlabelled.input_ids, batch.unlabelled.mask)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels) + 0.3 * reference.entropy(unlabelled).mean()
    torch.testing.assert_close(loss, expected, check_dtype=False)


@some_models
def test_a_frozen_embedding_table_changes_neither_loss_nor_other_gradients(name):
    results = []
    for frozen in (False, True):
        model = three_classes(name).train()
        model.embeddings.requires_grad_(not frozen)
        torch.manual_seed(3)
        loss, _ = objective(model, labelled_and_unlabelled(), MixedOptions(**WEIGHTS))
        results.append((loss, torch.autograd.grad(loss, model.classifier.weight)[0]))
    for trained, constant in zip(*results, strict=True):
        torch.testing.assert_close(trained, constant)


def test_unsupported_settings_raise():
    for options in (AdversarialOptions, MixedOptions):
        with pytest.raises(ValueError, match="radius 0 must be above 0"):
            options(radius=0)
    with pytest.raises(ValueError, match="do not go with --peft prompt"):
        prepare(adapt(tiny("bert"), "prompt"), MixedOptions(), None)


def test_missing_unlabelled_reviews_are_noticed_before_vectors_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--model", "lstm", "--loss", "mixed", "--data", "demo", "--word-vectors", "train"]
    with pytest.raises(ValueError, match="mixed needs unlabelled reviews, which demo lacks; --data imdb has them"):
        train.main([*arguments, "--runs", str(tmp_path)])
    assert "GloVe" not in capsys.readouterr().out


def test_a_stream_gives_every_review_once_an_epoch_and_is_reproducible():
    corpus = Corpus.from_rows([[k + 1] * (k % 4 + 1) for k in range(10)], [-1] * 10, pad_id=0)
    stream = Stream(corpus, batch_size=3, seed=1)
    seen = [stream.batch(number).rows.tolist() for number in range(8)]
    for epoch in (seen[:4], seen[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert seen[:4] != seen[4:]
    again = Stream(corpus, batch_size=3, seed=1)
    assert [again.batch(6).rows.tolist(), again.batch(2).rows.tolist()] == [seen[6], seen[2]]


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


def test_the_objective_normalizes_on_request(monkeypatch):
    """The option reaches labelled and unlabelled reviews, and changes nothing but the perturbations."""
    losses, by_dimension = [], []

    def recorded(reviews: Reviews, *arguments: Tensor | float) -> Tensor:
        by_dimension.append(reviews.by_dimension)
        return vat_loss(reviews, *arguments)

    monkeypatch.setattr(mixed, "vat_loss", recorded)
    for normalize in (False, True):
        torch.manual_seed(0)
        model = three_classes("lstm").eval()
        model.embeddings.word.weight.data *= torch.linspace(0.2, 5, 10)
        options = MixedOptions(normalize_embeddings=normalize)
        losses.append(objective(model, labelled_and_unlabelled(), options))
    assert by_dimension == [False, False, True, True]
    assert torch.equal(losses[0][1], losses[1][1])
    assert losses[0][0] != losses[1][0]


@pytest.mark.parametrize("size", [1e10, 1.0, 1e-10, 1e-24, 1e-30])
def test_a_direction_of_any_size_gets_its_length(size: float):
    """The squares of 1e-24 are 0 in fp32. A direction of 0 stays 0."""
    torch.manual_seed(0)
    direction, mask = torch.randn(3, 7, 5) * size, torch.arange(7) < torch.tensor([[7], [3], [1]])
    direction[1] = 0
    lengths = scale_to_length(direction, mask, 5.0).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([5.0, 0.0, 5.0]))


def test_the_standard_deviation_by_dimension_is_that_of_the_population():
    """Embeddings with this variance are those of Miyato et al. 2017, §3, divided by it: their variance is 1."""
    torch.manual_seed(0)
    model, (ids, mask) = tiny("lstm").double().eval(), token_batch([7, 5])
    reviews = Reviews.embed(model, ids, mask, by_dimension=True)
    expected = reviews.x[mask].detach().numpy().std(0)
    torch.testing.assert_close(reviews.spread(), torch.from_numpy(expected), check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match="adversarial and mixed need fp32 weights"):
        prepare(tiny("bert").to(dtype), AdversarialOptions(), None)
    prepare(tiny("bert").double(), AdversarialOptions(), None)


@pytest.mark.parametrize("divergence", [kl_divergence, symmetric_kl])
def test_a_class_that_one_distribution_excludes_has_an_infinite_divergence(divergence: Callable):
    both, one = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -torch.inf]])
    assert divergence(both, one).item() == torch.inf
    assert divergence(one, one).item() == 0
    assert kl_divergence(one, both).item() == pytest.approx(math.log(1.5))
