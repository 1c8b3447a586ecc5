"""Stores an experiment in a run folder: options, log, checkpoints and result.

runs/<name>/config.json   options, origins, command, commit, versions, device, SHA-256 of data and frozen weights,
                          agents of torchrun (data/jobs.py)
            log.jsonl     one event a line; `epoch` events contain train_acc and, if reviews were held out, val_acc
            tokenizer/    the tokenizer
            best/         the model or adapter of the best epoch, or of the last if none were held out
            .best/EPOCH   the next best/, until the state of its epoch is saved
            state/        the state to resume from, and the one before it
            result.json   written when the run is finished: config.json, history and scores
            validation.probabilities.safetensors, test.probabilities.safetensors    of best/
            calibration.json   the temperature fitted on the validation reviews, written by eval.py
            teacher.npy   logits of the teacher for the reviews of the training, with --loss distill
            .lock         locked while a process trains the run (data/locks.py)

A checksum shows a change of config.json, tokenizer/, best/, of the state, and of the log up to the state. A damaged
state is replaced by the one before it, a damaged log by the history in the state.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.checked import about, as_object, check_types, listed, parse_json, read_json, read_object, show
from data.checksums import SUMS, check_checksums, read_sealed_tensors, seal, unseal, write_sealed_tensors
from data.cleaning import has_surrogate
from data.errors import printable
from data.files import (
    discard,
    in_shell,
    make_folder,
    remove_abandoned,
    temporary_paths,
    write_json,
    write_tensors,
    write_text,
)
from data.hub import BUILTIN_SINCE
from data.kept_predictions import WITHOUT, Predictions, read_predictions
from data.locks import FILE as LOCK
from data.locks import FolderLock

ROOT = Path(__file__).parent.parent
FORMAT = 2  # of config.json: 2 has a checksum
OLD_STATE = frozenset({"format", "progress"})  # metadata of a state from before there were checksums
RESTORE = "restore it, or start another run"  # the way out for a damaged config.json
LONG = 60.0  # seconds of preparation after which a tokenizer is kept when the start fails
PACKAGES = ("torch", "numpy", "pandas", "beautifulsoup4", "safetensors", "tokenizers")
COUNTS = ("epoch", "step", "best_epoch", "log_bytes")  # numbers of a saved progress that are not negative
# what Training.save and Run.save_state write
PROGRESS: dict[str, Any] = dict.fromkeys((*COUNTS, "num_splits", "pieces"), int) | {
    "best": float, "seconds": float, "history": list[dict[str, Any]], "validation": dict[str, Any] | None,
    "sums": dict[str, float] | None, "scaler": dict[str, Any], "options": dict[str, Any], "run": str, "log_sha256": str,
}  # fmt: skip
# of config.json, as far as they are read without `resolve`
CONFIG: dict[str, Any] = {
    "command": str, "started": str, "files": dict[str, str], "backbone": dict[str, str], "agents": list[str],
    "labels": list[str] | None, "options": dict[str, Any],
}  # fmt: skip


def command_line() -> str:
    """Returns the command of this process, quoted for a shell."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def git(*arguments: str) -> str:
    """Returns the output of a git command in the project's folder, "" without git or without a repository."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the runtime packages."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def check_files(before: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """Raises ValueError if a data file of a run changed or was added since the run started, and FileNotFoundError if
    one no longer exists.

    before, now: path, or `demo` for the built-in reviews -> SHA-256. Test reviews may be added: they do not change the
    training. Runs of older versions have no digest of the built-in reviews.
    """
    before, now = dict(before), dict(now)
    built_in = (before.pop("demo", None), now.pop("demo", None))
    if None not in built_in and built_in[0] != built_in[1]:
        way_out = "check out the commit in its config.json, start a new run, or score the new ones: eval.py --data demo"
        raise ValueError(f"the built-in reviews changed since {folder} was started; {way_out}")
    for path, digest in before.items():
        if path in now and now[path] != digest:
            way_out = "restore it, start a new run, or score the new file with eval.py --data"
            raise ValueError(f"{path} changed since {folder} was started; {way_out}")
    if missing := [path for path in before.keys() - now.keys() if not Path(path).exists()]:
        way_out = "restore it, or score other reviews with eval.py --data"
        raise FileNotFoundError(f"{min(missing)}, a data file of {folder}, does not exist; {way_out}")
    if added := [path for path in now.keys() - before.keys() if "test" not in Path(path).name.lower()]:
        raise ValueError(f"{min(added)} was added since {folder} was started; move it away, or start a new run")


def check_digests(before: dict[str, str], now: dict[str, str]) -> None:
    """Raises ValueError if a file has a digest that was not recorded before. before, now: path -> SHA-256"""
    changed = [path for path, digest in now.items() if before and digest not in before.values()]
    if changed := [path for path in changed if path != "demo" or path in before]:  # an older version did not record it
        raise ValueError(f"{min(changed)} changed since the run was started")


def read_progress(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Returns the progress of a state file. Raises ValueError if it lacks the length of the log, and for a value of
    another type or outside its range."""
    with about(path, "is damaged"):
        progress = as_object(parse_json(metadata.get("progress", "{}"), "its progress", ""), "its progress")
        if "log_bytes" not in progress:
            raise ValueError("its progress has no log_bytes")
        check_types(progress, PROGRESS)
        least = dict.fromkeys(COUNTS, 0) | {"num_splits": 1, "pieces": 1}
        if below := [name for name, bound in least.items() if progress.get(name, bound) < bound]:
            raise ValueError(f"{below[0]} of its progress is {progress[below[0]]}")
    return progress


def is_supervised(result: dict[str, Any]) -> bool:
    """Returns whether a finished run learned from labels: it has a validation accuracy, or no validation reviews."""
    without = result.get("options", {}).get("train_on_validation", False)
    return without or "accuracy" in (result.get("validation") or ())


class Run:
    """Reads and writes a run folder.

    Every file except the log is replaced atomically. On resuming, the log is truncated to its length when the state was
    saved.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name  # in tables, warnings and pictures
        self.row = ""  # of data/results, which it is a seed of
        self.config_file = self.folder / "config.json"
        self.best, self.tokenizer = self.folder / "best", self.folder / "tokenizer"
        self.next_best = self.folder / ".best"  # becomes best/ when the state of its epoch is saved
        self.state_file = self.folder / "state" / "state.safetensors"
        self.state_before = self.folder / "state" / "before.safetensors"
        self.log_file = self.folder / "log.jsonl"
        self.cache = self.folder.parent / ".cache"  # cleaned text and token ids, shared by all runs in the same folder
        self.owned: FolderLock | None = None
        self.created: float | None = None  # when this process created the folder, in seconds of the monotonic clock

    @classmethod
    def create(cls, folder: str | Path, config: dict[str, Any]) -> "Run":
        """Creates a run folder with `config`, command, commit and versions in config.json, and an empty log.

        The run is locked until `release`. Raises ValueError if a run of that name exists, and for a folder with other
        files.
        """
        run = cls(folder)
        words = [str(run.folder), *sys.argv, *(str(value) for value in config.get("options", {}).values())]
        if wrong := next((word for word in words if has_surrogate(word)), None):
            raise ValueError(f"{show(wrong)} is not UTF-8, as config.json has to be; rename it")
        make_folder(run.folder, "choose another --name or --runs")
        found = [path.name for path in run.folder.iterdir()]
        if "config.json" not in found and (others := [name for name in found if not name.startswith(".")]):
            raise ValueError(f"{folder} is no run and holds {listed(others, 3)}; choose another --name")
        empty = set(found) <= {LOCK}
        run.lock()
        if (run.folder / "config.json").exists():
            run.release()
            raise ValueError(f"{folder} exists; continue with --resume {in_shell(folder)}, or choose another --name")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
        head = {"format": FORMAT, "command": command_line(), "started": now, **origin, "versions": versions()}
        write_json(run.folder / "config.json", seal(head | config))
        write_text(run.log_file, "")
        run.created = time.monotonic() if empty else None
        _ = run.identity
        return run

    def discard(self) -> bool:
        """Removes the folder of a start that failed, so that the corrected command can take the same name.

        It is removed only if this process created it, no event was logged, and it holds nothing but config.json and a
        tokenizer that was prepared within a minute. Returns whether it was removed.
        """
        if self.created is None or self.log_file.stat().st_size:
            return False
        names = {path.name for path in self.folder.iterdir()} - {"config.json", "log.jsonl", LOCK}
        if names - {"tokenizer"} or (names and time.monotonic() - self.created > LONG):
            return False
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        self.log_file.unlink()
        (self.folder / "config.json").unlink()  # the last one: before it, the run could be resumed
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            (self.folder / LOCK).unlink()
            self.folder.rmdir()
        return True

    def lock(self) -> None:
        """Locks the run for this process, and removes temporary files of killed processes, also from the cache.

        Raises ValueError if another process has the lock, and if a part of the run is a link, or a file instead of a
        folder. Through a link, a run of unknown origin would change files elsewhere.
        """
        if links := sorted(path for path in self.folder.iterdir() if path.is_symlink()):
            raise ValueError(
                f"{show(links[0])} is a link, through which the run would change files elsewhere; replace it by a copy"
            )
        for folder in (self.state_file.parent, self.best, self.tokenizer):
            if os.path.lexists(folder) and not folder.is_dir():
                raise ValueError(f"{folder} is not a folder; restore it, or choose another --name")
        self.owned = FolderLock(self.folder)
        for path in temporary_paths(self.folder, ".*.tmp"):
            discard(path)
        remove_abandoned(self.cache)

    def release(self) -> None:
        """Unlocks the run."""
        if self.owned is not None:
            self.owned.release()

    @classmethod
    def of_weights(cls, weights: str) -> "Run | None":
        """Returns the run whose best model the folder `weights` is, runs/NAME/best; None for other weights."""
        run = cls(Path(weights).parent)
        return run if run.log_file.is_file() and Path(weights).name == run.best.name else None

    @classmethod
    def open(cls, folder: str | Path, flag: str = "--run") -> "Run":
        """Opens an existing run folder. flag: names it on the command line.

        Raises FileNotFoundError if it has no config.json, and for a folder within a run; ValueError for a checkpoint.
        """
        run = cls(folder)
        if not run.log_file.is_file():
            for parent in run.folder.parents[:2]:
                if (parent / "config.json").is_file() and (parent / "log.jsonl").is_file():
                    raise FileNotFoundError(f"{folder} is inside the run {parent}; give {flag} {in_shell(parent)}")
        if not (run.folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is not a run folder: it has no config.json")
        if "model_type" in read_object(run.folder / "config.json", RESTORE):
            raise ValueError(f"{folder} is a checkpoint, not a run folder; --weights {in_shell(folder)} uses it")
        return run

    def is_of_job(self, agents: list[str]) -> bool:
        """Returns whether this command in a torchrun job with these agents started the run (data/jobs.py)."""
        config = self.config
        return not set(agents).isdisjoint(config.get("agents", ())) and config["command"] == command_line()

    def record_agents(self, agents: list[str]) -> None:
        """Adds the agents of the torchrun job that continues the run to those in config.json."""
        config = self.config
        before = config.get("agents", [])
        if joined := [agent for agent in agents if agent not in before]:
            write_json(self.folder / "config.json", seal(config | {"agents": before + joined}))

    def record_data(self, labels: tuple[str, ...], files: dict[str, str]) -> None:
        """Records the class names and the digests of the data files in config.json; if recorded before, compares them.

        files: absolute path -> SHA-256. Raises ValueError that names the file that changed.
        """
        config = self.config
        if "files" not in config:
            write_json(self.folder / "config.json", seal(config | {"labels": list(labels), "files": files}))
            return
        check_files(config["files"], files, self.folder)

    def record_backbone(self, digests: dict[str, str]) -> None:
        """Records the digests of the frozen backbone's files in config.json; if recorded before, compares them.

        digests: name -> SHA-256. Raises ValueError that names a file that changed.
        """
        config = self.config
        if "backbone" not in config:
            write_json(self.folder / "config.json", seal(config | {"backbone": digests}))
        elif changed := self.changed_backbone(digests):
            raise ValueError(f"{changed}, of the frozen weights, changed since {self.folder} was started; restore it")

    def changed_backbone(self, digests: dict[str, str]) -> str:
        """Returns the name of a file of the backbone whose digest was not recorded in training, "" if there is none."""
        before = self.config.get("backbone", {}).values()
        return next((name for name, digest in digests.items() if before and digest not in before), "")

    def predates_builtin(self) -> bool:
        """Returns whether the run is older than the present built-in weights, whose digests it did not record."""
        started = self.config.get("started")
        return "backbone" not in self.config and isinstance(started, str) and started < BUILTIN_SINCE

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Returns the class names of the run's data; None for runs that did not record them."""
        names = self.config.get("labels")
        return None if names is None else tuple(names)

    @property
    def config(self) -> dict[str, Any]:
        """Reads config.json. Raises ValueError if it changed, and for a value of another type."""
        path = self.folder / "config.json"
        config = read_object(path, RESTORE)
        config = unseal(config, path) if "sha256" in config or "format" in config else config
        with about(path):
            check_types(config, CONFIG)
        return config

    @functools.cached_property
    def identity(self) -> str:
        """The time and the command with which the run was started.

        They are read once, so that a later edit of config.json does not end a training.
        """
        return f"{self.config.get('started')}: {self.config.get('command')}"

    @property
    def result(self) -> dict[str, Any] | None:
        """Reads result.json, None before the run is finished."""
        path = self.folder / "result.json"
        return read_object(path, "delete it: --resume then scores again") if path.exists() else None

    @property
    def cache_to_score(self) -> Path | None:
        """The cache, None if it cannot be written: a run in a read-only folder is scored without one."""
        writable = self.cache if self.cache.exists() else self.cache.parent
        return self.cache if os.access(writable, os.W_OK) else None

    def log(self, event: str, **values: Any) -> None:
        """Appends one event to the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def save_probabilities(self, split: str, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Keeps the probabilities of a split, fp32 [N, C], and its labels, int64 [N], in the order of the split."""
        tensors = {"probabilities": torch.from_numpy(probabilities), "labels": torch.from_numpy(labels)}
        write_tensors(self.folder / f"{split}.probabilities.safetensors", tensors)

    def predictions(self, split: str) -> Predictions | None:
        """Returns what save_probabilities kept of a split; None if there is nothing."""
        path = self.folder / f"{split}.probabilities.safetensors"
        kept = read_predictions(path) if path.exists() else None
        if kept is not None and kept.probabilities.dtype == np.uint8:
            raise ValueError(f"{path} is rounded as published rows are; {WITHOUT[split]}")
        labels = self.config.get("labels")
        if kept is not None and labels and kept.probabilities.shape[1] != len(labels):
            found = f"probabilities of {kept.probabilities.shape[1]} classes, but the run has {len(labels)}"
            raise ValueError(f"{path} has {found}; {WITHOUT[split]}")
        return kept

    def save_calibration(self, facts: dict[str, Any]) -> None:
        """Keeps the temperature and what it was fitted on in calibration.json, unless the folder is read-only."""
        path, kept = self.folder / "calibration.json", None
        with contextlib.suppress(OSError, ValueError):  # a missing or damaged file is written anew
            kept = read_json(path)
        if kept != facts and os.access(self.folder, os.W_OK):
            write_json(path, facts)

    # ------------------------------------------------------------------------------------------------------- state

    def save_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Saves tensors, progress (JSON values) and the length and digest of the log, atomically.

        The log reaches the disk first. The state before is kept.
        """
        with self.log_file.open("rb+") as log:
            os.fsync(log.fileno())
            content = log.read()
        facts = {"log_bytes": len(content), "log_sha256": hashlib.sha256(content).hexdigest()}
        facts["run"] = self.identity
        if self.state_file.exists():
            self.state_file.replace(self.state_before)
        write_sealed_tensors(self.state_file, tensors, {"progress": json.dumps(progress | facts)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns the saved (tensors, progress). `restore_log` then sets the log back to that moment.

        A damaged state is replaced by the one before it, which is printed. Returns None and empties the log if no state
        was saved yet. Raises ValueError if no saved state can be read and for that of another run, and
        FileNotFoundError if there is none although an epoch ended.
        """
        problem = ""
        for path in (path for path in (self.state_file, self.state_before) if path.exists()):
            try:
                tensors, metadata = read_sealed_tensors(path, OLD_STATE)
                progress = read_progress(path, metadata)
            except ValueError as error:
                problem = str(error)
                print(f"warning: {printable(problem)}; trying the state before it")
                continue
            if progress.get("run", self.identity) != self.identity:
                raise ValueError(
                    f"{path} is the state of another run ({show(progress['run'], 300)}); restore that of this run"
                )
            if problem:  # so that the next state does not push the readable one out
                self.state_file.unlink(missing_ok=True)
            return tensors, progress
        if problem:
            raise ValueError(f"{problem}; no other state of {self.folder} can be read: start again with another --name")
        if self.best.exists():
            way_out = "restore it, use best/ with eval.py, or start again with another --name"
            raise FileNotFoundError(f"{self.state_file} is missing, although {self.best} exists; {way_out}")
        self.log_file.write_text("", encoding="utf-8")
        return None

    def problem_of_best(self, epoch: int) -> str:
        """Returns why best/ cannot be used, "" if it can or if there was none yet. epoch: of the saved state"""
        try:
            if epoch and not self.best.is_dir():
                raise FileNotFoundError(f"{self.best} is missing")
            check_checksums(self.best)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def keep_best(self, epoch: int) -> None:
        """Replaces best/ by the model of an epoch that was saved beside it, if that is complete. Removes any other.

        If the process is killed before this call, best/ is that of an earlier epoch; a resumed run repeats the call.
        """
        old, new = self.folder / ".best-before", self.next_best / f"{epoch}"
        if (new / SUMS).is_file():
            if self.best.exists():
                shutil.rmtree(old, ignore_errors=True)
                self.best.rename(old)
            new.rename(self.best)
        elif old.exists() and not self.best.exists():
            old.rename(self.best)
        for folder in (old, self.next_best):
            shutil.rmtree(folder, ignore_errors=True)

    def restore_log(self, progress: dict[str, Any]) -> None:
        """Sets the log back to the moment of a state. If its content is lost, it is written from the history."""
        content = self.log_file.read_bytes() if self.log_file.exists() else b""
        content, size = content[: progress["log_bytes"]], progress["log_bytes"]
        digest = progress.get("log_sha256", hashlib.sha256(content).hexdigest())
        if self.log_file.exists() and len(content) == size and hashlib.sha256(content).hexdigest() == digest:
            os.truncate(self.log_file, size)
            return
        self.rewrite_log(progress.get("history", ()))

    def has_sound_log(self) -> bool:
        """Returns whether each line of the log is a JSON object."""
        try:
            lines = self.log_file.read_text(encoding="utf-8").splitlines()
            return all(isinstance(json.loads(line), dict) for line in lines)
        except (FileNotFoundError, ValueError):
            return False

    def rewrite_log(self, history: Iterable[dict[str, Any]]) -> None:
        """Replaces a damaged log by the epochs of a history."""
        print(f"warning: {self.log_file} is damaged; its epochs are written again, its steps are lost")
        events = ({"event": "epoch", **record} for record in history)
        write_text(self.log_file, "".join(json.dumps(event) + "\n" for event in events))
