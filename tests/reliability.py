"""Measures what is said about reliability, and writes data/results/reliability.json.

    IMDB_DIR=DIR python tests/reliability.py [--inputs 2000] [--kills 105] [formats kills signals bits pairs]

formats    damaged files of each format (tests/damage.py): tracebacks, hangs, more than 1 GiB
kills      SIGKILL at random moments of small runs of seven kinds, until they end; their final weights against those of
           a run that was not killed
signals    SIGINT, SIGTERM and SIGHUP at random moments of larger runs and of eval.py: seconds until the process ended
bits       single changed bits in files of a run and in caches: noticed, or without effect on what is read
pairs      two starts of one run at once: one is refused; two starts without a name: two folders

Each section that is run replaces its part of the file.
"""

import argparse
import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from conftest import tiny_weights
from damage import run_format
from damage_run import FORMATS
from safetensors.torch import load_file

import train
from data.checked import read_json
from data.checksums import check_checksums, read_sealed_tensors
from data.corpus import Corpus
from data.demo import reviews
from data.errors import clean_exit
from data.files import write_json
from data.imdb import read_reviews
from data.readers import Source
from data.runs import Run, git, versions

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "data" / "results" / "reliability.json"
SMALL = "--data demo --train-reviews 64 --validation-reviews 64 --epochs 3 --precision fp32"
MOST = 10  # kills of one run
KINDS = {
    "lstm": "--model lstm --shape hidden_size=12 --word-vectors none",
    "bert": "--model bert --weights WEIGHTS",
    "LoRA": "--model bert --weights WEIGHTS --peft lora",
    "prefix": "--model bert --weights WEIGHTS --peft prefix --virtual-tokens 4 --prefix-hidden 7",
    "pretraining": "--model bert --weights WEIGHTS --loss mlm",
    "accumulation": "--model bert --weights WEIGHTS --accumulation 3 --dropout 0.1",
    "averaged weights": "--model bert --weights WEIGHTS --peft lora --average 0.9",
}


# ---------------------------------------------------------------------------------------------------------- formats


def measure_formats(inputs: int, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """Reads `inputs` damaged files of each format. Forms of one format, `config bert` and `config lstm`, share them.

    names: the formats. The others keep the result that the file has.
    """
    sizes = Counter(name.split()[0] for name in FORMATS)
    for name in names:
        measured = run_format(name, FORMATS[name], -(-inputs // sizes[name.split()[0]]), seed)
        print(f"formats, {name}: {measured}", flush=True)
        found = read_json(RESULT).get("formats", {}).get("found", {}) if RESULT.exists() else {}
        found = {key: value for key, value in (found | {name: measured}).items() if key in FORMATS}
        store("formats", found, inputs)
    return found


def store(section: str, found: dict[str, Any], inputs: int) -> None:
    """Replaces a section of the result file."""
    result = read_json(RESULT) if RESULT.exists() else {}
    command = f"python tests/reliability.py --inputs {inputs} {section}"
    about = {"command": command, "commit": git("rev-parse", "HEAD"), "versions": versions()}
    write_json(RESULT, result | {section: {**about, "found": found}})


# ------------------------------------------------------------------------------------------------------------ kills


def fork(arguments: list[str], seconds: float | None = None) -> int | None:
    """Runs train.py in a forked child, and kills it after `seconds`. Returns its exit code, None if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(BaseException):
            train.main(arguments)
            code = 0
        os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of the last state and of the best model of a run."""
    files = [folder / "state/state.safetensors", *sorted((folder / "best").rglob("*.safetensors"))]
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def measure_kills(count: int, stream: random.Random) -> dict[str, Any]:
    """Kills runs of each kind until `count` kills have hit a running process."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        weights = tiny_weights(Path(work) / "weights")
        for kind, text in KINDS.items():
            options = f"{text} {SMALL} --save-minutes 0 --runs".replace("WEIGHTS", str(weights))
            arguments = [*options.split(), f"{work}/{kind}"]
            begin = time.perf_counter()
            if fork([*arguments, "--name", "whole"]) != 0:
                raise ValueError(f"{kind}: the run fails")
            usual, kills, differing = time.perf_counter() - begin, 0, 0
            whole = weights_of(Path(work) / kind / "whole")
            for number in range(100):
                run = Path(work) / kind / f"killed-{number}"
                kills += kill_until_finished(arguments, run, usual, stream)
                killed = weights_of(run)
                differing += sum(not equal(killed.get(name), whole.get(name)) for name in killed.keys() | whole.keys())
                if kills >= count / len(KINDS):
                    break
            found[kind] = {"kills": kills, "tensors": len(whole), "differing tensors": differing}
            print(f"kills, {kind}: {found[kind]}")
    return found


def kill_until_finished(arguments: list[str], run: Path, usual: float, stream: random.Random) -> int:
    """Starts and resumes a run, and kills it at random moments, MOST times at most, until it ends.

    Returns the number of kills.
    """
    kills = 0
    while not (run / "result.json").exists():
        resume = ["--resume", str(run)] if (run / "config.json").exists() else [*arguments, "--name", run.name]
        code = fork(resume, stream.uniform(0, usual) if kills < MOST else None)
        kills += code is None
        if code not in (None, 0):
            raise ValueError(f"exit code {code} after {kills} kills: {resume}")
    return kills


def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Returns whether both tensors exist and are equal."""
    return a is not None and b is not None and torch.equal(a, b)


# ---------------------------------------------------------------------------------------------------------- signals


def measure_signals(stream: random.Random, attempts: int = 6) -> dict[str, Any]:
    """Sends signals at random moments of commands on the whole data set. Returns the answer times by command."""
    imdb = os.environ["IMDB_DIR"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        weights = tiny_weights(Path(work) / "weights")
        commands = {
            "reading, cleaning, GloVe": ("train.py --model lstm --data IMDB --runs RUNS", 60.0),
            "training a tokenizer, tokenizing": ("train.py --model bert --weights none --data IMDB --runs RUNS", 40.0),
            "training": ("train.py --model bert --weights WEIGHTS --data demo --runs RUNS --epochs 100", 20.0),
            "predicting": ("eval.py --weights WEIGHTS --predict IMDB/labeledTrainData.tsv.gz --out RUNS.csv", 20.0),
        }
        for name, (command, longest) in commands.items():
            times, codes = [], []
            for number in range(attempts):
                paths = {"RUNS": f"{work}/{len(found)}-{number}", "IMDB": imdb, "WEIGHTS": str(weights)}
                arguments = fill(command, paths)
                seconds, code, err = interrupt(arguments, stream.uniform(3, longest), stream)
                times.append(seconds)
                codes.append(code)
                if "Traceback" in err:
                    raise ValueError(f"{name}: {err}")
            found[name] = {
                "signals": attempts,
                "slowest answer, s": round(max(times), 2),
                "exit codes": sorted(set(codes)),
            }
            print(f"signals, {name}: {found[name]}")
    return found


def fill(command: str, paths: dict[str, str]) -> list[str]:
    """Splits a command and replaces the words in capitals by paths."""
    return [re.sub("|".join(paths), lambda match: paths[match[0]], part) for part in command.split()]


def interrupt(arguments: list[str], after: float, stream: random.Random) -> tuple[float, int, str]:
    """Sends a command a signal after `after` seconds. Returns (seconds to its end, exit code, standard error)."""
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    begin = time.perf_counter()
    process.send_signal(stream.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
    _, err = process.communicate(timeout=120)
    return time.perf_counter() - begin, process.returncode, err


# ------------------------------------------------------------------------------------------------------------- bits


def measure_bits(count: int, stream: random.Random) -> dict[str, Any]:
    """Changes single bits of files of a run and of caches. Returns how many were noticed or had no effect."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()):
        weights = tiny_weights(Path(work) / "weights")
        train.main([*f"--model bert --weights {weights} --peft lora {SMALL} --runs {work} --name run".split()])
        run = Run.open(Path(work) / "run")
        table = Path(work) / "reviews.csv"
        table.write_text("id,review,label\n" + "".join(f"{i},{text},{y}\n" for i, (_, text, y) in enumerate(TEXTS)))
        source, cache = Source(data=str(table)), Path(work) / "cache"
        records = read_reviews(table, source, cache).records
        ids = Corpus.cached(cache / "ids.npy", lambda: [[1, 2, 3], [4, 5]] * 50, [0, 1] * 50, pad_id=0).ids.copy()
        readers: dict[str, tuple[Path, Callable[[], bool]]] = {
            "state": (run.state_file, lambda: notices(lambda: read_sealed_tensors(run.state_file))),
            "config.json": (run.folder / "config.json", lambda: notices(lambda: run.config)),
            "tokenizer": (run.tokenizer / "tokenizer.json", lambda: notices(lambda: check_checksums(run.tokenizer))),
            "best": (run.best / "adapter_model.safetensors", lambda: notices(lambda: check_checksums(run.best))),
        }
        for name, (path, noticed) in readers.items():
            found[name] = flip(path, noticed, count, stream)
        text_cache, ids_cache = next(cache.glob("*.jsonl")), cache / "ids.npy"
        found["cache of texts"] = flip(
            text_cache, lambda: read_reviews(table, source, cache).records == records, count, stream
        )
        found["cache of ids"] = flip(
            ids_cache,
            lambda: np.array_equal(
                Corpus.cached(ids_cache, lambda: [[1, 2, 3], [4, 5]] * 50, [0, 1] * 50, pad_id=0).ids, ids
            ),
            count,
            stream,
        )
    return found


TEXTS = [(key, text.replace(",", " "), label) for key, text, label in reviews("train")[:50]]


def notices(read: Callable[[], Any]) -> bool:
    """Returns whether a reader refuses a file."""
    try:
        read()
    except (ValueError, OSError):
        return True
    return False


def flip(path: Path, noticed: Callable[[], bool], count: int, stream: random.Random) -> dict[str, int]:
    """Changes `count` single bits of a file, one at a time, and restores it each time."""
    sound, total = path.read_bytes(), 0
    for _ in range(count):
        damaged, bit = bytearray(sound), stream.randrange(8 * len(sound))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        total += noticed()
        path.write_bytes(sound)
    return {"changed bits": count, "noticed or without effect": total}


# ------------------------------------------------------------------------------------------------------------ pairs


def measure_pairs(count: int) -> dict[str, Any]:
    """Starts runs in pairs at the same moment, with one name and without a name."""
    found = {
        "pairs with one name": count,
        "one refused": 0,
        "pairs without a name": count,
        "two folders": 0,
    }
    with tempfile.TemporaryDirectory() as work:
        weights = tiny_weights(Path(work) / "weights")
        for number in range(2 * count):
            name = ["--name", "same"] if number < count else []
            runs = Path(work) / str(number)
            arguments = [*f"--model bert --weights {weights} {SMALL} --epochs 1 --runs {runs}".split(), *name]
            command = [sys.executable, str(ROOT / "train.py"), *arguments]
            pair = [
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "12"
            ]
            ends = [(process.communicate()[1], process.returncode) for process in pair]
            if name:
                refused = [err for err, code in ends if code == 2 and len(err.splitlines()) == 1]
                found["one refused"] += sorted(code for _, code in ends) == [0, 2] and len(refused) == 1
            else:
                folders = [path for path in runs.iterdir() if (path / "result.json").is_file()]
                found["two folders"] += len(folders) == 2
    print(f"pairs: {found}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=105)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="read damaged files of these formats only")
    parser.add_argument("sections", nargs="*", default=["formats", "kills", "signals", "bits", "pairs"])
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    stream = random.Random(options.seed)
    measures: dict[str, Callable[[], Any]] = {
        "formats": lambda: measure_formats(options.inputs, options.seed, options.formats),
        "kills": lambda: measure_kills(options.kills, stream),
        "signals": lambda: measure_signals(stream),
        "bits": lambda: measure_bits(options.inputs, stream),
        "pairs": lambda: measure_pairs(10),
    }
    for section in options.sections:
        store(section, measures[section](), options.inputs)


if __name__ == "__main__":
    with clean_exit():
        main()
