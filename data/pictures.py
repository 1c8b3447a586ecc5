"""Draws the pictures of the READMEs from the published rows, with matplotlib.

`python -m data.tables` writes them to data/results/pictures/.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.checked import read_json
from data.rows import RESULTS, Row, published_rows
from data.runs import ROOT

BENCH = ROOT / "tests" / "bench"


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure; the size is in inches. Raises ValueError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # optional, and slow to import
    except ModuleNotFoundError as error:
        raise ValueError("drawing needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


class Series(NamedTuple):
    """Rows that are drawn alike. Shapes and brightness differ, so the picture is readable in grey."""

    marker: str
    color: str  # of Okabe & Ito's palette, which colour-blind readers can distinguish
    label: str
    groups: tuple[str, ...] = ()


WORDS = Series("o", "#F0E442", "CNN, LSTM, GRU, … over words, from random numbers or GloVe")
SERIES = (
    WORDS,
    Series("s", "#0072B2", "DeBERTa, 4 layers, from the built-in weights", ("mini",)),
    Series("^", "#D55E00", "BERT, 6 layers, from MiniLM", ("minilm",)),
    Series("v", "#FFFFFF", "the same BERT on 5,000 of the 20,000 training reviews", ("minilm5k", "loss")),
)
# The text at a point and its offset in typographic points; a row without an entry has no text.
POINT_LABELS = {
    "cnn": ("CNN", 0, -13),
    "cnn-kim": ("Kim's CNN", 8, -3),
    "cnn-kim-random": ("Kim's CNN,\nrandom vectors", 8, -6),
    "cnn-rdrop": ("CNN, R-Drop", 0, 8),
    "gru": ("LSTMs, GRUs, CNNs", -8, -3),
    "mini-lora": ("LoRA", 8, 4),
    "mini-none": ("random weights", -8, -3),
    "mini-p_tuning": ("P-tuning", 0, -13),
    "mini-p_tuning_v2": ("P-tuning v2", 0, 8),
    "mini-prefix": ("prefix", 0, 8),
    "mini-prompt": ("prompt", 0, -13),
    "mini-rdrop": ("all weights, R-Drop", 0, 8),
    "minilm-lora": ("LoRA", -8, -3),
    "minilm5k-full": ("all weights,\nfour losses", 0, -26),
    "minilm5k-head": ("head alone", 8, -3),
    "minilm5k-lora": ("LoRA, DoRA", 9, -3),
    "minilm5k-p_tuning": ("P-tuning", 8, -3),
    "minilm5k-p_tuning_v2": ("P-tuning v2", 8, -3),
    "minilm5k-prefix": ("prefix", 0, -13),
    "minilm5k-prompt": ("prompt", -8, -3),
    "transformer": ("Transformer", -8, -3),
}
LINEAR = Series("D", "#000000", "nb_linear: n-grams, no network", ("nb_linear",))
ACCURACY_TICKS = (70, 75, 80, 85, 88, 90, 91, 92)


def draw_accuracy(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over trained parameters. rows: those that scored all test reviews."""
    figure = new_figure(width=8, height=4.8)
    axes = figure.subplots()
    draw_linear_model(axes, [100 - accuracy for accuracy in linear_accuracy(rows)])
    for row in rows:
        series = series_of(row)
        x, y = row.trained / 1e6, 100 - 100 * row.mean("test")  # the error: its logarithm spreads the best rows
        axes.plot(x, y, series.marker, color=series.color, mec="black", mew=0.8, ms=7, gid=row.name)
        text, dx, dy = POINT_LABELS.get(row.name, ("", 0, 0))
        side = "center" if dx == 0 else "left" if dx > 0 else "right"
        axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=8)
    for series in (*SERIES, LINEAR):
        axes.plot([], [], series.marker, color=series.color, mec="black", mew=0.8, ms=7, label=series.label)
    axes.set(xscale="log", yscale="log", xlim=(0.045, 70), ylim=(31, 7.6))
    axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes.set_yticks([100 - accuracy for accuracy in ACCURACY_TICKS], ACCURACY_TICKS)
    axes.set(xlabel="trained parameters (millions)", ylabel="accuracy on the 25,000 test reviews (%)")
    axes.legend(loc="lower right", fontsize=8)
    save_picture(figure, axes, path)


def series_of(row: Row) -> Series:
    """Returns how a row is drawn."""
    return next((series for series in (*SERIES, LINEAR) if row.group in series.groups), WORDS)


def linear_accuracy(rows: Sequence[Row]) -> list[float]:
    """Returns the test accuracy of nb_linear in per cent; an empty list if there is no such row."""
    return [100 * row.mean("test") for row in rows if row.name == "nb_linear"]


def draw_linear_model(axes: Any, heights: Sequence[float], label: str | None = None) -> None:
    """Draws a horizontal line, which networks must reach to be worth their code."""
    for height in heights:
        axes.axhline(height, color="black", linewidth=0.8, linestyle=(0, (6, 3)), label=label)


def draw_minutes(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over minutes of training. rows: those that scored all test reviews.

    Rows with 5,000 training reviews are left out.
    """
    figure = new_figure(width=8, height=4.2)
    axes = figure.subplots()
    draw_linear_model(axes, linear_accuracy(rows))
    for row in (row for row in rows if not row.options.get("train_reviews")):
        series = series_of(row)
        x, y = max(row.minutes, 0.5), 100 * row.mean("test")
        axes.plot(x, y, series.marker, color=series.color, mec="black", mew=0.8, ms=7, gid=row.name)
    for series in (series for series in (*SERIES, LINEAR) if "minilm5k" not in series.groups):
        axes.plot([], [], series.marker, color=series.color, mec="black", mew=0.8, ms=7, label=series.label)
    axes.set(xscale="log", ylim=(83.3, 94), ylabel="accuracy on the 25,000 test reviews (%)")
    axes.set(xlabel="minutes of training on one or two CPU cores, 20,000 reviews")
    axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes.legend(loc="lower left", fontsize=8)
    save_picture(figure, axes, path)


def draw_speed(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the speed here divided by that of the fastest library. rows: of tests/bench/peers-*.json"""
    figure = new_figure(width=8, height=3.6)
    axes = figure.subplots()
    bars = [(row["work"], row.get("ratio ours"), row.get("ratio ours, auto")) for row in rows]
    for place, (_, plain, auto) in enumerate(bars):
        for offset, value, color, hatch in ((-0.2, plain, "#0072B2", ""), (0.2, auto, "#E69F00", "///")):
            if value is not None:
                axes.barh(place + offset, value, 0.36, color=color, hatch=hatch, edgecolor="black", linewidth=0.6)
                axes.annotate(f"{value:.2f}", (value, place + offset), (3, -3), textcoords="offset points", fontsize=7)
    axes.barh([0], [0], color="#0072B2", edgecolor="black", label="fp32")
    axes.barh([0], [0], color="#E69F00", hatch="///", edgecolor="black", label="bf16")
    axes.axvline(1, color="black", linewidth=0.8, linestyle=(0, (6, 3)))
    axes.set_yticks(range(len(bars)), [work for work, _, _ in bars], fontsize=8)
    axes.set(xlabel="reviews per second, divided by those of the fastest other library", ylim=(len(bars) - 0.4, -0.6))
    axes.legend(loc="lower right", fontsize=8)
    save_picture(figure, axes, path)


def draw_label_curve(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over the number of labels, with one binomial standard error √(p(1 - p)/N) to each side.

    rows: those of group `curve`, and mini-full-256 and mini-none, which have all 20,000 labels.
    """
    figure = new_figure(width=6, height=3.6)
    axes = figure.subplots()
    for label, marker, color, all_labels, fewer in (
        ("from the built-in weights", "s", "#0072B2", "mini-full-256", "curve-builtin-"),
        ("from random weights", "o", "#E69F00", "mini-none", "curve-none-"),
    ):
        chosen = [row for row in rows if row.name == all_labels or row.name.startswith(fewer)]
        points = sorted((row.options["train_reviews"] or 20_000, *accuracy_and_error(row)) for row in chosen)
        labels, accuracy, error = zip(*points, strict=True)
        axes.errorbar(labels, accuracy, error, fmt=f"{marker}-", color=color, capsize=3, label=label)
    draw_linear_model(axes, linear_accuracy(rows), label="nb_linear with 20,000 labels")
    axes.set(xscale="log", xlabel="labelled training reviews", ylabel="test accuracy (%)", ylim=(48, 94))
    axes.set_xticks([100, 500, 2_000, 20_000], ["100", "500", "2,000", "20,000"])
    axes.legend(loc="lower right", fontsize=9)
    save_picture(figure, axes, path)


def accuracy_and_error(row: Row) -> tuple[float, float]:
    """Returns the test accuracy of a row with one seed and its standard error, both in per cent."""
    p, count = row.mean("test"), row.results[0]["test"]["count"]
    return 100 * p, 100 * math.sqrt(p * (1 - p) / count)


def save_picture(figure: Any, axes: Any, path: Path) -> None:
    """Writes an SVG file that depends on the drawing alone: fixed element ids, no date."""
    import matplotlib  # optional, and slow to import

    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def write_pictures(folder: Path = RESULTS / "pictures") -> None:
    """Draws all pictures of the READMEs."""
    folder.mkdir(exist_ok=True)
    rows = published_rows()
    draw_accuracy(folder / "accuracy.svg", [row for row in rows if row.full_test])
    draw_label_curve(folder / "labels.svg", rows)
    draw_minutes(folder / "minutes.svg", [row for row in rows if row.full_test])
    draw_speed(folder / "speed.svg", read_json(BENCH / "peers-avx512.json")["rows"])
