"""Order and direction of a volume's axes, as codes such as `RAS`: where the x, y and z axes of the array point.

Codes are those of ITK and of nibabel: in `RAS`, voxel indices grow to the right, to the front and upwards. An oblique
volume has the code of the nearest axes of the body.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.imaging.grid import Grid


def orientation_code(direction: tuple[float, ...]) -> str:
    """Code of a direction matrix, row by row, such as `LPS` for the identity."""
    return str(sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(direction))


def reoriented(grid: Grid, code: str) -> Grid:
    """The grid of a volume after its axes are exchanged and flipped to a code; no voxel moves in space."""
    # ITK decides on the axes; it needs an image, but not one of the volume's size.
    small = sitk.Image([2, 2, 2], sitk.sitkUInt8)
    small.SetDirection(grid.direction)
    filter_ = sitk.DICOMOrientImageFilter()
    filter_.SetDesiredCoordinateOrientation(code)
    direction = filter_.Execute(small).GetDirection()
    order, flipped = filter_.GetPermuteOrder(), filter_.GetFlipAxes()
    size = tuple(grid.size[axis] for axis in order)
    spacing = tuple(grid.spacing[axis] for axis in order)
    # Along a flipped axis, the first voxel is the one that was the last.
    columns = np.reshape(grid.direction, (3, 3))[:, order]
    steps = [(n - 1) * distance if flip else 0.0 for n, distance, flip in zip(size, spacing, flipped, strict=True)]
    origin = np.array(grid.origin) + columns @ steps
    return Grid(size, spacing, tuple(float(value) for value in origin), direction)
