"""One 3D image read as nnU-Net reads it, after everything that ITK would not notice has been looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import NOT_UTF8, Grid, HeaderProblem, is_utf8, itk_reason
from nnunetv2_swinfuse.imaging.nifti import Scan, scan_nifti
from nnunetv2_swinfuse.imaging.text_header import (
    MAX_HEADER_BYTES,
    TextHeaderError,
    count_voxel_bytes,
    find_header_problems,
)

# Not .gipl, which nnU-Net also reads: ITK takes a truncated GIPL file for a whole one.
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")
# Compression that zlib cannot reach: 1032 to 1. A header that announces more than that is damaged or an attack.
HIGHEST_RATIO = 1100
# Beyond this a float32 standard deviation, nnU-Net's, can overflow. The largest MR intensities are about 1e6.
LARGEST_INTENSITY = 1e9


class VolumeError(InputError):
    """A file that is no usable 3D image.

    Attributes:
        check: which property is missing: `readable`, `three_dimensional` or `finite`.
        reason, remedy: what was found; what to do.
    """

    def __init__(self, path: Path, check: str, reason: str, remedy: str):
        super().__init__(f"{path}: {reason}; {remedy}")
        self.check, self.reason, self.remedy = check, reason, remedy


@dataclass(frozen=True)
class VoxelVolume:
    """A 3D image.

    Attributes:
        path: its file.
        voxels: float32, axes (z, y, x).
        grid: size, spacing, origin (x, y, z) and direction.
        integer: whether the file holds whole numbers.
        header_problems: what its header leaves open or says twice.
    """

    path: Path
    voxels: np.ndarray
    grid: Grid
    integer: bool
    header_problems: tuple[HeaderProblem, ...] = ()


def read_volume(path: Path) -> VoxelVolume:
    """Reads one file.

    Raises:
        VolumeError: when it is missing, empty, damaged, of an unknown format, not one 3D image of numbers, when its
            path is not UTF-8, or when a voxel is not finite as the float32 that nnU-Net computes with.
    """
    if not is_utf8(path):
        raise VolumeError(path, "readable", *NOT_UTF8)
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise VolumeError(
            path, "readable", f"not one of the formats that can be checked ({', '.join(ENDINGS)})",
            "convert it, DICOM series with dcm2niix or 3D Slicer",
        )  # fmt: skip
    try:
        if not path.is_file():
            raise VolumeError(path, "readable", "no such file, or no regular one", "check the path")
        size = path.stat().st_size
        if size == 0:
            raise VolumeError(path, "readable", "empty, 0 bytes", "export or copy it again")
        uncompressed = path.with_name(path.name[: -len(".gz")])
        if ending == ".nii.gz" and uncompressed.exists():
            # niftilib looks for the voxels under the uncompressed name first, and ITK does not notice.
            raise VolumeError(
                path,
                "readable",
                f"{uncompressed.name} is in the same folder; ITK would read its voxels instead",
                "move one of the two to another folder",
            )
        if ending in (".mha", ".nrrd"):
            # Before ITK opens whatever file it names.
            with path.open("rb") as file:
                problems = tuple(find_header_problems(file.read(MAX_HEADER_BYTES), ending))
        else:
            problems = tuple(_checked_scan(path).header.problems())
    except TextHeaderError as error:
        raise VolumeError(path, "readable", str(error), "save it again, as one file") from error
    except VolumeError:
        raise
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ").removesuffix("; replace or remove it")
        raise VolumeError(path, "readable", reason, "export or copy it again") from error
    except OSError as error:
        raise VolumeError(
            path, "readable", f"cannot be opened ({error.strerror or error})", "check its permissions and the disk"
        ) from error
    return replace(_read_with_itk(path, size, ending), header_problems=problems)


def _checked_scan(path: Path) -> Scan:
    """Refuses a NIfTI file without a header, with missing or surplus bytes, or with voxels that are not finite."""
    scan = scan_nifti(path)
    if scan is None:
        # ITK would still read it, and take what follows in memory for missing voxels.
        raise VolumeError(path, "readable", "no header of a NIfTI file", "export or copy it again")
    if scan.present < scan.header.length:
        raise VolumeError(
            path, "readable", f"truncated: {scan.present} of {scan.header.length} bytes of voxels are present",
            "export or copy it again",
        )  # fmt: skip
    if scan.surplus:
        raise VolumeError(
            path, "readable", f"{scan.surplus} bytes follow the {scan.header.length} that its header announces: one of "
            "the two is wrong", "export or copy it again",
        )  # fmt: skip
    if scan.broken:
        raise VolumeError(path, "finite", f"{scan.broken} voxel(s) are NaN or infinite", "export it again without them")
    return scan


def _read_with_itk(path: Path, size: int, ending: str) -> VoxelVolume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_header(path, size, ending, reader)
        image = reader.Execute()
    except TextHeaderError as error:
        raise VolumeError(path, "readable", str(error), "save it again, as one file") from error
    except RuntimeError as error:
        raise VolumeError(
            path, "readable", f"cannot be read ({itk_reason(error)})", "export or copy it again"
        ) from error
    except MemoryError as error:
        raise VolumeError(path, "readable", "does not fit into memory", "crop it, or use another machine") from error
    return _checked_voxels(path, image)


def _check_header(path: Path, size: int, ending: str, reader: sitk.ImageFileReader) -> None:
    """Compares what the header says, read by ITK, with the file; raises VolumeError or TextHeaderError."""
    dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if dimension != 3 or components != 1:
        raise VolumeError(
            path, "three_dimensional",
            f"{dimension}D with {components} component(s) of size {reader.GetSize()}, expected one 3D image",
            "export one channel of one time point, as one 3D file",
        )  # fmt: skip
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind or "unknown" in kind.lower():
        raise VolumeError(path, "readable", f"voxels of the type {kind!r}", "export it with real numbers")
    announced = int(np.prod(np.array(reader.GetSize(), object)))
    if announced > size * HIGHEST_RATIO:
        raise VolumeError(
            path, "readable", f"its header announces {announced} voxels, which {size} bytes cannot hold",
            "export or copy it again",
        )  # fmt: skip
    if ending in (".mha", ".nrrd"):
        length = announced * sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).itemsize
        counted = count_voxel_bytes(path, ending, length)
        if counted != length:
            raise VolumeError(
                path, "readable", f"{counted} bytes of voxels, its header announces {length}", "export or copy it again"
            )


def _checked_voxels(path: Path, image: sitk.Image) -> VoxelVolume:
    """The voxels as float32; raises VolumeError when one is not finite or too large."""
    array = sitk.GetArrayFromImage(image)
    with np.errstate(over="ignore"):
        voxels = array.astype(np.float32, copy=False)
    broken = int(voxels.size - np.isfinite(voxels).sum())
    if broken:
        raise VolumeError(path, "finite", f"{broken} voxel(s) are NaN or infinite", "export it again without them")
    largest = float(max(abs(voxels.min()), abs(voxels.max())))
    if largest > LARGEST_INTENSITY:
        raise VolumeError(
            path, "finite", f"an intensity of {largest:.3g}; images of patients stay below {LARGEST_INTENSITY:.0g}",
            "export it again; its voxels are damaged or of another type",
        )  # fmt: skip
    integer = bool(np.issubdtype(array.dtype, np.integer)) or bool((voxels == np.rint(voxels)).all())
    grid = Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return VoxelVolume(path, voxels, grid, integer)
