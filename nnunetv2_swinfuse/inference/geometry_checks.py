"""Size, spacing, field of view and orientation of an image against the training images: one pure function a check.

The bounds are wide on purpose: they are meant to catch lost or wrong headers and other anatomy, not unusual patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nnunetv2_swinfuse.imaging.orientation import orientation_code
from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference.findings import Finding, Severity
from nnunetv2_swinfuse.inference.model_description import REORIENTING, ModelDescription, grid_as_read

AXES = ("z", "y", "x")
# A volume of fewer slices has no third dimension for a network to see.
SMALLEST = 4
# Coarser than the coarsest training image, or finer than the finest, by this factor.
COARSER = {Severity.WARNING: 1.5, Severity.REFUSED: 3.0}
FINER = {Severity.WARNING: 3.0, Severity.REFUSED: 12.0}
# Smaller than the smallest training image along an axis, or larger than the largest.
SMALLER = {Severity.WARNING: 2.0, Severity.REFUSED: 4.0}
LARGER = {Severity.WARNING: 2.0, Severity.REFUSED: 5.0}
# Less of the body than the smallest training image shows, in volume.
LESS = {Severity.WARNING: 4.0, Severity.REFUSED: 8.0}
# Largest difference of D D^T from the identity: headers hold about seven digits.
TOLERANCE = 1e-3


def check_size(volume: VoxelVolume) -> Finding | None:
    """Enough voxels along each axis for a 3D network."""
    if min(volume.voxels.shape) >= SMALLEST:
        return None
    return Finding(
        "size", Severity.REFUSED,
        f"{_text(volume.voxels.shape)} voxels (z, y, x), expected at least {SMALLEST} along each axis",
        "Export the whole 3D series, not single slices.", str(volume.path),
    )  # fmt: skip


def check_direction(volume: VoxelVolume) -> Finding | None:
    """The three axes at right angles, each of length 1."""
    matrix = np.array(volume.grid.direction).reshape(3, 3)
    error = float(np.abs(matrix @ matrix.T - np.eye(3)).max()) if np.isfinite(matrix).all() else np.inf
    if error <= TOLERANCE:
        return None
    return Finding(
        "direction", Severity.REFUSED,
        f"the direction matrix of its header is not orthonormal (off by {error:.3g}): a sheared or tilted image, such "
        "as a CT with gantry tilt, or a damaged header",
        "Resample it to a regular grid, for example by dcm2niix or 3D Slicer.", str(volume.path),
    )  # fmt: skip


def check_spacing(volume: VoxelVolume, model: ModelDescription) -> Finding | None:
    """Voxels about as large as the training images'."""
    spacing = np.array(grid_as_read(volume.grid, model.plans).spacing[::-1])
    low, high = model.spacings.min(0), model.spacings.max(0)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        severity = Severity.REFUSED
    else:
        severity = max(_severity(spacing / high, COARSER), _severity(low / spacing, FINER))
    if severity is Severity.PASSED:
        return None
    return Finding(
        "spacing", severity,
        f"voxels of {_text(spacing)} mm ({_axes(model)}); those of the training images were {_ranges(low, high)} mm",
        "Check that the header has kept the scanner's spacing and its unit. If it is right, the model was not trained "
        "for such images.", str(volume.path),
    )  # fmt: skip


def check_field_of_view(channels: Sequence[VoxelVolume], model: ModelDescription) -> Finding | None:
    """About as much of the body as the training images show, after nnU-Net's cropping to nonzero voxels.

    Args:
        channels: all channels of a case, on one grid: nnU-Net keeps what is nonzero in any of them.
        model: what the training images were like.
    """
    cropped = replace(channels[0].grid, size=_nonzero_shape([volume.voxels for volume in channels])[::-1])
    grid = grid_as_read(cropped, model.plans)
    extent = np.array(grid.size[::-1]) * grid.spacing[::-1]
    low, high = model.extents.min(0), model.extents.max(0)
    if not np.isfinite(extent).all() or (extent <= 0).any():
        return None  # check_spacing and check_content say so
    share = model.extents.prod(1).min() / extent.prod()
    severity = max(_severity(low / extent, SMALLER), _severity(extent / high, LARGER), _severity(share, LESS))
    if severity is Severity.PASSED:
        return None
    return Finding(
        "field_of_view", severity,
        f"shows {_text(extent)} mm ({_axes(model)}); the training images show {_ranges(low, high)} mm",
        "Check the spacing in its header, and that it shows the region that the model was trained for, whole.",
        str(channels[0].path) if len(channels) == 1 else None,
    )  # fmt: skip


def check_orientation(volume: VoxelVolume, model: ModelDescription) -> Finding | None:
    """Axes that point as in a training image: nnU-Net does not turn images, a mirrored one swaps left and right."""
    if model.orientations is None:
        return None
    code = orientation_code(volume.grid.direction)
    if code in model.orientations:
        return None
    target = sorted(model.orientations)[0]
    return Finding(
        "orientation", Severity.REFUSED,
        f"stored as {code}; the training images were stored as {' or '.join(sorted(model.orientations))}, and nnU-Net "
        "does not turn images",
        f"Reorient it: python -c \"import SimpleITK as s; s.WriteImage(s.DICOMOrient(s.ReadImage('{volume.path}'), "
        f"'{target}'), 'reoriented{model.file_ending}')\". The mask then belongs to the reoriented image.",
        str(volume.path),
    )  # fmt: skip


def _severity(factors: np.ndarray | float, bounds: dict[Severity, float]) -> Severity:
    factor = float(np.max(factors))
    return max((severity for severity, bound in bounds.items() if factor > bound), default=Severity.PASSED)


def _nonzero_shape(channels: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Sides, axes (z, y, x), of the smallest box that holds the nonzero voxels of all channels."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        nonzero = np.flatnonzero(np.logical_or.reduce([voxels.any(axis=others) for voxels in channels]))
        sides.append(int(nonzero[-1] - nonzero[0]) + 1 if len(nonzero) else 0)
    return tuple(sides)


def _axes(model: ModelDescription) -> str:
    return ", ".join(AXES) + (" after turning to RAS" if model.plans.get("image_reader_writer") in REORIENTING else "")


def _text(numbers: np.ndarray | tuple[int, ...]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _ranges(low: np.ndarray, high: np.ndarray) -> str:
    return " x ".join(f"{a:.4g}" if np.isclose(a, b) else f"{a:.4g}-{b:.4g}" for a, b in zip(low, high, strict=True))
