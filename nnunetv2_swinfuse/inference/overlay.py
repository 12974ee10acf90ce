"""A picture of a mask over its image, turned as radiologists look at images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write


@dataclass(frozen=True)
class Section:
    """One slice as it is drawn, with its first row at the top.

    Attributes:
        view: axial, coronal or sagittal; of an oblique image the nearest one.
        position: of the slice in the file, such as `z = 12`, counted from 0.
        image, mask: intensities and labels, (rows, columns).
        aspect: height of a pixel divided by its width.
        left, right, top, bottom: sides of the patient at the edges of the picture: R, L, A, P, S or I.
    """

    view: str
    position: str
    image: np.ndarray
    mask: np.ndarray
    aspect: float
    left: str
    right: str
    top: str
    bottom: str


def central_sections(image: sitk.Image, mask: sitk.Image) -> list[Section]:
    """The axial, coronal and sagittal slice with the largest share of mask; the middle ones if the mask is empty.

    The patient's right is on the left of axial and coronal pictures, anterior on the left of sagittal ones.

    Args:
        image: the first channel.
        mask: on the same grid.

    Raises:
        ValueError: when they are not on the same grid.
    """
    _check_grids(image, mask)
    # Rounded differently, an image at 45 degrees could be turned otherwise than its mask.
    mask = sitk.Image(mask)
    mask.CopyInformation(image)
    turn = sitk.DICOMOrientImageFilter()
    turn.SetDesiredCoordinateOrientation("LPS")
    labels = sitk.GetArrayFromImage(turn.Execute(mask))
    voxels = sitk.GetArrayFromImage(turn.Execute(image))
    spacing = [mask.GetSpacing()[axis] for axis in turn.GetPermuteOrder()][::-1]
    sections = []
    # Axes (z, y, x) of the turned arrays: upwards, to the back, to the left.
    for axis, view, sides in ((0, "axial", "RLAP"), (1, "coronal", "RLSI"), (2, "sagittal", "APSI")):
        rows, columns = (other for other in range(3) if other != axis)
        shares = (labels > 0).sum(axis=(rows, columns))
        number = int(shares.argmax()) if shares.any() else len(shares) // 2
        stored = number
        if turn.GetFlipAxes()[2 - axis]:
            stored = len(shares) - 1 - number
        upright = slice(None, None, -1 if rows == 0 else 1)
        sections.append(
            Section(
                view,
                f"{'xyz'[turn.GetPermuteOrder()[2 - axis]]} = {stored}",
                voxels.take(number, axis)[upright],
                labels.take(number, axis)[upright],
                spacing[rows] / spacing[columns],
                *sides,
            )
        )
    return sections


def write_overlay(image: Path, mask: Path, target: Path) -> None:
    """A picture of three slices, with the outlines of the labels over the image and the sides of the patient.

    Args:
        image: the first channel.
        mask: on the same grid.
        target: the PNG; complete or not there.

    Raises:
        ValueError: when image and mask are not on the same grid.
        RuntimeError: when ITK cannot read them.
        OSError: when the picture cannot be written.
    """
    from matplotlib.figure import Figure

    pixels = sitk.ReadImage(str(image))
    low, high = np.percentile(sitk.GetArrayViewFromImage(pixels), (1, 99))
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    sections = central_sections(pixels, sitk.ReadImage(str(mask)))
    for plot, section in zip(figure.subplots(1, 3), sections, strict=True):
        plot.imshow(section.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=section.aspect)
        for label in np.unique(section.mask[section.mask > 0]):
            plot.contour(section.mask == label, levels=[0.5], colors=[f"C{int(label) % 10}"], linewidths=1)
        for side, x, y in (
            (section.left, 0.03, 0.5), (section.right, 0.97, 0.5), (section.top, 0.5, 0.96), (section.bottom, 0.5, 0.04)
        ):  # fmt: skip
            box = {"facecolor": "black", "linewidth": 0, "pad": 1}
            plot.text(x, y, side, color="yellow", ha="center", va="center", transform=plot.transAxes, bbox=box)
        plot.set_title(f"{section.view}, {section.position}")
        plot.axis("off")
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=100)


def _check_grids(image: sitk.Image, mask: sitk.Image) -> None:
    """Of the same size, and no corner off by half a voxel: formats and readers round headers differently."""
    if image.GetSize() != mask.GetSize():
        raise ValueError(f"the mask has {mask.GetSize()} voxels (x, y, z), its image {image.GetSize()}")
    corners = product(*((0, side - 1) for side in image.GetSize()))
    distances = [
        np.subtract(image.TransformIndexToPhysicalPoint(corner), mask.TransformIndexToPhysicalPoint(corner))
        for corner in corners
    ]
    largest = float(np.linalg.norm(distances, axis=1).max())
    if largest >= min(image.GetSpacing()) / 2:
        raise ValueError(f"the mask is not where its image is: {largest:.3g} mm away")
