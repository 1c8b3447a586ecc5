"""Draws the pictures of the READMEs from the published rows and the measured speeds.

`python -m data.tables` writes them to data/results/pictures/, each as SVG and PNG. Rows in one panel have the same
training reviews, unless the axis or the legend names their number. The dashed line in a picture of accuracies is
nb_linear, the linear model over n-grams: the row to exceed.
"""

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.calibration import fit_temperature, log_probabilities, plot_reliability
from data.checked import read_json
from data.pictures import COLORS, Line, Point, error_axis, label_points, log_ticks, new_figure, save_picture
from data.rows import RESULTS, PublishedRun, Row, best_by_model, published_rows
from data.runs import ROOT
from data.sentence_picture import draw_sentence

SPEEDS = ROOT / "tests" / "bench" / "peers-avx512.json"
ALL_REVIEWS = 20_000  # training reviews of the usual split
SHORT, LINEAR = 128, "nb_linear"  # rows with at most SHORT tokens have another axis


class Series(NamedTuple):
    """Rows that are drawn alike."""

    marker: str
    color: str
    label: str


SERIES = {
    "linear": Series("D", COLORS["black"], "linear model over n-grams"),
    "words": Series("o", COLORS["orange"], "networks over words, one run with labels"),
    "continued": Series("P", COLORS["purple"], "networks over words that continue another run"),
    "random": Series("X", COLORS["grey"], "DeBERTa, 3 layers, from random weights"),
    "builtin": Series("s", COLORS["blue"], "DeBERTa, 4 layers, from the built-in weights"),
    "minilm": Series("^", COLORS["vermillion"], "BERT, 6 layers, from MiniLM"),
    "own": Series("v", COLORS["green"], "DeBERTa and BERT that start from another run"),
    "published": Series("p", COLORS["yellow"], "other published weights"),
}
ENCODERS = ("bert", "distilbert", "roberta", "deberta", "electra", "xlm_roberta", "modernbert")


def series_of(row: Row) -> Series:
    """Returns how the points of a row are drawn: by its model and by what it starts from."""
    model, weights = row.options["model"], row.options["weights"]
    if model == LINEAR:
        return SERIES["linear"]
    if model not in ENCODERS:
        return SERIES["continued" if row.continues else "words"]
    if weights.startswith("runs/"):
        return SERIES["own"]
    return SERIES.get("random" if weights == "none" else weights, SERIES["published"])


def training_data(row: Row) -> str:
    """Describes the training reviews of a row; "" if no other row has them: its own files, or all labelled reviews."""
    if row.options.get("train") or not row.holds_out:
        return ""
    short = f" of at most {SHORT} tokens" if row.options["max_length"] <= SHORT else ""
    return f"{row.options['train_reviews'] or ALL_REVIEWS:,} training reviews{short}"


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups the rows that scored all test reviews by their training data, most reviews first, best row first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: -row.mean("test") if row.full_test else 0):
        if row.full_test and training_data(row):
            found.setdefault(training_data(row), []).append(row)
    return dict(sorted(found.items(), key=lambda item: -int(item[0].split()[0].replace(",", ""))))


def error(row: Row, split: str = "test") -> float:
    """Returns the mean error of all seeds in per cent."""
    return 100 - 100 * row.mean(split)


def draw_point(axes: Any, x: float, y: float, row: Row) -> None:
    """Draws the marker of a row's series; its id in the SVG file is the row's name."""
    series = series_of(row)
    axes.plot(x, y, series.marker, color=series.color, mec="black", mew=0.7, ms=6.5, gid=row.name, zorder=3)


def text_of(row: Row) -> str:
    """Returns the text beside the point of a row: its name, or nothing if the line has the name."""
    return "" if row.options["model"] == LINEAR else row.name


def line_of(rows: Sequence[Row]) -> Line | None:
    """Returns the line of the linear model with the best validation accuracy: its error and its name."""
    linear = [row for row in rows if row.options["model"] == LINEAR]
    best = max(linear, key=lambda row: row.mean("validation"), default=None)
    return best and Line(error(best), f"{best.name}, {100 - error(best):.1f} %")


def draw_line(axes: Any, rows: Sequence[Row], vertical: bool = True) -> None:
    """Draws `line_of` over the axis of accuracy, without its name."""
    if line := line_of(rows):
        draw = axes.axhline if vertical else axes.axvline
        draw(line.y, color=COLORS["black"], linestyle="--", linewidth=0.9, zorder=1)


def add_legend(figure: Any, rows: Sequence[Row], columns: int = 2) -> None:
    """Adds a legend of the series that occur, below the panels."""
    from matplotlib.lines import Line2D

    used = {series_of(row) for row in rows}
    handles = [
        Line2D([], [], marker=s.marker, color=s.color, mec="black", mew=0.7, ms=6.5, linestyle="none", label=s.label)
        for s in SERIES.values()
        if s in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def draw_accuracy(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over trained parameters, one panel for each set of training reviews."""
    groups = panels(rows)
    figure = new_figure(width=5.2 * len(groups), height=5.2)
    for axes, (title, members) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        for row in members:
            draw_point(axes, row.trained / 1e6, error(row), row)
        error_axis(axes, [error(row) for row in members])
        log_ticks(axes, (0.1, 0.3, 1, 3, 10, 30), [row.trained / 1e6 for row in members])
        draw_line(axes, members)
        axes.set(xlabel="trained parameters (millions)", ylabel="accuracy on the 25,000 test reviews (%)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    add_legend(figure, rows)
    for axes, members in zip(figure.axes, groups.values(), strict=True):
        points = [Point(row.trained / 1e6, error(row), text_of(row)) for row in members]
        label_points(figure, axes, points, line_of(members))
    save_picture(figure, path)


def draw_ranking(path: Path, rows: Sequence[Row]) -> None:
    """Draws the test accuracy of each row, the best on top: small dots are seeds."""
    groups = panels(rows)
    heights = [len(members) for members in groups.values()]
    figure = new_figure(width=7.5, height=0.19 * sum(heights) + 2.2)
    axes_of = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, members) in zip(axes_of, groups.items(), strict=True):
        for y, row in enumerate(members):
            seeds = [100 - 100 * accuracy for accuracy in row.accuracies("test")]
            axes.plot(seeds, [y] * len(seeds), ".-", color=COLORS["black"], ms=3, linewidth=0.8)
            draw_point(axes, error(row), y, row)
        error_axis(axes, [error(row) for row in members], vertical=False)
        draw_line(axes, members, vertical=False)
        axes.set_yticks(range(len(members)), [f"{row.name}  {100 - error(row):.2f}" for row in members], fontsize=8)
        axes.set_ylim(len(members) - 0.4, -0.6)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    axes_of[-1].set_xlabel("accuracy on the 25,000 test reviews (%)")
    add_legend(figure, rows)
    save_picture(figure, path)


def processor(result: dict[str, Any]) -> tuple[str, int]:
    """Returns the processor of a run and its number of threads."""
    name, _, rest = (result.get("machine") or result["device"]).partition(",")
    return name.replace("(R)", ""), int(re.search(r"(\d+) threads?", rest)[1])  # type: ignore[index]


def draw_minutes(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over training time with pretraining, one panel for each name of a processor."""
    members = next(iter(panels(rows).values()))
    runs: dict[str, list[tuple[Row, float, float]]] = {}  # processor -> row, minutes × cores and error of each seed
    for row in members:
        for result in row.results:
            name, threads = processor(result)
            seconds = result["seconds"] + row.pretraining.get("seconds", 0)
            point = row, seconds / 60 * threads, 100 - 100 * result["test"]["accuracy"]
            runs.setdefault(name, []).append(point)
    names = sorted(runs, key=lambda name: (-len(runs[name]), name))
    figure = new_figure(width=3.9 * len(names), height=4.6)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for row, x, y in runs[name]:
            draw_point(axes, x, y, row)
        error_axis(axes, [error(row) for row in members])
        log_ticks(axes, (1, 3, 10, 30, 100, 300), [x for points in runs.values() for _, x, _ in points])
        draw_line(axes, members)
        axes.set_xlabel("training time (minutes × cores)")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on the 25,000 test reviews (%)")
    add_legend(figure, members)
    for axes, name in zip(figure.axes, names, strict=True):
        first = {row.name: x for row, x, _ in reversed(runs[name])}  # one text for all seeds
        points = [Point(x, y, text_of(row) if first[row.name] == x else "") for row, x, y in runs[name]]
        label_points(figure, axes, points, line_of(members))
    save_picture(figure, path)


def spread(row: Row) -> float:
    """Returns the deviation over seeds, or for one seed the sample's standard error √(p(1 - p)/N), in per cent."""
    if len(accuracies := row.accuracies("test")) > 1:
        return 100 * statistics.stdev(accuracies)
    p = row.mean("test")
    return 100 * math.sqrt(p * (1 - p) / row.results[0]["test"]["count"])


def draw_labels(path: Path, rows: Sequence[Row]) -> None:
    """Draws test accuracy over the number of labelled reviews, for rows that train all weights with cross-entropy.

    The left panel has texts of at most SHORT tokens; the right panel the best row of all reviews, with longer texts.
    """
    plain = [row for row in rows if row.options["peft"] == "none" and row.options["loss"] == "ce" and row.holds_out]
    few = [row for row in plain if row.options["max_length"] <= SHORT and row.group != "minilm5k"]
    full = sorted(next(iter(panels(plain).values())), key=lambda row: row.mean("validation"))
    figure = new_figure(width=7, height=4.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    for x, series in enumerate(SERIES.values()):
        chosen = sorted((row for row in few if series_of(row) == series), key=lambda row: row.options["train_reviews"])
        if chosen:
            style = {"color": series.color, "marker": series.marker, "mec": "black", "mew": 0.7, "capsize": 3}
            labels, accuracy = [row.options["train_reviews"] for row in chosen], [100 - error(row) for row in chosen]
            dashes = "--" if series == SERIES["linear"] else "-"
            left.errorbar(labels, accuracy, [spread(row) for row in chosen], linestyle=dashes, **style)
            for row in [row for row in full if series_of(row) == series][-1:]:
                right.errorbar(x, 100 - error(row), spread(row), **style)
    left.set(xscale="log", xlabel="labelled training reviews", ylabel="test accuracy (%)", ylim=(48, 95))
    ticks = sorted({row.options["train_reviews"] for row in few})
    left.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    left.set_title(f"texts of at most {SHORT} tokens", fontsize=10)
    right.set_xticks([(len(SERIES) - 1) / 2], [f"{ALL_REVIEWS:,}"])
    right.set_xlim(-1, len(SERIES))
    right.set_title("longer texts", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    add_legend(figure, few)
    save_picture(figure, path)


LINES = tuple(zip(COLORS.values(), "XoDsp^vP*", strict=True))  # colour and marker of each curve


def draw_curve(axes: Any, row: Row, color: str, marker: str, label: str) -> None:
    """Draws mean validation accuracy by epoch, and the range over seeds as a band."""
    curves = [[100 * epoch["val_acc"] for epoch in result["history"]] for result in row.results]
    values = list(zip(*curves, strict=False))  # [epochs][seeds]; seeds may have stopped at different epochs
    numbers = range(1, len(values) + 1)
    axes.plot(numbers, list(map(statistics.mean, values)), marker=marker, color=color, ms=5, mec="black", mew=0.5)
    axes.fill_between(numbers, list(map(min, values)), list(map(max, values)), color=color, alpha=0.25, linewidth=0)
    axes.lines[-1].set_label(label)
    axes.vlines(numbers, list(map(min, values)), list(map(max, values)), color=color, linewidth=1)


def draw_epochs(path: Path, rows: Sequence[Row], best: Sequence[Row]) -> None:
    """Draws learning curves: on the left the best row of each model, on the right one model with fewer labels."""
    figure = new_figure(width=10.5, height=4.4)
    left, right = figure.subplots(1, 2)
    networks = [row for row in best if row.options["model"] != LINEAR]
    networks.sort(key=lambda row: -len(row.results[0]["history"]))  # short curves above long ones
    for row, (color, marker) in zip(networks, LINES * 2, strict=False):
        draw_curve(left, row, color, marker, row.name)
    for row in (row for row in best if row.options["model"] == LINEAR):
        left.axhline(100 * row.mean("validation"), color=COLORS["black"], linestyle="--", linewidth=0.9, label=row.name)
    few = [row for row in rows if row.name in ("few100-ce", "few500-ce", "loss-ce")]
    for row, (color, marker) in zip(few, LINES, strict=False):
        count, seeds = row.options["train_reviews"], len(row.results)
        draw_curve(right, row, color, marker, f"{count:,} training reviews, {seeds} seeds")
    left.set_title(f"best row of each model, {ALL_REVIEWS:,} training reviews", fontsize=10)
    right.set_title(f"BERT from MiniLM, all weights, texts of at most {SHORT} tokens", fontsize=10)
    left.set_ylabel("accuracy on the validation reviews (%)")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    save_picture(figure, path)


def draw_confusion(path: Path, best: Sequence[Row]) -> None:
    """Draws the confusion matrix of the test reviews for the best row of each model, first seed, in per cent."""
    columns = 5
    figure = new_figure(width=10, height=2.3 * math.ceil(len(best) / columns))
    grid = figure.subplots(math.ceil(len(best) / columns), columns, squeeze=False).ravel()
    for axes, row in zip(grid, best, strict=False):
        matrix = row.results[0]["test"]["confusion"]
        share = [[100 * count / sum(line) for count in line] for line in matrix]
        axes.imshow(share, cmap="Greys", vmin=0, vmax=130)
        for y, line in enumerate(share):
            for x, value in enumerate(line):
                axes.text(x, y, f"{value:.1f} %", ha="center", va="center", color="white" if value > 50 else "black")
        axes.set_xticks([0, 1], ["negative", "positive"], fontsize=8)
        axes.set_yticks([0, 1], ["negative", "positive"], fontsize=8, rotation=90, va="center")
        axes.set_title(row.name, fontsize=9)
    for axes in grid[len(best) :]:
        axes.remove()
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true label", fontsize=9)
    save_picture(figure, path)


def draw_reliability(path: Path, best: Sequence[Row]) -> None:
    """Draws reliability diagrams of the best rows that keep validation and test predictions, first seed.

    The temperature is fitted on the validation reviews; the bins have the test reviews.
    """
    runs = [PublishedRun(RESULTS / f"{row.results[0]['row']}.json") for row in best]
    whole = [(run.folder.name, run.predictions("validation"), run.predictions("test")) for run in runs]
    kept = [(name, chosen, test) for name, chosen, test in whole if chosen is not None and test is not None]
    columns = min(len(kept), 4)
    figure = new_figure(width=4.2 * columns, height=3.6 * math.ceil(len(kept) / columns))
    grid = figure.subplots(math.ceil(len(kept) / columns), columns, squeeze=False).ravel()
    for axes, (name, chosen, test) in zip(grid, kept, strict=False):
        temperature = fit_temperature(log_probabilities(chosen.probabilities), chosen.labels)
        plot_reliability(axes, test.probabilities, test.labels, temperature)
        axes.set_title(f"{name}, temperature {temperature:.2f}", fontsize=10)
        axes.set(xlabel="confidence (largest probability)", ylim=(0.4, 1.01))
    for axes in grid[len(kept) :]:
        axes.remove()
    save_picture(figure, path)


def draw_speed(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws our speed relative to the fastest setting of the fastest library, and the memory of both."""
    figure = new_figure(width=10, height=0.38 * len(rows) + 1.2)
    left, right = figure.subplots(1, 2, width_ratios=(5, 2))
    for y, row in enumerate(rows):
        peer = next(name for name in row if name != "work")
        name = max((name for name in row if name in ("ours", "ours, auto")), key=row.__getitem__)
        ratio = row[name] / row[peer]
        left.barh(y, ratio, 0.6, color=COLORS["blue" if name == "ours, auto" else "sky"], ec="black", linewidth=0.6)
        text = f"{row[name]:g} : {row[peer]:g} reviews/s, {peer.partition(',')[0]}"
        left.text(max(ratio, 1) + 0.03, y, text, va="center", fontsize=8)
    left.axvline(1, color=COLORS["black"], linestyle="--", linewidth=0.9)
    left.set(xlabel="our speed / speed of the fastest library at its fastest setting", xlim=(0, 3.2))
    left.set_yticks(range(len(rows)), [row["work"] for row in rows], fontsize=8)
    with_memory = [row for row in rows if any(name.startswith("memory") for name in row)]
    for y, row in enumerate(with_memory):
        theirs, ours = (row[name] for name in row if name.startswith("memory"))
        for dy, value, color, label in ((-0.2, theirs, COLORS["grey"], "peft"), (0.2, ours, COLORS["blue"], "ours")):
            right.barh(y + dy, value, 0.36, color=color, edgecolor="black", linewidth=0.6)
            right.text(value + 60, y + dy, f"{label} {value:,}", va="center", fontsize=8)
    right.set_yticks(range(len(with_memory)), [row["work"].replace(", ", ",\n", 1) for row in with_memory], fontsize=8)
    right.set(xlabel="peak memory of a step (MiB)", xlim=(0, 6000))
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    save_picture(figure, path)


def write_pictures(folder: Path = RESULTS / "pictures") -> None:
    """Draws all pictures of the READMEs."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, best = published_rows(), list(best_by_model().values())
    draw_accuracy(folder / "accuracy", rows)
    draw_ranking(folder / "rows", rows)
    draw_minutes(folder / "minutes", rows)
    draw_labels(folder / "labels", rows)
    draw_epochs(folder / "epochs", rows, best)
    draw_confusion(folder / "confusion", best)
    draw_reliability(folder / "reliability", best)
    draw_speed(folder / "speed", read_json(SPEEDS)["rows"])
    draw_sentence(folder / "sentence", read_json(RESULTS / "sentence.json"))
