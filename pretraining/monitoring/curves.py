"""`progress.png`: the losses and the health of a run over its steps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pretraining.monitoring.log import read_records

# Panels of the picture: title, quantities, and what a reader should look for.
PANELS = [
    ("total loss", ["total"], ""),
    (
        "inpainting: L1 in the masked region",
        ["masked_error", "masked_error_of_mean"],
        "below the error of filling the mean",
    ),
    ("rotation: accuracy", ["rotation_accuracy"], "above 0.25"),
    ("contrastive", ["contrastive"], ""),
    ("density matching: JSD / ln 2", ["divergence_share"], "falls, while rank and variance stay"),
    ("density matching: rank and variance", ["effective_rank", "feature_variance"], "0 means collapse"),
    ("DIM: relative change", ["dim_change"], "0 means it does nothing"),
    ("DIM: attention entropy / ln N", ["attention_entropy"], "1 means uniform attention"),
]


def draw_progress(folder: Path) -> Path:
    """Draws `progress.png` in a run folder from its records; training thin, validation with points."""
    records = read_records(folder)
    figure = Figure(figsize=(14, 14), layout="constrained")
    axes = figure.subplots(4, 2).flat
    for axis, (title, names, hint) in zip(axes, PANELS, strict=True):
        for colour, name in enumerate(names):
            for kind in ("train", "validation"):
                points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
                if not points:
                    continue
                steps, values = np.array(points, dtype=float).T
                if kind == "train":
                    axis.plot(steps, values, color=f"C{colour}", alpha=0.25, linewidth=0.8)
                    steps, values = _smooth(steps, values)
                    axis.plot(steps, values, color=f"C{colour}", label=f"{name}, training")
                else:
                    axis.plot(steps, values, "o--", color=f"C{colour}", markersize=4, label=f"{name}, validation")
        axis.set_title(f"{title} ({hint})" if hint else title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    path = folder / "progress.png"
    temporary = folder / "progress.tmp.png"
    figure.savefig(temporary, dpi=80)
    os.replace(temporary, path)
    return path


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over about 60 equal stretches."""
    width = max(len(values) // 60, 1)
    count = len(values) // width * width
    return steps[:count].reshape(-1, width).mean(1), values[:count].reshape(-1, width).mean(1)
