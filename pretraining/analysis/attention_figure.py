"""Pictures of the attention between a registered CT and MR crop: overlays in both directions, and the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple, triple
from pretraining.analysis.attention import DIFFERENCES, RELATIVE, Weights
from pretraining.analysis.figures import arm_styles, new_figure, save
from pretraining.token_samples import foreground_tokens
from pretraining.voxel_probe.results import Summary

QUERIES = 3
# The overlay covers the image where attention is this many times the uniform one, and fades below.
STRONG = 2.0
OPACITY = 0.6
QUERY = "#56B4E9"


def choose_queries(tissue: Tensor, grid: Triple) -> Tensor:
    """Three cells with tissue, apart from each other, in the axial layer of cells that shows most tissue.

    The first is nearest to the middle of the tissue; each further one is as far from the others as possible.

    Args:
        tissue: bool (cells,).
        grid: cells (z, y, x).

    Returns:
        Indices of cells, int64; fewer where fewer cells show tissue, none without tissue.
    """
    layers = tissue.reshape(grid)
    counts = layers.sum((1, 2))
    # The middle one of equal layers: outer ones may lie partly in padding.
    layer = min((counts == counts.max()).nonzero()[:, 0].tolist(), key=lambda z: abs(z - (grid[0] - 1) / 2))
    places = layers[layer].nonzero().float()
    if not len(places):
        return torch.zeros(0, dtype=torch.int64)
    chosen = [int((places - places.mean(0)).square().sum(1).argmin())]
    while len(chosen) < min(QUERIES, len(places)):
        chosen.append(int(torch.cdist(places, places[chosen]).amin(1).argmax()))
    y, x = places[chosen].long().T
    return (layer * grid[1] + y) * grid[2] + x


def mean_attention(weights: Weights) -> Tensor:
    """Attention (queries, keys) averaged over layers and heads, relative to uniform attention (1)."""
    return torch.stack([layer[0].float().mean(0) for layer in weights]).mean(0) * weights[0].shape[-1]


def slice_of(images: Sequence[Tensor], layer: int, grid: Triple) -> int:
    """The axial slice in a layer of cells in which both images (1, 1, z, y, x) vary most: none of padding."""
    size = images[0].shape[2]
    first, end = layer * size // grid[0], max((layer + 1) * size // grid[0], layer * size // grid[0] + 1)
    variation = torch.stack([image[0, 0, first:end].flatten(1).std(1) for image in images]).amin(0)
    return first + int(variation.argmax())


def cell_slice(values: Tensor, grid: Triple, shape: Triple, z: int) -> np.ndarray:
    """Values of the cells (cells,) at the voxels (y, x) of an axial slice of an image of `shape`; nearest cell."""
    index = [
        torch.div((torch.arange(size) + 0.5) * cells, size, rounding_mode="floor").long()
        for size, cells in zip(shape, grid, strict=True)
    ]
    cells = values.reshape(grid)
    return cells[index[0][z]][index[1]][:, index[2]].numpy()


def draw_overlay(
    path: Path,
    images: tuple[Tensor, Tensor],
    names: tuple[str, str],
    attention: tuple[Tensor, Tensor],
    grid: Triple,
    spacing: Sequence[float],
    title: str,
) -> Path:
    """Draws both directions: what CT's queries attend to in the MR, and what those of MR attend to in the CT.

    The first column shows how much attention each cell receives from all queries with tissue; the others one query
    each. Slices are axial, seen from below as radiologists do: front at the top, the patient's right at the left.

    Args:
        path: the PNG to write.
        images: both crops (1, 1, z, y, x).
        names: of the domains.
        attention: from :func:`mean_attention`, of the first domain's queries to the second's keys, and vice versa.
        grid: cells (z, y, x).
        spacing: of the voxels, mm (z, y, x).
        title: of the picture.
    """
    tissue = [foreground_tokens(image, grid)[0] for image in images]
    queries = choose_queries(tissue[0] & tissue[1], grid)
    shape = triple(images[0].shape[2:])
    layer = int(queries[0]) // (grid[1] * grid[2]) if len(queries) else grid[0] // 2
    z = slice_of(images, layer, grid)
    size = shape[2] * spacing[2], shape[1] * spacing[1]
    figure, axes = new_figure(2, 3 + len(queries), 2.6, 2.9)
    slices = [image[0, 0, z].numpy() for image in images]
    overlays: list[tuple[Any, np.ndarray]] = []
    for row, (asking, asked) in enumerate(((0, 1), (1, 0))):
        _grey(axes[row, 0], slices[asking], size)
        axes[row, 0].set_title(f"{names[asking]}: where queries are", fontsize=9)
        _grey(axes[row, 1], slices[asked], size)
        axes[row, 1].set_title(f"{names[asked]}: what is attended to", fontsize=9)
        for number, query in enumerate(queries):
            _mark(axes[row, 0], query, number, grid, size)
        of_all = attention[row][tissue[asking]].mean(0) if bool(tissue[asking].any()) else attention[row].mean(0)
        for number, values in enumerate([of_all, *attention[row][queries]]):
            axis = axes[row, 2 + number]
            _grey(axis, slices[asked], size)
            overlays.append((axis, cell_slice(values, grid, shape, z)))
            if number:
                _mark(axis, queries[number - 1], number - 1, grid, size)
            inside = float(values.reshape(grid)[layer].sum() / values.sum().clamp_min(1e-12))
            of_query = f"of query {number}" if number else "of all queries"
            axis.set_title(f"{of_query}; {inside:.0%} in this layer", fontsize=9)
    largest = max(STRONG, *(float(overlay.max()) for _, overlay in overlays))
    for axis, overlay in overlays:
        axis.imshow(
            np.fliplr(overlay), cmap="inferno", vmin=0, vmax=largest, origin="lower", interpolation="nearest",
            alpha=np.fliplr(np.clip(overlay / STRONG, 0, 1) * OPACITY), extent=(0, size[0], 0, size[1]),
        )  # fmt: skip
    scale = ScalarMappable(Normalize(0, largest), "inferno")
    figure.colorbar(scale, ax=axes, label="attention / uniform attention", shrink=0.6)
    figure.suptitle(
        f"{title}: attention averaged over layers and heads\naxial slice of one layer of cells; mm; "
        "A: front, R: the patient's right", fontsize=10,
    )  # fmt: skip
    return save(figure, path)


def draw_differences(path: Path, results: Mapping[str, Mapping[str, Summary]], random: str) -> Path:
    """Draws the measures of all arms side by side: a point for each encoder, a line for the interval over patients.

    Args:
        path: the PNG to write.
        results: of each arm, by measure.
        random: arms whose name begins with this are drawn in grey.
    """
    figure, axes = new_figure(1, 2, 5.6, 3.8)
    width = 0.8 / max(len(results), 1)
    styles = arm_styles(results, random)
    for position, (name, summaries) in enumerate(results.items()):
        colour, marker, _ = styles[name]
        for axis, shown in zip(axes[0], (DIFFERENCES, RELATIVE), strict=True):
            for place, measure in enumerate(shown):
                summary, x = summaries[measure], place - 0.4 + width * (position + 0.5)
                label = None if place else name
                axis.plot(
                    [x] * len(summary.seeds), summary.seeds, linestyle="", marker=marker, color=colour, label=label
                )
                if summary.interval:
                    axis.plot([x, x], summary.interval, color=colour, linewidth=1)
    for axis, shown in zip(axes[0], (DIFFERENCES, RELATIVE), strict=True):
        axis.set_xticks(range(len(shown)), shown, rotation=30, ha="right", fontsize=9)
        axis.grid(alpha=0.3, axis="y")
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    axes[0, 0].set_ylabel("JSD / ln 2 of attention rows")
    axes[0, 0].set_title("How differently rows attend, by what is compared", fontsize=10)
    axes[0, 1].axhline(1, color="black", linewidth=0.8)
    axes[0, 1].set_title("Relative to uniform attention (1)", fontsize=10)
    axes[0, 0].legend(fontsize=8)
    return save(figure, path)


def _grey(axis: Any, image: np.ndarray, size: tuple[float, float]) -> None:
    """A slice (y, x) in RAS order as radiologists see it: the front at the top, the patient's right at the left."""
    low, high = np.percentile(image, [1, 99])
    axis.imshow(
        np.fliplr(image), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", interpolation="nearest",
        extent=(0, size[0], 0, size[1]),
    )  # fmt: skip
    for text, x, y in (("A", 0.5, 0.96), ("R", 0.04, 0.5)):
        axis.text(
            x, y, text, transform=axis.transAxes, color="white", ha="center", va="center", fontsize=8,
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )  # fmt: skip
    axis.tick_params(labelsize=7)


def _mark(axis: Any, query: Tensor, number: int, grid: Triple, size: tuple[float, float]) -> None:
    """A cross at the centre of a cell, with its number."""
    row, column = int(query) // grid[2] % grid[1], int(query) % grid[2]
    x, y = size[0] * (1 - (column + 0.5) / grid[2]), size[1] * (row + 0.5) / grid[1]
    axis.plot(x, y, "+", color=QUERY, markersize=10, markeredgewidth=2)
    axis.annotate(
        str(number + 1), (x, y), (4, 4), textcoords="offset points", color=QUERY, fontsize=9, fontweight="bold",
        path_effects=[withStroke(linewidth=1.5, foreground="black")],
    )  # fmt: skip
