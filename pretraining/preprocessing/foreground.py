"""Raw voxels, checked, and what of them is body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_swinfuse.imaging.grid import itk_reason
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from pretraining.collections.collection import Volume
from pretraining.errors import InputError

# Between lung (about -700) and fat (about -100): everything denser than lung is body.
CT_BODY_HU = -500


def read_volume(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels float32 (1, z, y, x) and nnU-Net's properties, its spacing (z, y, x) among them.

    Raises:
        InputError: naming the file, when it is truncated or holds NaN, infinite or only equal voxels.
    """
    data, properties = _read(path)
    broken = int((~np.isfinite(data)).sum())
    if broken:
        raise InputError(f"{path}: {broken} NaN or infinite voxel(s); repair or remove it")
    if data.min() == data.max():
        raise InputError(f"{path}: empty, every voxel is {data.min():g}; remove it")
    return data, properties


def body_mask(volume: Volume, data: np.ndarray) -> np.ndarray:
    """Body of a volume, uint8 of the shape of `data` (1, z, y, x): its mask file, else a threshold by domain.

    What anonymisation has removed is not body.

    Raises:
        InputError: when a mask file is unreadable or on another grid, or the body's marks nothing.
    """
    body = _body(volume, data)
    if volume.removed is not None:
        body[_read_mask(volume, volume.removed, data) > 0] = 0
        if not body.any():
            raise InputError(f"{volume.removed}: marks the whole body as removed; replace or remove the mask")
    return body


def _body(volume: Volume, data: np.ndarray) -> np.ndarray:
    if volume.mask is not None:
        mask = _read_mask(volume, volume.mask, data)
        if not (mask > 0).any():
            raise InputError(f"{volume.mask}: marks no voxel as body; replace or remove the mask")
        return (mask > 0).astype(np.uint8)
    # A CT without any air in HU counts from another zero (scanner units, a masked body): its threshold is unknown.
    if volume.domain == "CT" and data.min() < CT_BODY_HU < data.max():
        return (data > CT_BODY_HU).astype(np.uint8)
    otsu = sitk.OtsuThreshold(sitk.GetImageFromArray(data[0]), 0, 1)
    mask = sitk.GetArrayFromImage(otsu)[None].astype(np.uint8)
    # A volume whose threshold finds nothing is all body, as far as we can tell.
    return mask if mask.any() else np.ones_like(mask)


def _read_mask(volume: Volume, path: Path, data: np.ndarray) -> np.ndarray:
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
        data, properties = SimpleITKIO().read_images([str(path)])
    except RuntimeError as error:
        raise InputError(f"{path}: unreadable or truncated ({itk_reason(error)}); replace or remove it") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there, or a link to nothing; restore or remove it") from error
    return data.astype(np.float32, copy=False), properties
