"""What the pictures of the analysis share: colours that colour-blind readers can tell apart, curves, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), without its yellow, which is pale on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
GREY = "#9A9A9A"
# Markers and lines of random encoders, which are all grey.
FLOOR_STYLES = (("x", "--"), ("+", ":"), ("1", "-."), ("2", (0, (5, 1))))
DPI = 110
# Smallest range of a y axis.
SPAN = 0.1

# One curve: a value for each position, None where it was not measured.
Curve = Sequence[float | None]


def colour_of(number: int) -> str:
    """A colour; they repeat after seven."""
    return COLOURS[number % len(COLOURS)]


def marker_of(number: int) -> str:
    """A marker, which changes when the colours repeat as well."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


class Style(NamedTuple):
    """How an arm is drawn, in matplotlib's terms."""

    color: str
    marker: str
    linestyle: Any


def arm_styles(names: Iterable[str], random: str) -> dict[str, Style]:
    """A style for each arm; those whose name begins with `random` are grey, with a line for each architecture."""
    styles: dict[str, Style] = {}
    for name in names:
        floors = sum(style.color == GREY for style in styles.values())
        if name.startswith(random):
            styles[name] = Style(GREY, *FLOOR_STYLES[floors % len(FLOOR_STYLES)])
        else:
            number = len(styles) - floors
            styles[name] = Style(colour_of(number), marker_of(number), "-")
    return styles


def new_figure(rows: int, columns: int, width: float = 3.6, height: float = 3.0) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), each of this size in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG; a reader never sees an incomplete file."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return path


def draw_curves(axis: Any, positions: Sequence[Any], curves: Mapping[str, Sequence[Curve]], random: str) -> None:
    """Draws curves by arm; several seeds of an arm are one band with their mean.

    Args:
        axis: of matplotlib.
        positions: along x, numbers or names.
        curves: of each seed, by arm.
        random: arms whose name begins with this are the floor, drawn in grey.
    """
    places = np.arange(len(positions)) if isinstance(positions[0], str) else np.array(positions, float)
    # Of all arms, also those without values: an arm has the same style in all panels.
    styles = arm_styles(curves, random)
    for name, seeds in curves.items():
        values = np.array([[np.nan if value is None else value for value in curve] for curve in seeds], float)
        if np.isnan(values).all():
            continue
        with np.errstate(all="ignore"):
            mean = values.mean(0)
        axis.plot(places, mean, **styles[name]._asdict(), markersize=5, label=name)
        if len(values) > 1:
            axis.fill_between(places, values.min(0), values.max(0), color=styles[name].color, alpha=0.25, linewidth=0)
    if isinstance(positions[0], str):
        axis.set_xticks(places, positions, rotation=35, ha="right", fontsize=8)
    widen(axis)
    axis.grid(alpha=0.3)


def widen(axis: Any) -> None:
    """Makes the y axis span 0.1 at least, so that small differences do not look large."""
    low, high = axis.get_ylim()
    if high - low < SPAN:
        middle = (low + high) / 2
        axis.set_ylim(middle - SPAN / 2, middle + SPAN / 2)


def shared_legend(figure: Figure, axes: np.ndarray, columns: int = 4) -> None:
    """One legend below all axes, of everything that is drawn in any of them."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=9)
