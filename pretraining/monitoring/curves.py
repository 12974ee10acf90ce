"""Curves of a run: `progress.png`, and each of its panels as a picture for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from pretraining.monitoring.log import read_records
from pretraining.monitoring.organs import BEST_RANDOM, COORDINATES, DICE, HANDMADE, RANDOM, organ_tasks


class Panel(NamedTuple):
    """One plot.

    Attributes:
        title: above the plot.
        names: names of the values in the records.
        hint: what a reader should look for.
        empty: why there may be no values.
    """

    title: str
    names: tuple[str, ...]
    hint: str = ""
    empty: str = "not measured"


UNPAIRED = "no co-located crops"
PANELS = (
    Panel("total loss", ("total",)),
    Panel(
        "inpainting: L1 in the masked region",
        ("masked_error", "masked_error_of_mean"),
        "below the error of filling the mean",
    ),
    Panel("rotation: accuracy", ("rotation_accuracy",), "above 0.25"),
    Panel("contrastive", ("contrastive", "cross_modal")),
    Panel(
        "features at the same place: intraclass correlation",
        ("contrastive_icc", "cross_modal_icc", "contrastive_icc_adjusted", "cross_modal_icc_adjusted"),
        "0 means no more alike than elsewhere; adjusted: than in other crops at the same place",
        "no losses between maps",
    ),
    Panel(
        "density matching: JSD / ln 2",
        ("divergence_single_image", "floor_single_image", "divergence_paired"),
        "falls to its floor, while the ranks stay",
    ),
    Panel(
        "density matching in the stages: JSD / ln 2",
        ("divergence_stage_1", "floor_stage_1", "divergence_stage_2", "floor_stage_2"),
        "of single images",
    ),
    Panel(
        "effective rank / largest possible",
        ("rank_single_image", *(f"rank_stage_{stage}" for stage in range(6))),
        "near 0 means collapse",
    ),
    Panel("variance and covariance terms", ("variance", "covariance"), "fall"),
    Panel("density matching: bandwidth", ("bandwidth",), "above its floor of 0.01"),
    Panel("DIM: relative change", ("dim_change",), "0 means that it does nothing"),
    Panel("DIM: attention entropy / ln N", ("attention_entropy",), "1 means uniform attention"),
    Panel(
        "DIM: difference of the blocks' attention",
        ("attention_difference",),
        "0 means that one block would suffice",
        UNPAIRED,
    ),
    Panel("modality probe: accuracy", ("probe_accuracy",), "0.5 means invariant"),
    Panel("CKA of CT and MR", ("cka",), "1 means alike", UNPAIRED),
)
COLUMNS = 3
# A picture has not many more pixels.
MAX_POINTS = 600


def panels(records: Sequence[dict[str, Any]]) -> tuple[Panel, ...]:
    """`PANELS`, and one for each task of the organ probe in the records."""
    tasks = organ_tasks(name for record in records if record["kind"] == "validation" for name in record)
    organs = [
        Panel(
            f"organs of {task.rpartition('_')[0]}, {task.rpartition('_')[2]} labelled cases: Dice",
            tuple(f"{measure}_{task}" for measure in (DICE, RANDOM, BEST_RANDOM, HANDMADE, COORDINATES)),
            "above random encoders",
        )
        for task in tasks
    ]
    return (*PANELS, *organs)


def draw_progress(folder: Path) -> Path:
    """Draws `progress.png` of a run from its records: training as thin lines, validation as points."""
    records = read_records(folder)
    shown = panels(records)
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(6 * COLUMNS, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS).flat
    for axis, panel in zip(axes, shown, strict=False):
        _draw(axis, panel, records)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    path = folder / "progress.png"
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=80)
    return path


def panel_picture(panel: Panel, records: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of one panel, with text large enough for a phone."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    _draw(figure.subplots(), panel, records)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def measured(panel: Panel, records: Sequence[dict[str, Any]]) -> bool:
    """Whether any record has a value for the panel."""
    return any(record.get(name) is not None for record in records for name in panel.names)


def _draw(axis: Any, panel: Panel, records: Sequence[dict[str, Any]]) -> None:
    for colour, name in enumerate(panel.names):
        for kind in ("train", "validation"):
            points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
            if not points:
                continue
            steps, values = np.array(points, dtype=float).T
            if kind == "train":
                thin = -(-len(steps) // MAX_POINTS)
                axis.plot(steps[::thin], values[::thin], color=f"C{colour}", alpha=0.25, linewidth=0.8)
                steps, values = _smooth(steps, values)
                axis.plot(steps, values, color=f"C{colour}", label=f"{name}, training")
            else:
                axis.plot(steps, values, "o--", color=f"C{colour}", markersize=4, label=f"{name}, validation")
    axis.set_title(f"{panel.title}\n({panel.hint})" if panel.hint else panel.title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, panel.empty, transform=axis.transAxes, ha="center", color="gray")


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over about 40 intervals of equal length."""
    width = max(len(values) // 40, 1)
    count = len(values) // width * width
    return steps[:count].reshape(-1, width).mean(1), values[:count].reshape(-1, width).mean(1)
