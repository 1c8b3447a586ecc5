"""Runs side by side, finished or not: a table, and their learning curves, printed or drawn."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.runs import Run

HEAD = ("run", "model", "peft", "loss", "trained", "best val", "test", "minutes", "val by epoch")


def epochs(run: Run) -> list[dict[str, Any]]:
    """What the log says of each epoch: train_acc, val_acc, seconds and more."""
    events = map(json.loads, run.log_file.read_text(encoding="utf-8").splitlines())
    return [event for event in events if event["event"] == "epoch"]


def row(run: Run) -> tuple[str, ...]:
    """What a run was and what it reached, under HEAD."""
    options, result, history = run.config["options"], run.result or {}, epochs(run)
    curve = [event["val_acc"] for event in history]
    test = result.get("test", {}).get("accuracy")
    return (
        run.folder.name,
        *(options[name] for name in ("model", "peft", "loss")),
        f"{result['parameters']['trained']:,}" if result else "?",
        f"{max(curve):.4f}" if curve else "-",
        f"{test:.4f}" if test is not None else "-",
        f"{history[-1]['seconds'] / 60:.0f}" if history else "-",
        " ".join(f"{value:.4f}" for value in curve),
    )


def table(runs: Iterable[Run]) -> str:
    """A line a run, in columns."""
    rows = [HEAD, *map(row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def draw(runs: Iterable[Run], path: Path) -> None:
    """Accuracy by epoch, on what is held out (solid) and in training (dashed), into a .png, .svg or .pdf. Raises
    ValueError where matplotlib is missing or does not know the kind of file."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("--plot draws with matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        history = epochs(run)
        numbers = [event["epoch"] for event in history]
        (line,) = axes.plot(numbers, [event["val_acc"] for event in history], marker="o", label=run.folder.name)
        axes.plot(numbers, [event["train_acc"] for event in history], linestyle="--", color=line.get_color())
    axes.set(xlabel="epoch", ylabel="accuracy: validation (solid), training (dashed)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
