"""Tests that several ranks compute the loss and the gradients of one process."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from ranks_worker import CASES, LENGTHS, all_cases
from safetensors.torch import load_file

from data.ranks import share_bounds

TOLERANCE = 1e-6  # of fp32 sums in another order, relative to the largest gradient


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """Returns what each of two ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests/ranks_worker.py"), str(folder)]
    started = [subprocess.Popen([*command, str(number), "2"]) for number in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [load_file(folder / f"{number}.safetensors") for number in range(2)]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return all_cases()


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_one_process(found, expected, case: str, kind: str):
    names = [name for name in expected if name.startswith(f"{case}/{kind}/")]
    assert names
    largest = max(expected[name].abs().max().item() for name in names)
    for name in names:
        torch.testing.assert_close(
            found[0][name], expected[name], rtol=TOLERANCE, atol=TOLERANCE * max(1.0, largest), msg=name
        )
        assert torch.equal(found[0][name], found[1][name])


def test_ranks_have_the_same_parameters_with_gradients(found, expected):
    assert found[0].keys() == found[1].keys() == expected.keys()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_row_has_one_rank_and_ranks_are_even_in_tokens(count: int):
    lengths = np.sort(np.random.default_rng(0).integers(1, 200, 23))
    bounds = [share_bounds(lengths, number, count) for number in range(count)]
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(23))
    assert max(lengths[start:stop].sum() for start, stop in bounds) <= lengths.sum() / count + lengths.max()
