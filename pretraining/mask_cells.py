"""Sizes of the cells that masking cuts out of a crop, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunetv2_swinfuse.architecture.topology import Triple, triple

# Cells of a crop, if their size is chosen automatically: with fewer, the share that is cut out is far from the one that
# was asked for, and a crop may be cut out as a whole.
MIN_CELLS = 8


def automatic_cell(crop: Sequence[int], token: Triple) -> Triple:
    """A cell as large as a token of the deepest stage, its longest side halved until a crop has MIN_CELLS cells.

    Args:
        crop: voxels of a crop (z, y, x).
        token: voxels of a token (z, y, x).
    """
    cell = list(token)
    while math.prod(cells_along_axes(crop, cell)) < MIN_CELLS and max(cell) > 1:
        axis = cell.index(max(cell))
        cell[axis] = -(-cell[axis] // 2)
    return triple(cell)


def cells_along_axes(crop: Sequence[int], cell: Sequence[int]) -> Triple:
    """Cells along z, y, x; the last one along an axis may be smaller."""
    return triple([-(-size // side) for size, side in zip(crop, cell, strict=True)])


def cells_to_cut_out(share: float, grid: Sequence[int]) -> int:
    """How many cells of a grid (z, y, x) are cut out for a share of the crop."""
    return round(share * math.prod(grid))
