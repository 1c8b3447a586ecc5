"""Temperature, calibration error, Brier score and thresholds, against numbers computed by hand."""

import numpy as np
import pytest

from data.calibration import (
    best_threshold,
    brier_score,
    describe_threshold,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    reliability_bins,
    scaled,
    summary,
)

EXACT = 1e-9


def test_the_temperature_of_equal_margins_makes_the_confidence_the_accuracy():
    """All margins are m and 3 of 4 labels are right: σ(m/T) = 3/4, so T = m / log 3."""
    logits = np.array([[0.0, 2.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    labels = np.array([1, 1, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(2 / np.log(3), rel=EXACT)
    assert fit_temperature(log_probabilities(np.exp(scaled(logits, 1.0))), labels) == pytest.approx(2 / np.log(3))


def test_a_review_of_equal_scores_does_not_change_the_temperature_of_others():
    logits = np.array([[0.0, 2.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert fit_temperature(logits, np.array([1, 1, 0, 1, 0])) == pytest.approx(2 / np.log(3), rel=EXACT)


def test_equal_scores_have_the_temperature_1():
    for value in (0.0, np.log(0.5), np.log(0.3)):
        assert fit_temperature(np.full((60, 2), value), np.arange(60) % 2) == 1


def test_the_temperature_has_the_smallest_loss_of_three_classes():
    stream = np.random.default_rng(0)
    logits, labels = 4 * stream.normal(size=(50, 3)), stream.integers(0, 3, 50)
    labels[:30] = logits[:30].argmax(1)

    def loss(temperature: float) -> float:
        return -scaled(logits, temperature)[np.arange(50), labels].mean()

    found = fit_temperature(logits, labels)
    assert found > 1
    assert loss(found) < min(loss(0.99 * found), loss(1.01 * found))


def test_the_temperature_is_limited_if_all_labels_are_right():
    assert fit_temperature(np.array([[0.0, 0.2], [0.2, 0.0]]), np.array([1, 0])) == pytest.approx(0.01)
    assert fit_temperature(np.array([[3.0, 0.0], [3.0, 0.0]]), np.array([0, 0])) == pytest.approx(0.01)
    assert fit_temperature(np.array([[0.0, 0.2], [0.2, 0.0]]), np.array([1.0, 0.0])) == pytest.approx(0.01)


def test_the_threshold_between_neighbouring_numbers():
    p1 = np.nextafter(0.4, [1, 1])
    p1[1] = np.nextafter(p1[0], 1)
    t = best_threshold(np.stack([1 - p1, p1], 1), np.array([0, 1]))
    assert (p1 > t).tolist() == [False, True]


def test_scaling_keeps_the_labels_and_one_is_the_identity():
    logits = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(scaled(logits, 7.0).argmax(1), logits.argmax(1))
    p = np.exp(scaled(logits, 1.0))
    np.testing.assert_allclose(np.exp(scaled(log_probabilities(p), 1.0)), p, rtol=EXACT)


def test_the_calibration_error_and_its_bins_against_hand_numbers():
    """Two bins: confidence .6 and .8, one of two right; confidence 1, right."""
    p = np.array([[0.4, 0.6], [0.8, 0.2], [0.0, 1.0]])
    labels = np.array([1, 1, 1])
    assert [b.reviews for b in reliability_bins(p, labels, bins=4)] == [1, 2]  # (.5, .75] and (.75, 1]
    wide = reliability_bins(p, labels, bins=1)
    assert wide == [(3, pytest.approx(2 / 3), pytest.approx(0.8))]
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(0.8 - 2 / 3)
    assert expected_calibration_error(p, labels, bins=4) == pytest.approx((0.4 * 1 + abs(0.5 - 0.9) * 2) / 3)
    upper = np.array([[0.5, 0.5], [0.4, 0.6]])
    assert [b.reviews for b in reliability_bins(upper, labels[:2], bins=4)] == [1, 1]  # (.25, .5] and (.5, .75]
    edge = np.array([[0.5, 0.5]])
    assert expected_calibration_error(edge, np.array([0]), bins=2) == pytest.approx(0.5)  # (0, .5]


def test_the_brier_score_against_hand_numbers():
    p = np.array([[0.4, 0.6], [0.8, 0.2]])
    assert brier_score(p, np.array([1, 1])) == pytest.approx((2 * 0.4**2 + 2 * 0.8**2) / 2)


def test_the_summary_is_of_the_scaled_probabilities():
    p, labels = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])
    root = np.sqrt(p)  # of T = 2
    after = brier_score(root / root.sum(1, keepdims=True), labels)
    assert f"Brier score {brier_score(p, labels):.4f} → {after:.4f}" in summary("test", p, labels, 2.0)


def test_the_threshold_has_the_best_accuracy_of_all():
    p1 = np.array([0.1, 0.2, 0.3, 0.35, 0.9])
    p, labels = np.stack([1 - p1, p1], 1), np.array([0, 0, 1, 1, 1])
    assert best_threshold(p, labels) == pytest.approx(0.25)
    assert best_threshold(p, np.array([0, 0, 0, 0, 1])) == pytest.approx((0.35 + 0.9) / 2)
    assert best_threshold(np.array([[0.6, 0.4], [0.6, 0.4]]), np.array([0, 1])) in (0.2, 0.7)  # equal p: not divided
    stream = np.random.default_rng(0)
    p1, labels = stream.integers(0, 20, 80) / 20, stream.integers(0, 2, 80)
    t = best_threshold(np.stack([1 - p1, p1], 1), labels)
    assert ((p1 > t) == labels).mean() == max(((p1 > x) == labels).mean() for x in np.linspace(-0.01, 1, 405))
    with pytest.raises(ValueError, match="two classes; this run has 3"):
        best_threshold(np.full((1, 3), 1 / 3), np.array([0]))


@pytest.mark.parametrize(
    ("p1", "labels"),
    [
        ([0.0, 0.0, 1.0], [1, 1, 1]),
        ([0.0, 0.0, 1.0], [0, 0, 0]),
        *(([a, a, np.nextafter(np.float32(a), np.float32(1))], [0, 0, 1]) for a in (0.1, 0.3, 0.6123, 0.9)),
    ],
)
def test_the_described_rule_is_the_chosen_one(p1: list[float], labels: list[int]):
    """A threshold is below all probabilities if all are positive, and between neighbouring float32 numbers."""
    p, y = np.array([[1 - x, x] for x in p1], dtype=np.float32), np.array(labels)
    assert "accuracy 1.0000" in describe_threshold("validation", p, y, best_threshold(p, y))


def test_scores_that_differ_by_rounding_have_the_temperature_1():
    """Without the tolerance the temperature is the lowest one, because each label has the higher score."""
    labels = np.arange(60) % 2
    assert fit_temperature(1e-9 * np.eye(2)[labels], labels) == 1


def test_of_equally_accurate_thresholds_the_closest_to_one_half_is_chosen():
    """The thresholds .15 and .75 leave one of four reviews wrong."""
    p1 = np.array([0.1, 0.2, 0.6, 0.9])
    assert best_threshold(np.stack([1 - p1, p1], 1), np.array([0, 1, 0, 1])) == pytest.approx(0.75)


def test_logarithms_of_float32_probabilities_are_computed_in_float64():
    p = np.array([[0.1, 0.9], [0.0, 1.0]], np.float32)
    expected = [[np.log(float(p[0, 0])), np.log(float(p[0, 1]))], [np.log(1e-30), 0.0]]
    np.testing.assert_allclose(log_probabilities(p), expected, rtol=1e-15)
