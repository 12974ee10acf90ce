"""Reads and checks raw voxels, and finds the body in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from scipy import ndimage

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import itk_reason
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from pretraining.collections.collection import ORIENTATION, Volume

# Between lung (about -700 HU) and fat (about -100 HU); air inside the body is added after this threshold.
CT_BODY_HU = -500
# Connected parts smaller than this share of the largest, such as a table or cables, are not body; two legs are.
SMALLEST_PART = 0.1


def read_volume(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels float32 (1, z, y, x) with axes in the order of ORIENTATION, and nnU-Net's properties with the spacing
    (z, y, x).

    An oblique volume is brought to the nearest axes; no voxel is interpolated.

    Raises:
        InputError: naming the file, when it is truncated, when voxels are NaN or infinite, or when all are equal.
    """
    data, properties = _read(path)
    not_finite = int((~np.isfinite(data)).sum())
    if not_finite:
        raise InputError(f"{path}: {not_finite} NaN or infinite voxel(s); repair or remove it")
    if data.min() == data.max():
        raise InputError(f"{path}: empty, every voxel is {data.min():g}; remove it")
    return data, properties


def body_mask(volume: Volume, data: np.ndarray) -> np.ndarray:
    """Mask of the body, uint8 (1, z, y, x): from the volume's mask file, otherwise by a threshold for its domain.

    Voxels that anonymisation has removed are not part of the body.

    Args:
        volume: the volume.
        data: its voxels (1, z, y, x).

    Raises:
        InputError: when a mask file is unreadable, on another grid, or leaves no body.
    """
    body = _body(volume, data)
    if volume.removed is not None:
        body[read_mask(volume, volume.removed, data) > 0] = 0
        if not body.any():
            raise InputError(f"{volume.removed}: marks the whole body as removed; replace or remove the mask")
    return body


def _body(volume: Volume, data: np.ndarray) -> np.ndarray:
    if volume.mask is not None:
        mask = read_mask(volume, volume.mask, data)
        if not (mask > 0).any():
            raise InputError(f"{volume.mask}: marks no voxel as body; replace or remove the mask")
        return (mask > 0).astype(np.uint8)
    # Without air at its value in HU, a CT has another unit or a masked background: the threshold does not apply.
    if volume.domain == "CT" and data.min() < CT_BODY_HU < data.max():
        return fill_air(data[0] > CT_BODY_HU)[None].astype(np.uint8)
    otsu = sitk.OtsuThreshold(sitk.GetImageFromArray(data[0]), 0, 1)
    mask = sitk.GetArrayFromImage(otsu)[None].astype(np.uint8)
    if volume.domain == "CT":
        mask = fill_air(mask[0] > 0)[None].astype(np.uint8)
    # If the threshold finds nothing, the whole volume is treated as body.
    return mask if mask.any() else np.ones_like(mask)


def fill_air(dense: np.ndarray) -> np.ndarray:
    """The body of a CT with the air inside it (lungs, sinuses, bowel), from its dense voxels, both bool (z, y, x).

    Small parts are removed, then holes are filled in each axial slice by itself: lungs and airways are open at the
    first or last slice or at the nose, but nearly everywhere enclosed within a slice.
    """
    labels, count = ndimage.label(dense)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    body = (sizes >= max(1, SMALLEST_PART * sizes.max()))[labels]
    # Connected within the slice only.
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    return ndimage.binary_fill_holes(body, in_plane)


def read_mask(volume: Volume, path: Path, data: np.ndarray) -> np.ndarray:
    """Voxels float32 (1, z, y, x) of a mask or of labels that belong to a volume.

    Args:
        volume: the volume.
        path: path of the mask.
        data: the volume's voxels (1, z, y, x).

    Raises:
        InputError: when the file is unreadable or its shape is not the volume's.
    """
    mask, _ = _read(path)
    if mask.shape != data.shape:
        raise InputError(
            f"{path}: size {mask.shape[1:]} (z, y, x), its volume {volume.path.name} has {data.shape[1:]}; "
            "resample or remove the mask"
        )
    return mask


def _read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        check_nifti(path)
        data, properties = SimpleITKIOWithReorient().read_images([str(path)], orientation=ORIENTATION)
    except RuntimeError as error:
        raise InputError(f"{path}: unreadable or truncated ({itk_reason(error)}); replace or remove it") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing, or a broken link; restore or remove it") from error
    return data.astype(np.float32, copy=False), properties
