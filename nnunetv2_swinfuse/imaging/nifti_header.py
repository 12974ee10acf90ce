"""The header of a NIfTI file (nifti.nimh.nih.gov): where its voxels are; what two programs could read differently."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from nnunetv2_swinfuse.imaging.grid import HeaderProblem

HEADER_BYTES = 540
# Byte and type of each field, by the length of the header: NIfTI-1 and NIfTI-2.
_FIELDS = {
    348: {
        "dim": (40, "8h"), "type": (70, "2h"), "pixdim": (76, "8f"), "offset": (108, "f"), "scaling": (112, "2f"),
        "units": (123, "B"), "codes": (252, "2h"), "quaternion": (256, "3f"), "sform": (280, "12f"),
        "magic": (344, "4s"),
    },
    540: {
        "dim": (16, "8q"), "type": (12, "2h"), "pixdim": (104, "8d"), "offset": (168, "q"), "scaling": (176, "2d"),
        "units": (500, "i"), "codes": (344, "2i"), "quaternion": (352, "3d"), "sform": (400, "12d"),
        "magic": (4, "8s"),
    },
}  # fmt: skip
# Of files that hold both header and voxels, the only ones that this package reads. ITK takes a file with another magic
# for ANALYZE, and ignores its orientation, or looks for the voxels in another file.
_MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
# NIfTI's datatype codes of the types that can hold NaN.
_FLOATS = {16: "f4", 64: "f8"}
# NIfTI's codes of units of length, the lower three bits of xyzt_units. 0 is unknown, 2 is millimetre.
_NOT_MILLIMETRES = {1: "metre", 3: "micrometre"}
_OPPOSITE = np.array(list("LPI")), np.array(list("RAS"))
# Rounding to float32 and of quaternions stays below 0.1 degrees and 0.1 %.
LARGEST_ANGLE = 1.0
LARGEST_RATIO = 1.01
# Of the squares of the three numbers of a quaternion; those of a rotation add up to at most 1.
LARGEST_SQUARES = 1.001
_CORRECT = "Export it again, or correct the wrong one of the two"


class HeaderError(ValueError):
    """A NIfTI header that no file can have."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says.

    Attributes:
        offset: first byte of the voxels in the uncompressed file.
        length: bytes of voxels.
        floats: numpy type of floating point voxels with its byte order, None for other types.
        scaling: slope and intercept of the intensities.
        spacing: pixdim of the x, y and z axes.
        unit: code of the unit of length.
        qform: direction cosines (3, 3), one column an axis, NaN when its quaternion is not that of a rotation; None
            when its code says that it is not set.
        sform: the same times the voxel size; None when its code says that it is not set.
    """

    offset: int
    length: int
    floats: str | None
    scaling: tuple[float, float]
    spacing: np.ndarray
    unit: int
    qform: np.ndarray | None
    sform: np.ndarray | None

    def problems(self) -> Iterator[HeaderProblem]:
        """What two programs could read differently, and ITK resolves without an error.

        Two fields can hold the orientation, qform and sform, and two the voxel size, pixdim and sform. Programs differ
        in which one they prefer.
        """
        if not all(map(math.isfinite, self.scaling)):
            slope, intercept = self.scaling
            yield HeaderProblem(
                f"scl_slope {slope:.4g} and scl_inter {intercept:.4g} are not numbers: voxels are read unscaled",
                "Check that its intensities are right, or export it again.",
                geometry=False,
            )
        forms = {name: form for name, form in (("qform", self.qform), ("sform", self.sform)) if form is not None}
        nowhere = [name for name, form in forms.items() if _axes(form) == "nowhere"]
        if len(forms) == 2:
            if reason := _contradiction(*forms.values()):
                yield HeaderProblem(reason, f"{_CORRECT}, with the images at hand that show left and right.")
        elif len(nowhere) == len(forms):
            found = f"its axes point to nowhere by its {nowhere[0]}" if nowhere else "neither qform nor sform is set"
            yield HeaderProblem(
                f"{found}: the file does not say how its axes lie in the body",
                "Export it again, or set its orientation with the images at hand that show left and right.",
            )
        yield from self._size_problems()

    def _size_problems(self) -> Iterator[HeaderProblem]:
        pixdim = f"voxels of {_text(self.spacing)} mm (z, y, x) by its pixdim"
        if not (np.isfinite(self.spacing).all() and (self.spacing > 0).all()):
            yield HeaderProblem(f"{pixdim}: no size that a voxel can have", "Export it again.")
        elif self.sform is not None and _axes(self.sform) != "nowhere":
            # The numbers of a damaged header can overflow.
            with np.errstate(all="ignore"):
                sizes = np.linalg.norm(self.sform, axis=0)
                ratio = np.maximum(sizes / self.spacing, self.spacing / sizes).max()
            if not ratio <= LARGEST_RATIO:
                yield HeaderProblem(f"{pixdim} and of {_text(sizes)} mm by its sform", f"{_CORRECT}.")
        if self.unit in _NOT_MILLIMETRES:
            yield HeaderProblem(
                f"its unit of length is the {_NOT_MILLIMETRES[self.unit]}: some programs convert its voxel size to mm, "
                "others take it for mm",
                "Convert it to millimetres.",
            )


def parse_nifti_header(content: bytes) -> NiftiHeader | None:
    """The header of a NIfTI-1 or NIfTI-2 file by its first 540 bytes; None for another format.

    Raises:
        HeaderError: for sizes, an offset or a voxel type that no file can have, and for a header without the magic of
            a file that also holds the voxels.
    """
    for order in "<>":
        size = struct.unpack_from(f"{order}i", content)[0] if len(content) >= 348 else None
        if size not in _FIELDS or len(content) < size:
            continue
        fields: dict[str, Any] = {
            name: struct.unpack_from(order + kind, content, offset) for name, (offset, kind) in _FIELDS[size].items()
        }
        (magic,) = fields["magic"]
        if magic != _MAGIC[size]:
            raise HeaderError(f"magic {magic!r}, expected {_MAGIC[size]!r}")
        length, floats = _voxels(fields["dim"], *fields["type"])
        (offset,), (units,) = fields["offset"], fields["units"]
        # ITK takes a smaller one for the header's size, and the four bytes of the extension flag for voxels.
        if not size + 4 <= offset < 2**40:
            raise HeaderError(f"voxels from byte {offset:g} on, expected {size + 4} or more")
        qform_code, sform_code = fields["codes"]
        pixdim = np.array(fields["pixdim"], float)
        return NiftiHeader(
            offset=int(offset),
            length=length,
            floats=None if floats is None else order + floats,
            scaling=fields["scaling"],
            spacing=pixdim[1:4],
            unit=units & 7,
            # A negative pixdim[0] inverts the third axis.
            qform=_rotation(fields["quaternion"], pixdim[0] < 0) if qform_code > 0 else None,
            sform=np.reshape(fields["sform"], (3, 4))[:, :3] if sform_code > 0 else None,
        )
    return None


def _voxels(dimensions: Sequence[int], code: int, bits: int) -> tuple[int, str | None]:
    """Bytes of voxels, and their numpy type if it is a floating point type."""
    sizes = dimensions[1 : dimensions[0] + 1] if 0 < dimensions[0] < 8 else ()
    if not sizes or min(sizes) < 1:
        raise HeaderError(f"dimensions {tuple(dimensions)}")
    floats = _FLOATS.get(code)
    if not 0 < bits <= 256 or (floats is not None and bits != 8 * np.dtype(floats).itemsize):
        raise HeaderError(f"voxels of type {code} with {bits} bits")
    return prod(sizes) * bits // 8, floats


def _rotation(quaternion: Sequence[float], inverted: bool) -> np.ndarray:
    """Rotation matrix of a unit quaternion, by its imaginary parts, with the third axis inverted or not.

    NaN when no unit quaternion has such parts.
    """
    b, c, d = quaternion
    squares = b * b + c * c + d * d
    if not squares <= LARGEST_SQUARES:
        return np.full((3, 3), np.nan)
    a = math.sqrt(max(0.0, 1.0 - squares))
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    return matrix * np.array([1.0, 1.0, -1.0 if inverted else 1.0])


def _contradiction(qform: np.ndarray, sform: np.ndarray) -> str | None:
    """How the axes of two affines differ: the sides of the body they point to, or the angle between them."""
    by_qform, by_sform = _axes(qform), _axes(sform)
    angle = math.inf
    if "nowhere" not in (by_qform, by_sform):
        # Axis by axis, because an sform can be sheared: a CT with gantry tilt.
        with np.errstate(all="ignore"):
            cosines = (qform * sform).sum(0) / np.linalg.norm(qform, axis=0) / np.linalg.norm(sform, axis=0)
        angle = math.degrees(math.acos(np.clip(cosines.min(), -1.0, 1.0)))
    if angle <= LARGEST_ANGLE:
        return None
    if by_qform == by_sform and angle < math.inf:
        return f"an axis by its qform and by its sform lie {angle:.2g} degrees apart, as in a CT with gantry tilt"
    return f"its axes point to {by_qform} by its qform and to {by_sform} by its sform"


def _axes(matrix: np.ndarray) -> str:
    """Towards which side of the body each axis of a NIfTI affine points most, such as RAS."""
    if not np.isfinite(matrix).all() or not (np.abs(matrix).max(0) > 0).all():
        return "nowhere"
    rows = np.abs(matrix / np.abs(matrix).max(0)).argmax(0)
    signs = matrix[rows, range(3)] > 0
    return "".join(_OPPOSITE[int(sign)][row] for row, sign in zip(rows, signs, strict=True))


def _text(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes[::-1])
