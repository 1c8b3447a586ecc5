"""What surrounds an experiment: the run folder, its log, and the published results.

runs/<name>/config.json   options, origins, command, commit, versions, device
            log.jsonl     one event a line; `epoch` events carry train_acc and val_acc
            tokenizer/    best/    state/    result.json

python -m data.runs publish runs/<name> ROW    copies a finished run into data/results/ROW.json (and its log)
python -m data.runs table                      writes the results tables into README.md
"""

import datetime
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from data.batches import Batch
from nn.files import open_tensors, read_json, write_json, write_tensors, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "data" / "results"
BENCH = ROOT / "tests" / "bench"
PACKAGES = ("torch", "numpy", "pandas", "beautifulsoup4", "safetensors", "tokenizers")


# ----------------------------------------------------------------------------------------------------- run folder


def command_line() -> str:
    arguments = sys.argv[1:]
    return shlex.join(["python", Path(sys.argv[0]).name, *arguments])


def git(*arguments: str) -> str:
    """Output of a git command in the project's folder, or "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


class Run:
    """A run folder. Every file but the log is replaced in one step; the log is cut back to the state on resuming."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.best, self.tokenizer = self.folder / "best", self.folder / "tokenizer"
        self.state_file = self.folder / "state" / "state.safetensors"
        self.log_file = self.folder / "log.jsonl"
        self.cache = self.folder.parent / ".cache"  # cleaned text and token ids, shared by all runs beside this one

    @classmethod
    def create(cls, folder: str | Path, config: dict[str, Any]) -> "Run":
        """Raises ValueError where a run of that name exists."""
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
        """Raises FileNotFoundError where there is no run."""
        run = cls(folder)
        if not (run.folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no run folder: it holds no config.json")
        return run

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    @property
    def result(self) -> dict[str, Any] | None:
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else None

    def log(self, event: str, **values: Any) -> None:
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def save_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        progress = progress | {"log_bytes": self.log_file.stat().st_size}
        write_tensors(self.state_file, tensors, {"format": "pt", "progress": json.dumps(progress)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, progress), the log cut back to that moment; None where nothing was saved yet."""
        if not self.state_file.exists():
            self.log_file.write_text("")
            return None
        with open_tensors(self.state_file) as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        with self.log_file.open("a") as log:
            log.truncate(progress["log_bytes"])
        return tensors, progress


class Meter:
    """Totals of an epoch (`sums`: all that resuming needs), the time spent, and when to save next."""

    def __init__(self, sums: dict[str, float] | None, seconds: float, save_minutes: float) -> None:
        self.sums = sums or self.zero()
        self.begin, self.before = time.perf_counter(), seconds
        self.mark = self.saved = self.begin
        self.save_seconds = 60 * save_minutes

    @staticmethod
    def zero() -> dict[str, float]:
        return {"loss": 0.0, "count": 0, "tokens": 0, "seconds": 0.0}

    def add(self, batch: Batch, loss: Tensor, decisions: dict[str, Tensor]) -> None:
        """loss: a mean over examples. decisions: by name, which were right (bool, any shape)."""
        size = len(batch.labels)
        self.sums["loss"] += loss.item() * size
        self.sums["count"] += size
        for name, right in decisions.items():
            self.sums[f"right {name}"] = self.sums.get(f"right {name}", 0) + int(right.sum())
            self.sums[f"of {name}"] = self.sums.get(f"of {name}", 0) + right.numel()
        self.sums["tokens"] += int(batch.mask.sum())  # real ones, not padding

    def tick(self) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.sums["seconds"] += now - self.mark
        self.mark = now

    def reset(self) -> None:
        """Ends an epoch."""
        self.sums, self.mark = self.zero(), time.perf_counter()

    def total(self) -> float:
        """Seconds of the whole run, over all sittings."""
        return self.before + time.perf_counter() - self.begin

    def means(self) -> dict[str, float]:
        s = self.sums
        names = [name.removeprefix("of ") for name in s if name.startswith("of ")]
        return {"loss": s["loss"] / s["count"]} | {name: s[f"right {name}"] / max(1, s[f"of {name}"]) for name in names}

    def record(self) -> dict[str, float]:
        speed = {"tokens_per_second": round(self.sums["tokens"] / max(self.sums["seconds"], 1e-9))}
        return {f"train_{name}": value for name, value in self.means().items()} | speed

    def shown(self) -> dict[str, float]:
        return {name: float(f"{value:.5g}") for name, value in self.record().items()}

    def save_is_due(self) -> bool:
        due = time.perf_counter() - self.saved >= self.save_seconds
        self.saved = time.perf_counter() if due else self.saved
        return due


# -------------------------------------------------------------------------------------------------------- results


def publish(folder: str, row: str) -> Path:
    """Copies result.json and log.jsonl of a finished run to data/results/ROW.json and ROW.log.jsonl."""
    run = Run.open(folder)
    if run.result is None:
        raise ValueError(f"{folder} is not finished: it has no result.json")
    if "accuracy" not in run.result.get("validation", ()):
        raise ValueError(f"{folder} was pretrained: its numbers belong into the card beside its weights")
    write_json(RESULTS / f"{row}.json", {"row": row, **run.result})
    write_text(RESULTS / f"{row}.log.jsonl", run.log_file.read_text(encoding="utf-8"))
    return RESULTS / f"{row}.json"


def results_table(groups: Sequence[str], folder: Path = RESULTS) -> str:
    """Markdown: one line a row of data/results, made from nothing else, of those whose name up to its first dash is
    among `groups`. ROW.json, ROW@43.json, ROW@44.json are one row with several seeds: mean ± standard deviation, and
    the command of the first."""
    lines = [
        "| row | trained | validation | test | seed | minutes | commit | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        if group_of(path.stem) in groups:
            rows.setdefault(path.stem.partition("@")[0], []).append(read_json(path))
    for name, results in rows.items():
        r = results[0]
        trained, total = (millions(r["parameters"][part]) for part in ("trained", "total"))
        trained += "" if trained == total else f" of {total}"
        validation, test = (
            spread([r[part]["accuracy"] for r in results if r.get(part)]) for part in ("validation", "test")
        )
        test += f" of {count:,}" if (count := r["options"].get("test_reviews")) else ""
        seeds = " ".join(str(r["options"]["seed"]) for r in results)
        minutes = statistics.mean(r["seconds"] for r in results) / 60
        lines.append(
            f"| {name} | {trained} | {validation} | **{test}** | {seeds} | {minutes:.0f} | {r['commit'][:7]} "
            f"| `{r['command']}` |"
        )
    return "\n".join(lines)


def group_of(row: str) -> str:
    """`loss-ce@42` -> `loss`"""
    return row.partition("@")[0].partition("-")[0]


def millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def spread(values: list[float]) -> str:
    """`0.8850`, or `0.8850 ± 0.0012` of several; – of none."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def bench_table(name: str) -> str:
    """Markdown of what tests/bench/peers.py wrote into NAME.json: reviews a second, and in brackets how often that is
    the peer's."""
    lines = ["| work | peer | its reviews/s | ours, fp32 | ours, bf16 | memory, MiB |", "|---|---|---|---|---|---|"]
    for row in read_json(BENCH / f"{name}.json")["rows"]:
        peer = next(name for name in row if name != "work")
        speeds = " | ".join(
            f"{row[name]} ({row[f'ratio {name}']} ×)" if name in row else "–" for name in ("ours", "ours, auto")
        )
        used = [str(row[f"memory {name}"]) for name in (peer, "ours", "auto") if f"memory {name}" in row]
        lines.append(f"| {row['work']} | {peer} | {row[peer]} | {speeds} | {' / '.join(used) or '–'} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """README with its tables made anew: `<!-- results GROUP GROUP … -->` opens one of results, `<!-- bench NAME -->`
    one of speeds."""

    def made(match: re.Match) -> str:
        opening, kind, groups, closing = match.groups()
        table = bench_table(groups.strip()) if kind == "bench" else results_table(groups.split())
        return f"{opening}{table}\n{closing}"

    marked = re.compile(r"(<!-- (results|bench)([\w -]*) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
    return marked.sub(made, text)


def write_table(readme: Path = ROOT / "README.md") -> None:
    write_text(readme, with_tables(readme.read_text(encoding="utf-8")))


def main(argv: list[str]) -> None:
    match argv:
        case ["publish", folder, row]:
            print(publish(folder, row))
        case ["table"]:
            write_table()
        case _:
            raise ValueError("usage: python -m data.runs publish RUN ROW | table")


if __name__ == "__main__":
    from nn.runtime import clean_exit

    with clean_exit():
        main(sys.argv[1:])
