"""The cells over which the Domain Invariance Module attends: their number and positions, pooling and interpolation.

A cell is a block of neighbouring tokens that is pooled to one token.

One geometry serves pooling, positions and interpolation: along an axis of `size` tokens, `cells` cells of equal width
`size / cells` tile the map exactly, and the centre of cell i is `(i + 1/2) * size / cells` tokens from its border. The
width need not be a whole number, so that a map that grows by a token keeps its grid and widens its cells a little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple

Spacing = tuple[float, float, float]


def token_spacing(spacing: Sequence[float] | None, stride: Triple) -> Spacing:
    """Distance between the tokens of a patch embedding with this stride.

    Args:
        spacing: distance between voxels (z, y, x), mm; 1 mm isotropic if None.
        stride: voxels per token (z, y, x).

    Raises:
        ValueError: if `spacing` is not three positive numbers.
    """
    voxel = (1.0, 1.0, 1.0) if spacing is None else tuple(float(distance) for distance in spacing)
    if len(voxel) != 3 or not all(0 < distance < math.inf for distance in voxel):
        raise ValueError(f"spacing is {list(voxel)}; expected three positive numbers, mm along z, y, x")
    z, y, x = (distance * step for distance, step in zip(voxel, stride, strict=True))
    return z, y, x


@lru_cache(maxsize=1024)
def choose_grid(shape: Triple, spacing: Spacing, max_cells: float) -> Triple:
    """The finest grid of at most `max_cells` cells, with edges as equal in mm as whole numbers of cells allow.

    Args:
        shape: size of the map in tokens (z, y, x).
        spacing: distance between tokens along each axis (z, y, x), in any unit.
        max_cells: upper bound on the number of cells; at least one cell is always returned.

    Returns:
        Cells per axis (z, y, x), never more than tokens.
    """
    if math.prod(shape) <= max_cells:
        return shape
    extents = [size * distance for size, distance in zip(shape, spacing, strict=True)]

    def grid(edge: float) -> Triple:
        z, y, x = (
            min(max(math.floor(extent / edge + 0.5), 1), size) for extent, size in zip(extents, shape, strict=True)
        )
        return z, y, x

    # Bisection for the smallest edge length whose grid has at most max_cells cells. Between two neighbours of this list
    # no axis changes its number of cells.
    edge_lengths = sorted(
        {extent / (cells + 0.5) for extent, size in zip(extents, shape, strict=True) for cells in range(size)}
    )

    def grid_after(index: int) -> Triple:
        """The grid of the interval between an edge length of the list and the next one."""
        edge = edge_lengths[index]
        next_edge = edge_lengths[index + 1] if index + 1 < len(edge_lengths) else 2 * edge
        return grid(math.sqrt(edge * next_edge))

    low, high = 0, len(edge_lengths)  # in the interval after edge_lengths[high - 1] every axis has one cell
    while low < high:
        middle = (low + high) // 2
        if math.prod(grid_after(middle)) <= max_cells:
            high = middle
        else:
            low = middle + 1
    return grid_after(low) if low < len(edge_lengths) else (1, 1, 1)


def pooling_matrix(size: int, cells: int, device: torch.device | None = None) -> Tensor:
    """Weighted means of tokens: weights fall linearly from a cell's centre to those of its neighbours.

    The weights of neighbouring cells therefore overlap, so that cells change smoothly when the map is shifted by a
    fraction of a cell. With as many cells as tokens this is the identity.

    Args:
        size: tokens along the axis.
        cells: cells along the axis, from 1 to `size`.
        device: device of the result.

    Returns:
        float32 (cells, size); each row sums to 1.
    """
    positions = (_centres(size, device) * (cells / size) - 0.5).clamp(0, cells - 1)
    weights = _linear_weights(positions, cells).T
    return weights / weights.sum(1, keepdim=True)


def interpolation_matrix(size: int, cells: int, device: torch.device | None = None) -> Tensor:
    """Linear interpolation of cells from :func:`pooling_matrix` to tokens, constant beyond the outermost ones.

    A cell's value belongs to the weighted mean position of its tokens, which at the border is not quite its centre. A
    linear ramp is therefore restored exactly between the outermost cells.

    Args:
        size: tokens along the axis.
        cells: cells along the axis, from 1 to `size`.
        device: device of the result.

    Returns:
        float32 (size, cells); each row sums to 1.
    """
    tokens = _centres(size, device)
    means = pooling_matrix(size, cells, device) @ tokens
    # The mean positions of the cells are not equidistant. Each interval between two of them contributes 0 to 1 to a
    # token's position in cells.
    steps = (tokens[:, None] - means[:-1]) / (means[1:] - means[:-1])
    return _linear_weights(steps.clamp(0, 1).sum(1), cells)


def _centres(size: int, device: torch.device | None) -> Tensor:
    return torch.arange(size, device=device, dtype=torch.float32) + 0.5


def _linear_weights(positions: Tensor, cells: int) -> Tensor:
    """Hat functions: weights (positions, cells) of the two nearest cells; positions are in cells from the first one."""
    return (1 - (positions[:, None] - torch.arange(cells, device=positions.device)).abs()).clamp_min(0)


def apply_along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Applies one matrix (new, old) along each of the last three axes of (B, C, z, y, x)."""
    along_z, along_y, along_x = (matrix.to(x.dtype) for matrix in matrices)
    x = x @ along_x.T
    x = along_y @ x
    return (along_z @ x.flatten(3)).unflatten(3, (along_y.shape[0], along_x.shape[0]))


def position_encoding(
    grid: Triple,
    edges: Spacing,
    channels: int,
    device: torch.device | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Sines and cosines of the cell centres, for any grid (after Vaswani et al., arXiv 1706.03762, in 3D).

    The longest wavelength is twice the longest extent of the map, so that no two positions are the same, and the
    shortest is at least four cells, so that neighbours are not aliased. Successive wavelengths differ by a factor of 2
    at most, which keeps near cells more alike than distant ones however few channels there are.

    Args:
        grid: cells per axis (z, y, x).
        edges: edge lengths of a cell (z, y, x), in any unit that is the same for all axes.
        channels: channels of the tokens, 6 or more; those that do not divide into six are zero.
        device: of the result.
        shift: float32 (B, 3), moves all positions of a sample along the axes (z, y, x); a share of the longest
            wavelength.

    Returns:
        float32 (prod(grid), channels); (B, prod(grid), channels) with `shift`.
    """
    frequencies = channels // 6
    longest = 2 * max(cells * edge for cells, edge in zip(grid, edges, strict=True))
    shortest = min(4 * max(edges), longest)
    ratio = min(2.0, (longest / shortest) ** (1 / max(frequencies - 1, 1)))
    rates = 2 * math.pi / longest * ratio ** torch.arange(frequencies, device=device, dtype=torch.float32)
    batch = [] if shift is None else [len(shift)]
    encoding = torch.zeros(*batch, *grid, channels, device=device)
    for axis in range(3):
        centres = (torch.arange(grid[axis], device=device, dtype=torch.float32) + 0.5) * edges[axis]
        if shift is not None:
            centres = centres + longest * shift[:, axis, None]
        angles = centres[..., None] * rates
        view = [*batch, 1, 1, 1, frequencies]
        view[len(batch) + axis] = grid[axis]
        first = 2 * axis * frequencies
        encoding[..., first : first + frequencies] = angles.sin().reshape(view)
        encoding[..., first + frequencies : first + 2 * frequencies] = angles.cos().reshape(view)
    return encoding.reshape(*batch, -1, channels)
