"""Tests that a sharded model (FSDP2) has the gradients, scores and weights of a whole one, and is saved and resumed.

Those that take minutes run with `RANKS=1 python -m pytest -n0 tests/test_sharding.py`.
"""

from pathlib import Path

import pytest
import torch
from ranks_worker import LENGTHS, SHARDED, all_cases
from safetensors.torch import load_file
from test_distributed import (
    DRAWN,
    LORA,
    TOLERANCE,
    TUNE,
    assert_equal_gradients,
    assert_equal_runs,
    assert_equal_weights,
    folder,
    in_one_process,
    minutes,
    outcome,
    runs,
    start,
)

from data.resolve import resolve
from train import TABLES, main

__all__ = ["folder"]
FULL = f"{TUNE} --adam-epsilon 1e-4"  # without it Adam scales up rounding errors (tests/test_distributed.py)
FAST = {"int8": f"{LORA} --quantize int8 --checkpointing --average 0.9 --epochs 2"}
SLOW = {
    "full": f"{FULL} --average 0.9 --checkpointing --class-weights balanced",
    "lora": f"{LORA} --accumulation 3",
    "dora": f"{LORA} --dora",
    "nf4": f"{LORA} --quantize nf4 --checkpointing",
    "rdrop": f"{LORA} --loss rdrop",
    "distill": f"{LORA} --loss distill",
    "supcon": f"{FULL} --loss rdrop_supcon --projection 8",
    "adversarial": f"{LORA} --loss adversarial",
    "prefix": f"{TUNE} --peft prefix",
    "houlsby": f"{TUNE} --peft houlsby --adapter-size 4",
    **{name: DRAWN[name] for name in ("mlm", "rtd")},
}


def whole_and_sharded(place: Path, count: int, cases: dict[str, str], kind: str = "train") -> None:
    """Trains each case with whole and with sharded models, with `count` ranks."""
    both = {f"{name} whole": text for name, text in cases.items()}
    both |= {f"{name} sharded": f"{text} --shard" for name, text in cases.items()}
    codes, _, errors = outcome(start(place, count, runs(place, both), kind))
    assert codes == [0] * count, errors


def assert_equal_best(first: Path, second: Path) -> None:
    """Compares the files of best/, tensor by tensor."""
    names = sorted(path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file())
    for name in (name for name in names if name.endswith(".safetensors")):
        tensors, others = load_file(first / name), load_file(second / name)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[key], rtol=0, atol=TOLERANCE, msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Returns what each of two ranks computed with sharded models; they also train FAST."""
    whole_and_sharded(folder / "shards", 2, FAST, "sharded")
    return [load_file(folder / f"shards/{number}.safetensors") for number in range(2)]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return all_cases(SHARDED)


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("case", SHARDED)
def test_loss_and_gradients_equal_a_whole_model(found, expected, case: str, kind: str):
    assert_equal_gradients(found, expected, f"{case}/{kind}/")


def test_the_same_parameters_have_gradients(found, expected):
    assert found[0].keys() == found[1].keys() == expected.keys()


def test_scores_equal_a_whole_model_to_the_last_digit(found, expected):
    assert all(torch.equal(rank["scores"], expected["scores"]) for rank in found)


def test_training_equals_a_whole_model(found, folder):
    place = folder / "shards"
    assert_equal_runs(place / "int8 whole", place / "int8 sharded")
    assert_equal_best(place / "int8 whole/best", place / "int8 sharded/best")


def test_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--shard divides a model among ranks: torchrun --standalone"):
        main(["--shard", "--data", "demo", "--runs", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_word_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--shard cuts the layers of an encoder; lstm is small"):
        main(["--shard", "--model", "lstm", "--data", "demo", "--runs", str(tmp_path)])


def test_the_cases_that_take_minutes_are_possible_commands(folder):
    for command in runs(folder / "more", SLOW):
        resolve([*command, "--shard"], TABLES)


@minutes
@pytest.mark.parametrize("count", [2, 3])
def test_more_cases_equal_whole_models(folder, count: int):
    place = folder / f"more{count}"
    whole_and_sharded(place, count, SLOW, "train")
    for case in SLOW:
        assert_equal_runs(place / f"{case} whole", place / f"{case} sharded")
        assert_equal_best(place / f"{case} whole/best", place / f"{case} sharded/best")


@minutes
def test_a_run_goes_on_with_another_number_of_ranks(folder):
    """2 ranks stop after a signal to one of them, 1 rank goes on and stops, 2 ranks finish."""
    place = folder / "resumed"
    case = {"full": f"{FULL} --average 0.9"}
    in_one_process(runs(place, case))
    (place / "full").rename(place / "alone")
    commands, resume = runs(place, {"full": f"{case['full']} --shard"}), [["--resume", str(place / "full")]]
    codes, output, errors = outcome(start(place, 2, commands, "signal 1 3"))
    assert codes == [143, 143], errors
    assert "stopped and saved; continue with" in output
    assert outcome(start(place, 1, resume, "signal 0 3"))[0] == [143]
    codes, _, errors = outcome(start(place, 2, resume, "signal 0 99"))
    assert codes == [0, 0], errors
    assert_equal_weights(place / "alone", place / "full")
    assert_equal_best(place / "alone/best", place / "full/best")


@minutes
def test_a_run_goes_on_without_torchrun(folder):
    place = folder / "left"
    commands = runs(place, {"lora": f"{LORA} --shard"})
    assert outcome(start(place, 2, commands, "signal 1 3"))[0] == [143, 143]
    in_one_process([["--resume", str(place / "lora")]])
    in_one_process(runs(folder / "unsharded", {"lora": LORA}))
    assert_equal_weights(folder / "unsharded/lora", place / "lora")


@minutes
def test_a_loss_that_is_not_finite_ends_all_ranks_by_one_line(folder):
    place = folder / "nan"
    codes, _, errors = outcome(start(place, 2, runs(place, {"lora": f"{LORA} --shard"}), "nan 1 3"))
    assert codes == [2, 2]
    assert errors.count("error: the loss is nan at epoch 1/4, step 3; the state before it is saved") == 1
    assert errors.count("error") == 1
    assert (place / "lora/state/state.safetensors").exists()


@minutes
@pytest.mark.parametrize(
    ("kind", "own"), [("memory", "error: out of memory"), ("killed", "error: rank 0 ends because another rank ended")]
)
def test_a_rank_that_fails_ends_all(folder, kind: str, own: str):
    place = folder / kind
    codes, _, errors = outcome(start(place, 2, runs(place, {"lora": f"{LORA} --shard"}), f"{kind} 1 3"))
    assert codes == [2, -9 if kind == "killed" else 2]
    assert own in errors
    assert "Traceback" not in errors
