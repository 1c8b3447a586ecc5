"""Publishes finished runs, compares runs, and generates the tables and pictures of the READMEs.

python -m data.tables publish runs/NAME ROW    copies result and log of a run to data/results/ROW.json, ROW.log.jsonl
python -m data.tables                          rewrites all generated tables and pictures

In a README, the comment `<!-- results GROUP … -->` opens a table of the published rows of these groups (a group is the
part of a row's name before the first dash), `<!-- models -->` opens the table with one row per model, and
`<!-- bench NAME -->` opens a table of speeds. `<!-- baselines -->` opens the table beside another project's rows, and
`<!-- calibration -->` the one of the rows that keep their predictions.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.baselines import BASELINES
from data.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    log_probabilities,
    scaled,
)
from data.checked import as_object, has_type, listed, parse_json, read_json, reading
from data.errors import clean_exit
from data.files import write_text
from data.metrics import mean_and_deviation
from data.pictures import new_figure, write_figure
from data.row_pictures import write_pictures
from data.rows import RESULTS, PublishedRun, Row, best_by_model, publish, published_rows
from data.runs import ROOT, Run

BENCH = ROOT / "tests" / "bench"
READMES = (ROOT / "README.md", RESULTS / "README.md", BENCH / "README.md")  # the files with generated tables

# ------------------------------------------------------------------------------------------- comparison of any runs

COLUMNS = ("run", "model", "peft", "loss", "trained", "best val", "test", "minutes", "val by epoch")


def epochs(run: Run) -> list[dict[str, Any]]:
    """Returns the `epoch` events of a run's log: train_acc, val_acc if reviews were held out, seconds and others.

    Raises ValueError for a log that is damaged.
    """
    path = run.log_file
    way_out = "restore it (--resume does so for a finished run), or leave the run out"
    with reading(path, "the log of a run", way_out):
        lines = path.read_text(encoding="utf-8").splitlines()
        events = [as_object(parse_json(line, path, way_out), f"{path}: line {n}") for n, line in enumerate(lines, 1)]
        found = [event for event in events if event.get("event") == "epoch"]
        numbers = ("train_acc", "seconds", "epoch")
        if not all(has_type(event.get(name), float) for event in found for name in numbers):
            raise ValueError("an epoch lacks a value, or has one that is no number")
        if not all(has_type(event.get("val_acc", 0), float) for event in found):
            raise ValueError("an epoch has a val_acc that is no number")
    return found


def comparison_row(run: Run) -> tuple[str, ...]:
    """Returns the cells of one run, in the order of COLUMNS."""
    path, history = run.folder / "result.json", epochs(run)
    options = as_object(as_object(run.config, run.folder).get("options"), f"options of {run.folder / 'config.json'}")
    with reading(path, "the result of a run", "restore it, or delete it"):
        result = {} if run.result is None else as_object(run.result, path)
        trained = int(result["parameters"]["trained"]) if result else None
        test = result.get("test", {}).get("accuracy")
        if not has_type(test, float | None):
            raise ValueError(f"test accuracy {test!r} is no number")
    with reading(run.log_file, "the log of a run", "restore it (--resume does so), or leave the run out"):
        trains_all = options.get("train_on_validation", False)  # no validation reviews
        curve = [] if trains_all else [event["val_acc"] for event in history]
        best = result.get("best_epoch")  # older versions did not record it
        kept = max(curve, default=0.0) if best is None or trains_all else curve[best - 1]
        minutes = f"{history[-1]['seconds'] / 60:.0f}" if history else "-"
    return (
        run.name,
        *(listed([options.get(name, "?")]) for name in ("model", "peft", "loss")),
        "?" if trained is None else f"{trained:,}",
        f"{kept:.4f}" if curve else "-",
        f"{test:.4f}" if test is not None else "-",
        minutes,
        " ".join(f"{value:.4f}" for value in curve),
    )


def comparison(runs: Iterable[Run]) -> str:
    """Returns a plain text table with one line per run."""
    rows = [COLUMNS, *map(comparison_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def draw_curves(runs: Iterable[Run], path: Path) -> None:
    """Draws accuracy over epochs into a .png, .svg or .pdf file: validation solid, training dashed.

    Raises ValueError if matplotlib is not installed or does not support the file type.
    """
    figure = new_figure(width=7, height=4.5)
    axes = figure.subplots()
    names: list[str] = []
    lines: list[Any] = []
    for run in runs:
        history = epochs(run)
        numbers = [event["epoch"] for event in history]
        (line,) = axes.plot(numbers, [event.get("val_acc", math.nan) for event in history], marker="o")
        axes.plot(numbers, [event["train_acc"] for event in history], linestyle="--", color=line.get_color())
        lines.append(line)
        names.append(run.name)
    axes.set(xlabel="epoch", ylabel="accuracy: validation (solid), training (dashed)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    for text in axes.legend(lines, names).get_texts():
        text.set_parse_math(False)  # a name may contain $
    write_figure(figure, path)


# ----------------------------------------------------------------------------------------------------------- tables


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def millions(count: int) -> str:
    """Formats a number of parameters: `0.656 M`."""
    return f"{count / 1e6:.3g} M"


def results_table(groups: Sequence[str], folder: Path = RESULTS) -> str:
    """Returns a Markdown table of the published rows of some groups, with the commands of the first seed."""
    header = ("row", "trained", "validation", "test", "seed", "minutes", "commit", "command")
    return markdown(header, [results_row(row) for row in published_rows(folder) if row.group in groups])


def results_row(row: Row) -> tuple[str, ...]:
    """Returns the cells of one published row in `results_table`."""
    first = row.results[0]
    trained, total = millions(row.trained), millions(first["parameters"]["total"])
    is_part = row.accuracies("test") and not row.full_test and row.options.get("data") != "demo"
    count = f" of {first['test']['count']:,}" if is_part else ""
    return (
        row.name,
        trained if trained == total else f"{trained} of {total}",
        mean_and_deviation(row.accuracies("validation")),
        f"**{mean_and_deviation(row.accuracies('test'))}{count}**",
        " ".join(str(result["options"]["seed"]) for result in row.results),
        f"{row.minutes:.0f}",
        first["commit"][:7],
        ", then ".join(f"`{command}`" for command in row.commands),
    )


def models_table(folder: Path = RESULTS) -> str:
    """Returns a Markdown table with the best row of each model."""
    header = ("model", "starts from", "method", "loss", "trained", "validation", "test", "minutes", "row")
    return markdown(header, [models_row(model, row) for model, row in best_by_model(folder).items()])


def start_of(options: dict[str, Any]) -> str:
    """Returns what a model was initialized from: published weights, word vectors, or random numbers."""
    if options["weights"] != "none":
        return {"builtin": "built-in weights", "minilm": "MiniLM"}.get(options["weights"], options["weights"])
    return {"none": "random", "train": "GloVe"}.get(options["word_vectors"], options["word_vectors"])


def models_row(model: str, row: Row) -> tuple[str, ...]:
    """Returns the cells of one model in `models_table`."""
    options = row.options
    start = f"`--loss {row.pretraining['loss']}`" if row.pretraining else start_of(options)
    return (
        f"`{model}`",
        row.before[0].name if row.before else start,
        options["peft"],
        options["loss"],
        millions(row.trained),
        mean_and_deviation(row.accuracies("validation")),
        f"**{mean_and_deviation(row.accuracies('test'))}**",
        f"{row.all_minutes:.0f}",
        row.name,
    )


def bench_table(name: str) -> str:
    """Returns a Markdown table of tests/bench/NAME.json, which peers.py wrote: reviews per second, and in brackets the
    speed divided by that of the compared library."""
    header = ("work", "compared with", "its reviews/s", "ours, fp32", "ours, bf16", "memory, MiB")
    return markdown(header, map(bench_row, read_json(BENCH / f"{name}.json")["rows"]))


def bench_row(row: dict[str, Any]) -> list[str]:
    """Returns the cells of one kind of work in `bench_table`."""
    peer = next(name for name in row if name != "work")
    speeds = [f"{row[name]} ({row[f'ratio {name}']} ×)" if name in row else "–" for name in ("ours", "ours, auto")]
    used = [str(row[f"memory {name}"]) for name in (peer, "ours", "auto") if f"memory {name}" in row]
    return [row["work"], peer, str(row[peer]), *speeds, " / ".join(used) or "–"]


def baselines_table(folder: Path = RESULTS) -> str:
    """Returns a Markdown table of the other project's rows beside ours."""
    header = ("row there", "validation there", "best public test", "test here", "row here", "weights here")
    test = {row.name: mean_and_deviation(row.accuracies("test")) for row in published_rows(folder)}
    known = [b for b in BASELINES if b.ours in test]
    cells = [
        (f"`{b.name}`", b.reported, b.public, f"**{test[b.ours]}**", f"`{b.ours}`", b.stand_in or "–") for b in known
    ]
    return markdown(header, cells)


def calibration_table(folder: Path = RESULTS) -> str:
    """Returns a Markdown table of the calibration of the test reviews, first seed of each row that keeps predictions.

    The temperature is fitted on the validation reviews.
    """
    header = ("row", "temperature", "ECE", "ECE, scaled", "Brier score", "Brier score, scaled")
    cells = []
    for row in published_rows(folder):
        run = PublishedRun(folder / f"{row.results[0]['row']}.json")
        chosen, test = run.predictions("validation"), run.predictions("test")
        if row.full_test and chosen is not None and test is not None:
            temperature = fit_temperature(log_probabilities(chosen.probabilities), chosen.labels)
            after = np.exp(scaled(log_probabilities(test.probabilities), temperature))
            measures = (expected_calibration_error, brier_score)
            found = [measure(p, test.labels) for measure in measures for p in (test.probabilities, after)]
            cells.append((run.folder.name, f"{temperature:.3f}", *(f"{value:.4f}" for value in found)))
    return markdown(header, cells)


def with_tables(text: str) -> str:
    """Returns the text of a README with its generated tables made anew."""
    tables: dict[str, Callable[[str], str]] = {
        "results": lambda groups: results_table(groups.split()),
        "models": lambda _: models_table(),
        "bench": lambda name: bench_table(name.strip()),
        "baselines": lambda _: baselines_table(),
        "calibration": lambda _: calibration_table(),
    }

    def generated(match: re.Match[str]) -> str:
        opening, kind, argument, closing = match.groups()
        return f"{opening}{tables[kind](argument)}\n{closing}"

    marked = re.compile(
        r"(<!-- (results|models|bench|baselines|calibration)([\w -]*) -->\n).*?(<!-- /\2 -->)", re.DOTALL
    )
    return marked.sub(generated, text)


def write_tables(readmes: Sequence[Path] = READMES) -> None:
    """Rewrites the generated tables of the READMEs."""
    for readme in readmes:
        write_text(readme, with_tables(readme.read_text(encoding="utf-8")))


def main(argv: list[str]) -> None:
    match argv:
        case ["publish", folder, row]:
            print(publish(folder, row))
        case []:
            write_tables()
            write_pictures()
        case _:
            raise ValueError("usage: python -m data.tables [publish RUN ROW]")


if __name__ == "__main__":
    with clean_exit():
        main(sys.argv[1:])
