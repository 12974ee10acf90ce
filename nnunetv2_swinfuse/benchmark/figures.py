"""The pictures of the report: differences as a matrix, boxes, mean ranks, learning curves, cases with contours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_swinfuse.benchmark.comparison import Comparison
from nnunetv2_swinfuse.benchmark.metrics import HIGHER_IS_BETTER
from nnunetv2_swinfuse.benchmark.scores import Scores

COLOURS = (
    "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan",
    "tab:gray",
)  # fmt: skip
# Above this share of the largest difference a cell is too dark for black text.
DARK = 0.7
CASE_COLUMNS = 4


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_matrix(comparisons: Sequence[Comparison], arms: Sequence[str]) -> bytes:
    """Row minus column: green is better, red is worse, in proportion; a star marks a difference that is shown.

    Args:
        comparisons: of one metric.
        arms: in the order of rows and columns; those of no comparison are left out.
    """
    compared = {name for comparison in comparisons for name in (comparison.first, comparison.second)}
    arms = [arm for arm in arms if arm in compared]
    size = len(arms)
    values = np.full((size, size), np.nan)
    shown = np.zeros((size, size), bool)
    for comparison in comparisons:
        i, j = arms.index(comparison.first), arms.index(comparison.second)
        values[i, j], values[j, i] = comparison.estimate.mean, -comparison.estimate.mean
        shown[i, j] = shown[j, i] = comparison.verdict != "not shown"
    sign = 1 if HIGHER_IS_BETTER[comparisons[0].metric] else -1
    limit = float(np.nanmax(np.abs(values))) or 1.0
    figure = Figure(figsize=(1.6 + 0.95 * size, 1.2 + 0.75 * size), layout="constrained")
    axis = figure.subplots()
    axis.imshow(sign * values, cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for i in range(size):
        for j in range(size):
            if np.isfinite(values[i, j]):
                star = " *" if shown[i, j] else ""
                colour = "white" if abs(values[i, j]) > DARK * limit else "black"
                axis.text(j, i, f"{values[i, j]:+.3f}{star}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(size), arms, rotation=30, ha="right", fontsize=9)
    axis.set_yticks(range(size), arms, fontsize=9)
    axis.set_title(f"{comparisons[0].metric}: row minus column", fontsize=9)
    return png(figure)


def draw_boxes(scores: Scores) -> bytes:
    """Boxes of the cases (means over runs); points are the means of the runs."""
    figure = Figure(figsize=(1.4 + 0.9 * len(scores.arms), 3.6), layout="constrained")
    axis = figure.subplots()
    axis.boxplot([scores.case_means(arm) for arm in scores.arms], widths=0.5, flierprops={"markersize": 3})
    for index, arm in enumerate(scores.arms):
        means = scores.run_means(arm)
        axis.plot(np.full(len(means), index + 1.35), means, ".", color=COLOURS[index % len(COLOURS)])
    axis.set_xticks(range(1, len(scores.arms) + 1), scores.arms, rotation=30, ha="right", fontsize=8)
    axis.set_ylabel(scores.metric)
    axis.grid(axis="y", alpha=0.3)
    return png(figure)


def draw_ranks(ranks: Mapping[str, tuple[float, float, float]], difference: float) -> bytes:
    """Mean ranks with their intervals, and Nemenyi's critical difference as a bar of that length."""
    ordered = sorted(ranks, key=lambda arm: ranks[arm][0])
    figure = Figure(figsize=(5.2, 1.4 + 0.34 * len(ordered)), layout="constrained")
    axis = figure.subplots()
    for row, arm in enumerate(ordered):
        mean, low, high = ranks[arm]
        axis.plot([low, high], [row, row], color="tab:gray", linewidth=3, alpha=0.6)
        axis.plot(mean, row, "o", color="black", markersize=5)
    axis.plot([1, 1 + difference], [-1, -1], "|-", color="tab:red")
    axis.text(1, -1.25, f"critical difference {difference:.2f}", color="tab:red", fontsize=7, va="bottom")
    axis.set_yticks(range(len(ordered)), ordered, fontsize=8)
    axis.set_ylim(len(ordered) - 0.5, -2)
    axis.set_xlabel("mean rank (1 is best)", fontsize=8)
    return png(figure)


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> bytes:
    """Loss and nnU-Net's pseudo Dice over the epochs: thin lines are runs, of each arm in its colour."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (arm, runs) in enumerate(curves.items()):
        for number, run in enumerate(runs):
            style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 0.9, "label": arm if number == 0 else None}
            # A training of one epoch is a point.
            marker = "." if len(run["train_losses"]) < 30 else ""
            left.plot(run["train_losses"], marker=marker, **style)
            right.plot(run["mean_fg_dice"], marker=marker, **style)
    for axis, title in ((left, "training loss"), (right, "pseudo Dice of test patches (nnU-Net's log)")):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    right.legend(fontsize=7)
    return png(figure)


def draw_case(image: np.ndarray, reference: np.ndarray, predictions: Mapping[str, np.ndarray]) -> bytes:
    """The slice with the largest reference: its contours dashed white, each arm's in its own colour.

    Args:
        image, reference: (z, y, x); of the prediction's grid.
        predictions: by arm, labels (z, y, x).
    """
    areas = (reference > 0).sum(axis=(1, 2))
    z = int(areas.argmax()) if areas.any() else len(image) // 2
    low, high = np.percentile(image, [1, 99.5])
    columns = min(len(predictions), CASE_COLUMNS)
    rows = -(-len(predictions) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(predictions) :]:
        axis.set_axis_off()
    for axis, (index, (arm, prediction)) in zip(axes, enumerate(predictions.items()), strict=False):
        axis.imshow(image[z], cmap="gray", vmin=low, vmax=high)
        for mask, colour, style in (
            (reference, "white", "dashed"),
            (prediction, COLOURS[index % len(COLOURS)], "solid"),
        ):
            for label in np.unique(mask[z]):
                if label > 0:
                    axis.contour(mask[z] == label, levels=[0.5], colors=colour, linestyles=style, linewidths=1)
        axis.set_title(arm, fontsize=8)
        axis.set_axis_off()
    return png(figure)


def read_volume(path: Path) -> np.ndarray:
    """An image (z, y, x)."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
