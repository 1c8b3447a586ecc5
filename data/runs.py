"""Stores an experiment in a run folder: options, log, checkpoints and result.

runs/<name>/config.json   options, origins, command, commit, versions, device
            log.jsonl     one event a line; `epoch` events contain train_acc and val_acc
            tokenizer/    the tokenizer
            best/         the model or adapter of the best epoch
            state/        the state to resume from
            result.json   written when the run is finished: config.json, history and scores
"""

import datetime
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.checked import read_json
from data.files import open_tensors, write_json, write_tensors, write_text

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "numpy", "pandas", "beautifulsoup4", "safetensors", "tokenizers")


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
    """Raises ValueError if a data file of a run changed since the run started. Both: path -> SHA-256."""
    for path, digest in before.items():
        if path in now and now[path] != digest:
            way_out = "restore it, start a new run, or score the new file with eval.py --data"
            raise ValueError(f"{path} changed since {folder} was started; {way_out}")
    if missing := [path for path in before.keys() - now.keys() if not Path(path).exists()]:
        raise FileNotFoundError(f"{min(missing)}, a data file of {folder}, does not exist any more")


class Run:
    """Reads and writes a run folder.

    Every file except the log is replaced atomically. On resuming, the log is truncated to its length when the state was
    saved.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.best, self.tokenizer = self.folder / "best", self.folder / "tokenizer"
        self.state_file = self.folder / "state" / "state.safetensors"
        self.log_file = self.folder / "log.jsonl"
        self.cache = self.folder.parent / ".cache"  # cleaned text and token ids, shared by all runs in the same folder

    @classmethod
    def create(cls, folder: str | Path, config: dict[str, Any]) -> "Run":
        """Creates a run folder with `config`, command, commit and versions in config.json, and an empty log.

        Raises ValueError if a run of that name exists.
        """
        run = cls(folder)
        if (run.folder / "config.json").exists():
            raise ValueError(f"{folder} exists; go on with --resume {folder}, or choose another --name")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
        head = {"command": command_line(), "started": now, **origin, "versions": versions()}
        write_json(run.folder / "config.json", head | config)
        write_text(run.log_file, "")
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Opens an existing run folder. Raises FileNotFoundError if it has no config.json."""
        run = cls(folder)
        if not (run.folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is not a run folder: it has no config.json")
        return run

    def record_data(self, labels: tuple[str, ...], files: dict[str, str]) -> None:
        """Records the class names and the digests of the data files in config.json; if recorded before, compares them.

        files: absolute path -> SHA-256. Raises ValueError that names the file that changed.
        """
        config = self.config
        if "files" not in config:
            write_json(self.folder / "config.json", config | {"labels": list(labels), "files": files})
            return
        check_files(config["files"], files, self.folder)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Returns the class names of the run's data; None for runs that did not record them."""
        names = self.config.get("labels")
        return None if names is None else tuple(names)

    @property
    def config(self) -> dict[str, Any]:
        """Reads config.json."""
        return read_json(self.folder / "config.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """Reads result.json, None before the run is finished."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else None

    def log(self, event: str, **values: Any) -> None:
        """Appends one event to the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def save_probabilities(self, split: str, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Keeps the probabilities of a split, fp32 [N, C], and its labels, int64 [N], in the order of the split."""
        tensors = {"probabilities": torch.from_numpy(probabilities), "labels": torch.from_numpy(labels)}
        write_tensors(self.folder / f"{split}.probabilities.safetensors", tensors)

    def probabilities(self, split: str) -> np.ndarray | None:
        """Returns the probabilities that save_probabilities kept, fp32 [N, C]; None if there are none."""
        path = self.folder / f"{split}.probabilities.safetensors"
        if not path.exists():
            return None
        with open_tensors(path) as file:
            return file.get_tensor("probabilities").numpy()

    def save_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Saves tensors, progress (JSON values) and the length of the log, atomically."""
        progress = progress | {"log_bytes": self.log_file.stat().st_size}
        write_tensors(self.state_file, tensors, metadata={"format": "pt", "progress": json.dumps(progress)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns the saved (tensors, progress) and truncates the log to that moment.

        Returns None and empties the log if no state was saved yet.
        """
        if not self.state_file.exists():
            self.log_file.write_text("", encoding="utf-8")
            return None
        with open_tensors(self.state_file) as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (it is not a dict)
        with self.log_file.open("a", encoding="utf-8") as log:
            log.truncate(progress["log_bytes"])
        return tensors, progress
