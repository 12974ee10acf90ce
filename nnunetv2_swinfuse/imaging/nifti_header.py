"""Fields of a NIfTI header that contradict each other or are not numbers, and that ITK resolves without a warning."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_HEADER_BYTES = 540
_OPPOSITE = np.array(list("LPI")), np.array(list("RAS"))


def header_conflicts(path: Path) -> list[str]:
    """What two programs could read differently in the header of an intact NIfTI file, as messages.

    Two fields can hold the orientation, qform and sform. Programs differ in which one they prefer. Files of other
    formats have no conflicts.
    """
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return []
    with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
        return conflicts(file.read(_HEADER_BYTES))


def conflicts(header: bytes) -> list[str]:
    """The same by the first 540 bytes of a file (NIfTI-1 or NIfTI-2, nifti.nimh.nih.gov)."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", header)[0] if len(header) >= 348 else None
        if size == 348:
            scaling = struct.unpack_from(f"{order}2f", header, 112)
            codes = struct.unpack_from(f"{order}2h", header, 252)
            quaternion = struct.unpack_from(f"{order}3f", header, 256)
            rows = struct.unpack_from(f"{order}12f", header, 280)
            handedness = struct.unpack_from(f"{order}f", header, 76)[0]
        elif size == 540 and len(header) >= 540:
            scaling = struct.unpack_from(f"{order}2d", header, 176)
            codes = struct.unpack_from(f"{order}2i", header, 344)
            quaternion = struct.unpack_from(f"{order}3d", header, 352)
            rows = struct.unpack_from(f"{order}12d", header, 400)
            handedness = struct.unpack_from(f"{order}d", header, 104)[0]
        else:
            continue
        problems = []
        if not all(map(math.isfinite, scaling)):
            problems.append(
                f"scl_slope {scaling[0]:.4g} and scl_inter {scaling[1]:.4g} are not numbers: voxels are read unscaled"
            )
        if min(codes) > 0:
            by_qform = _axes(_rotation(quaternion, handedness))
            by_sform = _axes(np.reshape(rows, (3, 4))[:, :3])
            if by_qform != by_sform:
                problems.append(f"its axes point to {by_qform} by its qform and to {by_sform} by its sform")
        return problems
    return []


def _rotation(quaternion: Sequence[float], handedness: float) -> np.ndarray:
    """Rotation matrix of a unit quaternion, by its imaginary parts; a negative qfac inverts the third axis."""
    b, c, d = quaternion
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    return matrix * np.array([1.0, 1.0, -1.0 if handedness < 0 else 1.0])


def _axes(matrix: np.ndarray) -> str:
    """Towards which side of the body each axis of a NIfTI affine points most, such as RAS."""
    if not np.isfinite(matrix).all() or not (np.abs(matrix).max(0) > 0).all():
        return "nowhere"
    rows = np.abs(matrix / np.abs(matrix).max(0)).argmax(0)
    signs = matrix[rows, range(3)] > 0
    return "".join(_OPPOSITE[int(sign)][row] for row, sign in zip(rows, signs, strict=True))
