"""Draws with matplotlib, which is optional: figures, an axis for accuracies, texts beside points, files.

data/row_pictures.py draws the published rows with it.
"""

import io
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.files import write_output

# Okabe & Ito's palette, which colour-blind readers can distinguish. Pictures vary marker or dash with the colour, so
# that they are readable in grey too.
COLORS = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#BBBBBB",
}
ACCURACY_TICKS = (50, 60, 70, 75, 80, 85, 88, 90, 91, 92, 93, 94, 95, 96, 97)  # per cent
SMALL = 7.5  # points, of texts beside points


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure; the size is in inches. Raises ValueError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # optional, and slow to import
    except ModuleNotFoundError as error:
        raise ValueError("drawing needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def error_axis(axes: Any, errors: Sequence[float], vertical: bool = True) -> None:
    """Labels an axis of errors in per cent as accuracies. Its spacing is the logarithm of the error, and better is up
    or right: so the best rows, which differ little, are apart."""
    limits = max(errors) * 1.12, min(errors) * 0.9
    ticks = [accuracy for accuracy in ACCURACY_TICKS if limits[1] <= 100 - accuracy <= limits[0]]
    if vertical:
        axes.set(yscale="log", ylim=limits)
        axes.set_yticks([100 - tick for tick in ticks], [f"{tick}" for tick in ticks])
    else:
        axes.set(xscale="log", xlim=limits)
        axes.set_xticks([100 - tick for tick in ticks], [f"{tick}" for tick in ticks])


def log_ticks(axes: Any, ticks: Sequence[float], values: Sequence[float]) -> None:
    """Spaces the horizontal axis by the logarithm, with room for texts around the values and ticks in plain digits."""
    limits = min(values) / 1.6, max(values) * 1.9
    shown = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    axes.set(xscale="log", xlim=limits)
    axes.set_xticks(shown, [f"{tick:,}" for tick in shown])


class Point(NamedTuple):
    """A drawn point: coordinates in data units, and the text that belongs beside it, "" for none."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    """A horizontal line: its height in data units, and its name."""

    y: float
    text: str


def label_points(figure: Any, axes: Any, points: Sequence[Point], line: Line | None = None) -> None:
    """Writes the texts beside the points, where neither a text nor a point is hidden. Earlier points go first.

    The name of the line goes before them, above or below the line, as far right as there is room. A text without room
    is left out. Limits and scales of the axes must be final.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # fixes the layout, and so the pixels of each point
    pixels, inside = axes.transData.transform([(point.x, point.y) for point in points]), axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels]
    taken += [text.get_window_extent() for text in axes.texts]

    def write(text: str, at: tuple[float, float], offset: tuple[float, float], **place: Any) -> bool:
        """Writes a text at a point plus an offset in points of 1/72 inch; returns False if there is no room."""
        note = axes.annotate(text, at, offset, textcoords="offset points", fontsize=SMALL, **place)
        note.set_in_layout(False)
        box = note.get_window_extent()
        inner = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if inner and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return True
        note.remove()
        return False

    if line:
        across, sides = axes.get_yaxis_transform(), (("bottom", 2), ("top", -2))
        for end, (va, dy) in itertools.product(range(100, 0, -5), sides):
            if write(line.text, (end / 100, line.y), (-2, dy), xycoords=across, ha="right", va=va):
                break
    for point in (point for point in points if point.text):
        for dx, dy in ((7, 0), (-7, 0), (0, 8), (0, -8), (6, 7), (6, -7), (-6, 7), (-6, -7)):
            side = "center" if dx == 0 else "left" if dx > 0 else "right"
            va = "center" if dy == 0 else "bottom" if dy > 0 else "top"
            if write(point.text, (point.x, point.y), (dx, dy * 0.5), ha=side, va=va):
                break


def write_figure(figure: Any, path: Path) -> None:
    """Writes a picture to the file that a user named, atomically. A name without an ending gets .png.

    Raises ValueError for a file type that matplotlib does not write.
    """
    path, buffer = path if path.suffix else path.with_suffix(".png"), io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Glyph .* missing from")
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
    if any("Glyph" in str(warning.message) for warning in caught):
        print(f"note: {path}: the font lacks some characters of the names, which are drawn as boxes")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, buffer.getvalue())


def save_picture(figure: Any, path: Path) -> None:
    """Writes path.svg and path.png. They depend on the drawing alone: fixed element ids, no date, no version."""
    import matplotlib  # optional, and slow to import

    for axes in figure.axes:
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
