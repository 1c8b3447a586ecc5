"""Tests that several ranks compute the loss and the gradients of one process, and train the same weights.

Those that take minutes run with `RANKS=1 python -m pytest -n0 tests/test_distributed.py`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ranks_worker
import torch
from conftest import ROOT, free_port, tiny, tiny_weights
from processes import Program, run_script
from ranks_worker import CASES, LENGTHS, all_cases, train_all
from safetensors.torch import load_file

import train
from data import ranks
from data.checksums import file_digest
from data.corpus import Corpus
from data.errors import clean_exit
from data.ranks import FRESH_STORE, share_bounds
from data.resolve import resolve
from data.runs import Run
from data.tokenization import load_tokenizer
from data.windows import Truncation
from eval import main as evaluate
from nn.runtime import Machine
from peft import scoring
from peft.classifier import Scorer

minutes = pytest.mark.skipif("RANKS" not in os.environ, reason="takes minutes: RANKS=1")
TOLERANCE = 1e-6  # of fp32 sums in another order, relative to the largest gradient; of losses and weights
SHAPE = ["--shape", "hidden_size=32 num_layers=2 num_heads=2 feed_forward_size=64"]
BOTH = "--model bert --precision fp32 --dropout 0 --runs {folder}"
REVIEWS = "--data demo --train-reviews 64 --validation-reviews 50 --test-reviews 50"
TUNE = f"{BOTH} {REVIEWS} --weights {{weights}} --classifier-dropout 0 --batch-size 13 --epochs 4"  # 20 steps
LORA = f"{TUNE} --peft lora"
PRETRAIN = f"{BOTH} --data {{text}} --max-length 24 --vocab-size 200 --epochs 1 --batch-size 15"  # 20 steps
WORDS = "--precision fp32 --runs {folder} --data {text} --max-length 24 --epochs 1 --batch-size 15"
FAST = {"lora": f"{LORA} --average 0.9"}
DRAWN = {"mlm": f"{PRETRAIN} --loss mlm", "rtd": f"{PRETRAIN} --loss rtd"}
DRAWN |= {"tv": f"{WORDS} --model cnn --loss tv --skipped-words 2"}
SLOW = {
    "accumulated": f"{LORA} --accumulation 2 --average 0.9",
    "supcon": f"{LORA} --loss supcon",
    "ce": f"{TUNE} --adam-epsilon 1e-4",  # a key bias has no gradient but rounding errors, which Adam scales up
    "rdrop": f"{LORA} --loss rdrop",
    "rdrop_supcon": f"{LORA} --loss rdrop_supcon",
    "adversarial": f"{LORA} --loss adversarial",
    # with seed 42 one activation near half a level is rounded to another one, which changes a loss by 8e-6
    "int8": f"{LORA} --quantize int8 --seed 43",
    "prefix": f"{TUNE} --peft prefix",
    "distill": f"{LORA} --loss distill",
    "lm": f"{WORDS} --model lstm --loss lm --dropout 0",
    "gradual": f"{TUNE} --unfreeze gradual --adam-epsilon 1e-4",
    "weighted accumulated": f"{LORA} --class-weights balanced --accumulation 3",
}


def runs(folder: Path, cases: dict[str, str]) -> list[list[str]]:
    """Returns the arguments of train.py of each case, for runs in a folder."""
    places = {"folder": folder, "weights": folder.parent / "weights", "text": folder.parent / "toy.txt"}
    lists = {name: [*text.format(**places).split(), "--name", name] for name, text in cases.items()}
    return [words + (SHAPE if "--vocab-size" in words else []) for words in lists.values()]


def start(folder: Path, count: int, commands: list[list[str]], fault: str = "") -> list[Program]:
    """Starts the worker as `count` ranks."""
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(commands))
    port = free_port()
    return [Program(ranks_worker.main, folder, n, count, port, fault) for n in range(count)]


def outcome(started: Sequence[Program | subprocess.Popen]) -> tuple[list[int], str, str]:
    """Returns the exit codes, the output of rank 0, and the errors of all ranks."""
    try:
        texts = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return [process.returncode for process in started], texts[0][0], "".join(errors for _, errors in texts)


def computed(folder: Path, count: int, cases: dict[str, str]) -> list[dict[str, torch.Tensor]]:
    """Trains the cases with `count` ranks in a folder. Returns what each rank computed of `all_cases`."""
    codes, _, errors = outcome(start(folder, count, runs(folder, cases)))
    assert codes == [0] * count, errors
    return [load_file(folder / f"{number}.safetensors") for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the weights and the text of all runs."""
    path = tmp_path_factory.mktemp("ranks")
    tiny_weights(path / "weights")
    numbers = np.random.default_rng(0).integers(1, 99, 300)
    (path / "toy.txt").write_text("\n".join(f"the cat {n} sat on" + " the mat" * (n % 5) for n in numbers))
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Returns what each of two ranks computed; they also train FAST."""
    return computed(folder / "two", 2, FAST)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Returns the folder of the runs FAST of one process."""
    (folder / "one").mkdir()
    in_one_process(runs(folder / "one", FAST))
    return folder / "one"


def in_one_process(commands: list[list[str]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_all(commands)
    torch.set_num_threads(threads)


def assert_equal_runs(first: Path, second: Path, tolerance: float = TOLERANCE) -> None:
    """Compares the logged losses of all steps, the validation metrics, and the weights after the last step."""
    assert all((run / "result.json").exists() for run in (first, second))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (first, second)]
    steps = [[event["loss"] for event in log if event["event"] == "step"] for log in logs]
    if "accumulated" not in first.name:  # there the loss is the last pass's in one process, the step's with ranks
        assert steps[0] == pytest.approx(steps[1], rel=tolerance, abs=tolerance * 2)
    epochs = [[event for event in log if event["event"] == "epoch"] for log in logs]
    for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
        assert [e[name] for e in epochs[0]] == pytest.approx([e[name] for e in epochs[1]], rel=tolerance, abs=tolerance)
    assert_equal_weights(first, second, tolerance)


def assert_equal_weights(first: Path, second: Path, tolerance: float = TOLERANCE) -> None:
    """Compares the weights, and their averages, after the last step."""
    states = [load_file(run / "state/state.safetensors") for run in (first, second)]
    weights = [name for name in states[0] if name.startswith(("model.", "average."))]
    assert weights
    for name in weights:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=tolerance, msg=name)


def assert_equal_gradients(
    found: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor], prefix: str
) -> None:
    """Compares the loss and all gradients of a case: those of rank 0 with the expected ones, and with rank 1."""
    names = [name for name in expected if name.startswith(prefix)]
    assert names
    largest = max(expected[name].abs().max().item() for name in names)
    for name in names:
        torch.testing.assert_close(
            found[0][name], expected[name], rtol=TOLERANCE, atol=TOLERANCE * max(1.0, largest), msg=name
        )
        assert torch.equal(found[0][name], found[1][name])


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return all_cases()


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_one_process(found, expected, case: str, kind: str):
    assert_equal_gradients(found, expected, f"{case}/{kind}/")


def test_ranks_have_the_same_parameters_with_gradients(found, expected):
    assert found[0].keys() == found[1].keys() == expected.keys()


@pytest.mark.usefixtures("found")
def test_the_backward_pass_sends_buckets(folder):
    assert max(json.loads((folder / "two" / "0.early.json").read_text())) > 2


def test_shared_scores_equal_one_process_to_the_last_digit(found, expected):
    assert all(torch.equal(rank["scores"], expected["scores"]) for rank in found)


@minutes
def test_three_ranks_compute_the_same_scores_gradients_and_weights(expected, alone, folder):
    ranks = computed(folder / "three", 3, FAST)
    assert all(torch.equal(rank["scores"], expected["scores"]) for rank in ranks)
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=10 * TOLERANCE, atol=10 * TOLERANCE, msg=name)
    assert_equal_runs(alone / "lora", folder / "three/lora")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_row_has_one_rank_and_ranks_are_even_in_tokens(count: int):
    lengths = np.sort(np.random.default_rng(0).integers(1, 200, 23))
    bounds = [share_bounds(lengths, number, count) for number in range(count)]
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(23))
    assert max(lengths[start:stop].sum() for start, stop in bounds) <= lengths.sum() / count + lengths.max()


@pytest.mark.parametrize("case", FAST)
def test_twenty_steps_equal_one_process(found, folder, alone, case: str):
    assert_equal_runs(alone / case, folder / "two" / case)


def test_the_cases_that_take_minutes_are_possible_commands(folder):
    for command in runs(folder / "slow", SLOW):
        resolve(command, train.TABLES)


@minutes
def test_more_cases_equal_one_process(folder):
    computed(folder / "slow2", 2, SLOW)
    in_one_process(runs(folder / "slow1", SLOW))
    for case in SLOW:
        assert_equal_runs(folder / "slow1" / case, folder / "slow2" / case)


@minutes
@pytest.mark.parametrize("case", DRAWN)
def test_numbers_drawn_for_a_batch_do_not_depend_on_the_number_of_ranks(folder, case: str):
    """One process draws them from the generator of dropout instead, so that the reference is one rank of torchrun."""
    for count in (1, 2, 4):
        computed(folder / f"drawn{count}", count, {case: DRAWN[case]})
    assert_equal_runs(folder / "drawn1" / case, folder / "drawn2" / case)
    assert_equal_runs(folder / "drawn1" / case, folder / "drawn4" / case)


@minutes
def test_a_run_goes_on_with_another_number_of_ranks(alone, folder):
    """2 ranks stop after a signal to one of them, one process goes on and stops, 4 ranks finish."""
    place = folder / "resumed"
    codes, output, errors = outcome(start(place, 2, runs(place, FAST), "signal 1 3"))
    assert codes == [143, 143], errors
    assert "stopped and saved; continue with" in output
    resume = [["--resume", str(place / "lora")]]
    assert outcome(start(place, 1, resume, "signal 0 3"))[0] == [143]
    codes, _, errors = outcome(start(place, 4, resume))
    assert codes == [0] * 4, errors
    assert_equal_weights(alone / "lora", place / "lora")


@minutes
def test_a_loss_that_is_not_finite_ends_all_ranks_by_one_line(folder):
    place = folder / "nan"
    codes, _, errors = outcome(start(place, 2, runs(place, FAST), "nan 1 3"))
    assert codes == [2, 2]
    assert errors.count("error: the loss is nan at epoch 1/4, step 3; the state before it is saved") == 1
    assert errors.count("error") == 1
    assert (place / "lora/state/state.safetensors").exists()


@minutes
def test_out_of_memory_on_one_rank_splits_the_passes_of_all(alone, folder):
    place = folder / "memory"
    codes, output, errors = outcome(start(place, 2, runs(place, FAST), "memory 1 3"))
    assert codes == [0, 0], errors
    assert output.count("warning: out of memory; from here on each forward pass is split into 2") == 1
    assert_equal_weights(alone / "lora", place / "lora")


@minutes
def test_out_of_memory_that_cannot_be_split_ends_all_ranks(folder):
    place = folder / "stop"
    commands = [[*command, "--out-of-memory", "stop"] for command in runs(place, FAST)]
    codes, _, errors = outcome(start(place, 2, commands, "memory 1 3"))
    assert codes == [2, 2]
    assert errors.startswith("error: out of memory")
    assert errors.count("\n") == 1


@minutes
def test_ranks_end_when_another_was_killed(folder):
    place = folder / "killed"
    codes, output, errors = outcome(start(place, 2, [[*runs(place, FAST)[0], "--save-minutes", "0"]], "killed 1 3"))
    assert codes == [2, -9]
    assert errors == "error: rank 0 ends because another rank ended\n"
    assert "another --name starts a new one" in output


@minutes
def test_torchrun_restarts_after_a_killed_rank(alone, folder):
    place = folder / "restarted"
    place.mkdir()
    killer = place / "killer.py"
    killer.write_text(
        f"import os, sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import ranks_worker, train\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': ranks_worker.fail('killed', 1, 6)\n"
        "with train.ranks.leaving(), train.clean_exit(): train.main(sys.argv[1:])\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "--max-restarts", "1", str(killer), *runs(place, FAST)[0], "--save-minutes", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", FRESH_STORE: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_equal_weights(alone / "lora", place / "lora")
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)  # another job
    assert again.returncode == 1
    assert again.stderr.count(f"error: {place / 'lora'} exists; continue with --resume") == 2  # in both attempts
    assert again.stderr.count("failed (exitcode: 2)") == 2


@minutes
def test_a_machine_that_joins_costs_no_restart_and_no_error(alone, folder):
    """Two agents on this machine: the first trains 6 steps alone, and waits there for the second."""
    place = folder / "joined"
    place.mkdir()
    waiter, ready = place / "waiter.py", place / "ready"
    waiter.write_text(
        f"import os, pathlib, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        f"import train\nready = pathlib.Path({str(ready)!r})\ngradient, count = train.gradient, iter(range(1, 100))\n"
        "def waiting(t, *arguments):\n"
        "    if os.environ['WORLD_SIZE'] == '1' and next(count) == 6:\n"
        "        ready.touch()\n"
        "        while not t.interrupt.received: time.sleep(0.05)\n"
        "    return gradient(t, *arguments)\n"
        "train.gradient = waiting\n"
        "with train.ranks.leaving(), train.clean_exit(): train.main(sys.argv[1:])\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"]
    command = [*launcher, *meeting, "--rdzv-conf", "last_call_timeout=1", str(waiter), *runs(place, FAST)[0]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", FRESH_STORE: "1"}
    first = subprocess.Popen(command, env=environment, **pipes)
    while not ready.exists() and first.poll() is None:
        time.sleep(0.05)
    second = subprocess.Popen(command, env=environment, **pipes)
    codes, output, errors = outcome([first, second])
    assert codes == [0, 0], errors
    assert "error" not in errors
    assert "stopped and saved; continue with" in output
    assert_equal_weights(alone / "lora", place / "lora")
    assert len(Run.open(place / "lora").config["agents"]) == 2


def set_ranks(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Sets the variables of torchrun: rank, number of ranks, and port of rank 0."""
    for name, value in zip(("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"), (*values, "localhost"), strict=True):
        monkeypatch.setenv(name, value)


def start_lonely_rank(monkeypatch: pytest.MonkeyPatch, joining: float) -> tuple[Program, str]:
    """Starts one of two ranks, which waits for the other for `joining` seconds. Returns it, and the line it prints."""
    port = str(free_port())
    set_ranks(monkeypatch, "1", "2", port)
    return Program(ranks_worker.join, joining), f"waiting for 2 ranks at localhost:{port}\n"


def test_a_missing_rank_ends_the_wait_for_it_by_one_line(monkeypatch: pytest.MonkeyPatch):
    started, line = start_lonely_rank(monkeypatch, joining=1.5)
    _, errors = started.communicate(timeout=60)
    problem = "not all 2 of them joined within 0.025 minutes"
    place = line.split()[-1]
    assert errors == f"{line}error: the ranks cannot be connected at {place}: {problem}\n"
    assert started.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_another_rank(number: int, monkeypatch: pytest.MonkeyPatch):
    started, line = start_lonely_rank(monkeypatch, joining=60)
    assert started.stderr.readline() == line
    started.send_signal(number)
    assert started.communicate(timeout=30)[1] == ""
    assert started.returncode == 128 + number


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = str(other.getsockname()[1])
        set_ranks(monkeypatch, "0", "2", port)
        with pytest.raises(ConnectionError, match=f"^the ranks cannot be connected at localhost:{port}: .*EADDRINUSE"):
            train.main(["--data", "demo", "--device", "cpu"])


@pytest.mark.parametrize(("number", "count"), [("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_rank_outside_of_the_number_of_ranks_is_refused(number: str, count: str, monkeypatch: pytest.MonkeyPatch):
    set_ranks(monkeypatch, number, count, "1")
    message = f"RANK {number} and WORLD_SIZE {count} do not fit: ranks are 0 to"
    with pytest.raises(ValueError, match=message), ranks.joined("cpu"):
        pass


@pytest.mark.parametrize("name", [*ranks.NUMBERS, "LOCAL_RANK"])
def test_a_variable_that_is_no_number_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    set_ranks(monkeypatch, "0", "1", "1")
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError, match=f"^the environment variable {name} is 'x', not a whole number; unset it$"):
        train.main(["--data", "demo", "--device", "cpu"])


@pytest.mark.parametrize("error", ["unknown flag --dta", "nowhere is not a run folder"])
def test_an_error_before_the_ranks_are_joined_is_reported_once(
    error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--dta", "demo"] if "flag" in error else ["--resume", "nowhere"]
    set_ranks(monkeypatch, "1", "2", "1")
    waits: list[float] = []
    monkeypatch.setattr(ranks.time, "sleep", waits.append)
    with pytest.raises(SystemExit) as stop, clean_exit():
        train.main(arguments)
    assert (stop.value.code, waits) == (2, [ranks.STOPPING])
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"error: rank 1: {error}")
    assert errors.count("\n") == 1
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit), clean_exit():
        train.main(arguments)
    assert capsys.readouterr().err.startswith(f"error: {error}")
    assert len(waits) == 1


REFUSED = "ranks share one --run, --data or --predict, without --explain or --plot; leave out torchrun"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--text", "good"], REFUSED),
        (["--compare", "a", "b"], REFUSED),
        (["--run", "a", "--merge", "b"], REFUSED),
        (["--run", "a", "b"], REFUSED),
        (["--data", "f.csv", "--explain"], REFUSED),
        (["--run", "a", "--plot", "r.png"], REFUSED),
        (["--predict", "-"], "--predict - can be read once, not by each rank; store it in a file"),
        (["--predict", "/dev/zero", "--out", "o.csv"], "--predict /dev/zero can be read once, .*"),
    ],
)
def test_eval_refuses_by_one_line_what_ranks_cannot_share(arguments, problem, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(ranks.time, "sleep", waits.append)
    for number in ("0", "1"):
        set_ranks(monkeypatch, number, "2", "1")
        with pytest.raises(ValueError, match=f"^(rank 1: )?{problem}$"):
            evaluate(arguments)
    assert waits == [ranks.STOPPING]  # of rank 1, which torchrun stops


def eval_with_ranks(count: int, *arguments: str) -> tuple[list[int], str, str]:
    """Runs eval.py as `count` ranks. Returns what `outcome` does."""
    port, started = str(free_port()), []
    for number in range(count):
        group = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "MASTER_PORT": port}
        command = [str(ROOT / "eval.py"), *arguments, "--device", "cpu", "--precision", "fp32"]
        started.append(Program(run_script, *command, MASTER_ADDR="localhost", **group))
    return outcome(started)


def test_eval_shares_out_reviews(alone: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    run, ten = str(alone / "lora"), folder / "ten.csv"
    labels = ["negative", "positive"] * 5
    lines = [f"{n},{label},a film {'with good actors ' * n}" for n, label in enumerate(labels)]
    ten.write_text("id,label,text\n" + "\n".join(lines) + "\n")
    evaluate(["--run", run, "--predict", str(ten), "--out", str(folder / "one.csv"), "--precision", "fp32"])
    expected = capsys.readouterr().out.replace("one.csv", "three.csv")
    arguments = ["--run", run, "--predict", str(ten), "--out", str(folder / "three.csv")]
    codes, output, errors = eval_with_ranks(3, *arguments)
    assert (codes, errors.count("error")) == ([0, 0, 0], 0)
    assert output == expected
    assert (folder / "three.csv").read_text() == (folder / "one.csv").read_text()


def test_an_error_of_all_ranks_is_one_line(folder: Path):
    (folder / "empty.csv").write_text("text,label\n")
    codes, _, errors = eval_with_ranks(3, "--data", str(folder / "empty.csv"))
    assert codes == [2, 2, 2]
    assert errors.count("error: ") == 1
    assert "empty.csv contains no review" in errors


@minutes
def test_eval_scores_the_reviews_of_a_run_as_one_process(alone: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(["--run", str(alone / "lora"), "--precision", "fp32"])
    expected = capsys.readouterr().out
    codes, output, _ = eval_with_ranks(2, "--run", str(alone / "lora"))
    assert codes == [0, 0]
    assert output == expected


@pytest.mark.parametrize("first", [True, False])
def test_an_error_that_all_ranks_find_is_that_of_rank_0(first: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "is_first", lambda: first)
    with pytest.raises(ValueError if first else ranks.Ended):
        ranks.fail(ValueError("the same on all ranks"))


def test_ranks_with_different_texts_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "alone", lambda: False)
    monkeypatch.setattr(scoring, "gather", lambda value: [value, "10 0"])
    corpus = Corpus.from_rows([[1, 2]], [0], pad_id=0)
    with pytest.raises(ValueError, match=r"^the ranks read different texts"):
        scoring.score(tiny("bert"), corpus, Machine(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("equal", [True, False])
def test_ranks_with_different_models_are_refused(equal: bool, monkeypatch: pytest.MonkeyPatch):
    scorer = Scorer(tiny("bert"), load_tokenizer("builtin"), Machine(torch.device("cpu"), torch.float32), Truncation(8))
    scorer.is_compared = False  # as with several ranks
    monkeypatch.setattr(ranks, "gather", lambda value: [value, value if equal else "0" * 64])
    corpus = Corpus.from_rows([[1, 2]], [0], pad_id=0)
    if equal:
        assert scorer.logits(corpus, bar=False).shape == (1, 2)
    else:
        with pytest.raises(ValueError, match=r"^the ranks load different models; give them folders"):
            scorer.logits(corpus)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets the variables of a single rank, and destroys the group that it joins."""
    set_ranks(monkeypatch, "0", "1", str(free_port()))
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("step", ["read_data", "finish"])
@pytest.mark.parametrize("message", ["error: rank 0 ends because another rank ended\n", ""])
def test_rank_0_removes_the_folder_or_prints_how_to_continue_when_another_rank_failed(
    step: str,
    message: str,
    small_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """message: printed if the other rank was lost; a rank that failed prints its own."""

    def fail(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer") if message else ranks.Ended

    monkeypatch.setattr(train, step, fail)
    with pytest.raises(SystemExit) as stop, clean_exit():
        train.main([*small_run, "--epochs", "1", "--device", "cpu"])
    assert stop.value.code == 2
    output, errors = capsys.readouterr()
    assert errors == message
    assert Path("runs/small").exists() == (step == "finish")
    way_out = f"--resume {Path('runs/small').absolute()} continues the run, another --name starts a new one\n"
    assert output.endswith(f"small keeps what was done; {way_out}") == (step == "finish")


@pytest.mark.usefixtures("group")
def test_one_rank_reports_a_lost_rank(monkeypatch: pytest.MonkeyPatch):
    port = int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore("localhost", port, is_master=True, wait_for_workers=False)  # as torchrun has it
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with ranks.joined("cpu"):
        assert ranks.reports_lost_rank()
        with pytest.raises(ranks.Ended), ranks.naming_lost_ranks():
            raise torch.distributed.DistBackendError
    del store


@pytest.mark.parametrize(
    ("error", "why"),
    [("gloo: Timed out waiting 3ms for recv", "does not answer"), ("gloo: Connection closed", "ended")],
)
def test_a_rank_says_why_it_lost_another(error: str, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "alone", lambda: False)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    monkeypatch.setattr(ranks, "reports_lost_rank", lambda: True)
    with pytest.raises(ConnectionError, match=f"^rank 0 ends because another rank {why}$"), ranks.naming_lost_ranks():
        raise RuntimeError(error)


def test_a_machine_without_the_files_of_rank_0_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert ranks.problem_of_shared(path) is None
    written = file_digest(path)
    monkeypatch.setattr(ranks, "by_first", lambda _: written)
    path.unlink()
    late = threading.Timer(0.3, path.write_text, ["{}"])
    late.start()
    assert ranks.problem_of_shared(path) is None
    late.join()
    monkeypatch.setattr(ranks, "VISIBLE", 0)
    for content, found in (("[]", "another"), (None, "no")):
        path.unlink() if content is None else path.write_text(content)
        where = f"rank 0 on {socket.gethostname()} has {found} file {path}"
        assert (
            ranks.problem_of_shared(path) == f"{where}; all ranks need the same folders: --runs on a shared file system"
        )


def test_ranks_wait_half_an_hour_in_training_and_longer_before_and_after(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
):
    found: list[float] = []
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_set_pg_timeout", lambda t: found.append(t.seconds / 3600))
    ranks.set_timeout(ranks.TIMEOUT)  # without a group
    assert found == []
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "set_timeout", lambda t: found.append(t.seconds / 3600))
        train.main([*small_run, "--epochs", "1"])
    monkeypatch.setattr(ranks, "alone", lambda: False)
    ranks.set_timeout(ranks.STEP_TIMEOUT)
    assert found == [0.5, 2, 0.5]


def test_a_run_that_not_all_machines_see_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "problem_of_shared", lambda path: f"no {path}")
    with pytest.raises(ValueError, match=f"^no {tmp_path / 'x/config.json'}$"):
        train.main(["--data", "demo", "--device", "cpu", "--runs", str(tmp_path), "--name", "x"])
    assert not list(tmp_path.iterdir())
