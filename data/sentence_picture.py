"""Draws how models weigh the words of one sentence: effects on the log-odds, attention, routing to capsules.

data/results/sentence.json has the numbers, which tests/bench/sentence.py computed.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data.pictures import COLORS, SMALL, new_figure, save_picture

NAMES = {  # model -> what its panel says
    "nb_linear": "nb_linear, the built-in linear model, trained on IMDb and the built-in reviews",
    "attention_lstm": "attention_lstm, trained on the built-in reviews",
    "capsule_lstm": "capsule_lstm, trained on the built-in reviews",
}
EFFECTS = {"integrated gradients": "integrated gradients", "leaving out": "leaving the word out"}
STRONGEST = 0.65  # opacity of the largest value of a row: its number stays readable
SMALLEST = 0.005  # smaller values have no number


def shades(values: np.ndarray, positive: str) -> np.ndarray:
    """Returns the colour of each value of a row on white, relative to its largest: [N, 3] in 0 … 1

    positive: colour of values above 0; those below 0 are vermillion.
    """
    from matplotlib.colors import to_rgb  # optional, and slow to import

    opacity = STRONGEST * np.abs(values) / max(np.abs(values).max(), SMALLEST)
    color = np.where(values[:, None] > 0, to_rgb(COLORS[positive]), to_rgb(COLORS["vermillion"]))
    return 1 + opacity[:, None] * (color - 1)


def number(value: float, signed: bool) -> str:
    """Returns the text of a cell."""
    if abs(value) < SMALLEST:
        return ""
    return f"{value:+.2f}".replace("-", "−") if signed else f"{value:.2f}"


def draw_model(axes: Any, model: dict[str, Any]) -> None:
    """Draws the effects and the weights of one model, a row each, one cell for each word."""
    rows = [(title, np.array(values), False) for title, values in model["weights"].items()]
    rows += [(title, np.array(model[key]), True) for key, title in EFFECTS.items()]
    image = np.stack([shades(values, "blue" if signed else "green") for _, values, signed in rows])  # [rows, words, 3]
    axes.imshow(image, aspect="auto")
    for y, (_, values, signed) in enumerate(rows):
        for x, value in enumerate(values):
            axes.text(x, y, number(value, signed), ha="center", va="center", fontsize=SMALL)
    count = len(model["words"])
    axes.hlines(np.arange(len(rows) + 1) - 0.5, -0.5, count - 0.5, color=COLORS["grey"], linewidth=0.6, clip_on=False)
    axes.vlines(np.arange(count + 1) - 0.5, -0.5, len(rows) - 0.5, color=COLORS["grey"], linewidth=0.6, clip_on=False)
    axes.set_yticks(range(len(rows)), [title.replace("-", "−") for title, *_ in rows], fontsize=8)
    axes.set_xticks(range(count), model["words"], fontsize=9)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    title = f"{NAMES[model['model']]}: positive with probability {model['probabilities']['positive']:.2f}"
    axes.set_title(title, fontsize=10, loc="left", pad=8)


def draw_sentence(path: Path, found: dict[str, Any]) -> None:
    """Draws the models over the words of the sentence. found: what sentence.json has"""
    heights = [len(EFFECTS) + len(model["weights"]) for model in found["models"]]
    figure = new_figure(width=11, height=0.32 * sum(heights) + 0.7 * len(heights) + 0.5)
    figure.get_layout_engine().set(h_pad=0.1)
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, model in zip(panels, found["models"], strict=True):
        draw_model(axes, model)
    legend = (
        "Effects on the log-odds of “positive”: blue and + for it, orange and − against it. Green: weights of the "
        "network, summed over the tokens of a word\n(“bored” and “.” are two). After a capsule: what it adds to the "
        "logit of the label. Each row is shaded relative to its largest value. Empty: below 0.005."
    )
    figure.supxlabel(legend, fontsize=8, x=0.02, ha="left")
    save_picture(figure, path)
