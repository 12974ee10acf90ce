import itertools
import math

import pytest
import torch

from nnunetv2_swinfuse.architecture.cell_grid import (
    apply_along_axes,
    choose_grid,
    interpolation_matrix,
    pooling_matrix,
    position_encoding,
    token_spacing,
)

pytestmark = pytest.mark.slow

# Maps of 3d plans and presets in tokens (z, y, x), their token spacing and the bound on cells.
MAPS = [
    ((20, 28, 20), (2.0, 2.0, 2.0), 216),
    ((16, 16, 16), (1.0, 1.0, 1.0), 216),
    ((32, 32, 32), (1.0, 1.0, 1.0), 2048),
    ((48, 48, 48), (1.0, 1.0, 1.0), 2048),
    ((64, 64, 64), (1.0, 1.0, 1.0), 2048),
    ((32, 64, 56), (1.0, 1.0, 1.0), 2048),
    ((20, 160, 128), (3.0, 1.25, 1.25), 2048),
    ((17, 64, 64), (7.7, 5.0, 5.0), 700),
    ((13, 12, 12), (1.0, 1.0, 1.0), 100.5),
    ((1, 40, 3), (1.0, 1.0, 1.0), 20),
]


def round_trip(x, grid):
    """Pools a map (B, C, z, y, x) to a grid and interpolates back."""
    shape = x.shape[2:]
    cells = apply_along_axes(x, [pooling_matrix(size, count) for size, count in zip(shape, grid, strict=True)])
    return apply_along_axes(cells, [interpolation_matrix(size, count) for size, count in zip(shape, grid, strict=True)])


@pytest.mark.parametrize(("shape", "spacing", "bound"), MAPS)
def test_grid_is_the_finest_isotropic_one_within_the_bound(shape, spacing, bound):
    grid = choose_grid(shape, spacing, bound)
    assert math.prod(grid) <= bound
    extents = [size * distance for size, distance in zip(shape, spacing, strict=True)]
    finest = 0
    # Every edge length of a fine scan, cells rounded to whole numbers: none within the bound has more cells.
    for step in range(4000):
        edge = max(extents) * 2 * 0.998**step
        counts = [min(max(math.floor(e / edge + 0.5), 1), size) for e, size in zip(extents, shape, strict=True)]
        if math.prod(counts) <= bound:
            finest = max(finest, math.prod(counts))
    assert math.prod(grid) >= finest
    edges = [e / count for e, count, size in zip(extents, grid, shape, strict=True) if 1 < count < size]
    if edges:
        assert max(edges) / min(edges) < 1.5


def test_grid_of_a_cube_is_a_cube_and_of_a_small_map_the_map():
    for size, bound in itertools.product((12, 13, 31, 48, 64), (50, 216, 2048)):
        assert len(set(choose_grid((size,) * 3, (1.0, 1.0, 1.0), bound))) == 1
    assert choose_grid((4, 5, 6), (1.0, 1.0, 1.0), 120) == (4, 5, 6)
    assert choose_grid((4, 5, 6), (1.0, 1.0, 1.0), 0.5) == (1, 1, 1)


def test_matrices_of_five_tokens_in_two_cells():
    # Cell centres lie at 1.25 and 3.75 tokens, token centres at 0.5, 1.5, ..., 4.5.
    weights = torch.tensor([[1.0, 0.9, 0.5, 0.1, 0.0], [0.0, 0.1, 0.5, 0.9, 1.0]])
    torch.testing.assert_close(pooling_matrix(5, 2), weights / 2.5)
    # The means of those tokens lie at 1.38 and 3.62.
    second = torch.tensor([0.0, 0.12 / 2.24, 0.5, 2.12 / 2.24, 1.0])
    torch.testing.assert_close(interpolation_matrix(5, 2), torch.stack([1 - second, second], 1))
    torch.testing.assert_close(pooling_matrix(6, 6), torch.eye(6))


@pytest.mark.parametrize(("shape", "spacing", "bound"), MAPS)
def test_a_coordinate_ramp_comes_back_in_place(shape, spacing, bound):
    grid = choose_grid(shape, spacing, bound)
    axes = [torch.arange(size, dtype=torch.float32) for size in shape]
    ramp = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    result = round_trip(ramp, grid)[0]
    for axis, (size, cells) in enumerate(zip(shape, grid, strict=True)):
        # Beyond the outermost cells there is nothing to interpolate to: up to half a cell at each border.
        border = math.ceil(0.6 * size / cells)
        error = (result[axis] - ramp[0, axis]).abs()
        assert error.max() < border
        if size > 2 * border:
            assert error.narrow(axis, border, size - 2 * border).max() < 0.001


def test_a_blob_in_a_wide_map_comes_back_where_it_was():
    shape = (20, 320, 256)
    grid = choose_grid(shape, (1.0, 1.0, 1.0), 2048)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in shape), indexing="ij")
    centre = (10.0, 136.0, 200.0)
    blob = torch.exp(-sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) / (2 * 12.0**2))
    result = round_trip(blob[None, None], grid)[0, 0]
    for axis, c in list(zip(axes, centre, strict=True))[1:]:
        assert (axis * result).sum() / result.sum() == pytest.approx(c, abs=0.1)


@pytest.mark.parametrize("channels", [6, 8, 12, 24, 32, 48])
@pytest.mark.parametrize(("shape", "spacing", "bound"), MAPS)
def test_positions_are_distinct_and_neighbours_more_alike_than_strangers(shape, spacing, bound, channels):
    grid = choose_grid(shape, spacing, bound)
    edges = tuple(d * size / cells for d, size, cells in zip(spacing, shape, grid, strict=True))
    encoding = position_encoding(grid, edges, channels)
    assert encoding.shape == (math.prod(grid), channels)
    distances = torch.cdist(encoding, encoding, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distances + torch.eye(len(distances))).min() > 0.02
    centres = torch.cartesian_prod(*(torch.arange(n) for n in grid)).float() * torch.tensor(edges)
    apart = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    neighbours = (apart > 0) & (apart <= 1.01 * max(edges))
    distant = apart > 3.5 * max(edges)
    if neighbours.any() and distant.any():
        assert distances[neighbours].max() < distances[distant].min()


def test_token_spacing():
    assert token_spacing((5.0, 2.5, 2.5), (1, 2, 2)) == (5.0, 5.0, 5.0)
    assert token_spacing(None, (1, 2, 2)) == (1.0, 2.0, 2.0)
    for wrong in ((1.0, 0.0, 1.0), (1.0, 1.0), (math.nan, 1.0, 1.0)):
        with pytest.raises(ValueError, match="three positive numbers"):
            token_spacing(wrong, (1, 1, 1))


def test_a_shift_by_one_cell_moves_the_encoding_by_one_cell():
    grid, edges = (4, 3, 5), (2.0, 1.0, 1.0)
    # The longest wavelength is twice the longest extent, 2 * 4 * 2.0.
    shift = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0]]) / 16
    still = position_encoding(grid, edges, 24).reshape(*grid, 24)
    moved = position_encoding(grid, edges, 24, shift=shift).reshape(2, *grid, 24)
    torch.testing.assert_close(moved[0], still)
    torch.testing.assert_close(moved[1, :-1, :, :-1], still[1:, :, 1:], atol=1e-5, rtol=0)
