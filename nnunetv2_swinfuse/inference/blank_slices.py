"""Slices that hold one value while the image continues on both sides of them: lost in transfer or in conversion.

Blank slices at the ends of a volume are padding and pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference.findings import Finding, Severity

AXES = ("z", "y", "x")
# Share of the voxels of a slice that differ from the blank slice beside it. A background set to zero leaves single
# voxels of noise in slices outside the body; these are not part of the image.
FILLED_SHARE = 0.01
# One gap can be the background between two legs whose background was set to zero.
MOST_GAPS = 1


def check_blank_slices(volume: VoxelVolume) -> Finding | None:
    """No blank slices within the image, along any axis."""
    gaps = [list(find_gaps(np.moveaxis(volume.voxels, axis, 0))) for axis in range(3)]
    axis = max(range(3), key=lambda number: len(gaps[number]))
    if not gaps[axis]:
        return None
    slices = sum(stop - start for start, stop in gaps[axis])
    total = volume.voxels.shape[axis]
    where = ", ".join(f"{start}" if stop == start + 1 else f"{start}-{stop - 1}" for start, stop in gaps[axis][:5])
    refused = len(gaps[axis]) > MOST_GAPS
    return Finding(
        "blank_slices",
        Severity.REFUSED if refused else Severity.WARNING,
        f"{slices} of {total} slices along {AXES[axis]} hold a single value, in {len(gaps[axis])} place(s) within the "
        f"image ({where}{', ...' if len(gaps[axis]) > 5 else ''})",
        "Export or convert the whole series again; slices were lost."
        if refused
        else "Check that no slices were lost; background between two parts of the body looks the same.",
        str(volume.path),
    )


def find_gaps(slices: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of slices of one value with a filled slice before and after them.

    Args:
        slices: voxels, the axis to look along first.

    Yields:
        first slice of a run, and the slice after its last.
    """
    # Few slices are blank, and a 64th of the voxels tells most of the others apart.
    coarse = slices[:, ::8, ::8]
    candidates = (coarse == coarse[:, :1, :1]).all(axis=(1, 2))
    blank = np.array([bool(c) and bool((s == s.flat[0]).all()) for c, s in zip(candidates, slices, strict=True)])
    edges = np.flatnonzero(np.diff(np.concatenate(([False], blank, [False]))))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if start > 0 and stop < len(slices):
            before, after = (slices[start - 1] != slices[start].flat[0], slices[stop] != slices[stop - 1].flat[0])
            if min(before.mean(), after.mean()) >= FILLED_SHARE:
                yield start, stop
