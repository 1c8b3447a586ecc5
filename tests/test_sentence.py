"""The numbers of the picture of one sentence, and its shades."""

from typing import Any

import numpy as np
import pytest
from bench.sentence import OUTPUT, SENTENCE, measure

from data.checked import read_json
from data.hub import LINEAR
from data.sentence_picture import EFFECTS, STRONGEST, number, shades

MODELS: list[dict[str, Any]] = read_json(OUTPUT)["models"]
ROUNDING = 2e-4  # four digits are kept


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["model"])
def test_the_numbers_obey_their_equations(model):
    assert " ".join(model["words"]) == SENTENCE
    count = len(model["words"])
    assert all(len(values) == count for values in [*(model[key] for key in EFFECTS), *model["weights"].values()])
    error = sum(model["integrated gradients"]) - model["difference to the baseline"]
    assert abs(error) <= 0.01 * abs(model["difference to the baseline"]) + count * ROUNDING
    tokens = np.array([len(text.split()) for text in model["tokens"]])
    for title, values in model["weights"].items():
        assert (np.array(values) >= 0).all()
        if title == "attention":
            assert abs(sum(values) - 1) <= count * ROUNDING
        else:  # a token is divided among the capsules
            assert (np.array(values) <= tokens + ROUNDING).all()


def test_the_box_still_gives_the_numbers_of_the_file():
    found = measure(str(LINEAR))
    for key in EFFECTS:
        np.testing.assert_allclose(found[key], MODELS[0][key], atol=ROUNDING)
    assert found["tokens"] == MODELS[0]["tokens"]


def test_shades_are_relative_to_the_largest_value_and_show_the_sign():
    found = shades(np.array([0.0, 2.0, -1.0]), "blue")
    blue, vermillion = (np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)]) / 255 for text in ("0072B2", "D55E00"))
    wanted = [np.ones(3), 1 - STRONGEST + STRONGEST * blue, 1 - STRONGEST / 2 + STRONGEST / 2 * vermillion]
    np.testing.assert_allclose(found, wanted)
    np.testing.assert_allclose(shades(np.zeros(2), "blue"), np.ones((2, 3)))
    assert [number(value, True) for value in (0.004, 0.05, -1.0)] == ["", "+0.05", "−1.00"]
