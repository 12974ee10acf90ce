"""What of a raw volume is body, and what the CT intensities in it are: nnU-Net's fingerprint, for unlabelled volumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

from pretraining.collections.collection import Volume
from pretraining.errors import InputError

# Between lung (about -700) and fat (about -100): everything denser than lung is body.
CT_BODY_HU = -500
SAMPLES_PER_VOLUME = 10_000


@dataclass(frozen=True)
class VolumeFingerprint:
    """What the collection's fingerprint needs of one volume.

    Attributes:
        intensities: a sample of the body's raw intensities.
        nonzero_share: share of the voxels that nnU-Net's cropping to nonzero keeps.
    """

    intensities: np.ndarray
    nonzero_share: float


def read_volume(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels float32 (1, z, y, x) and nnU-Net's properties, its spacing (z, y, x) among them.

    Raises:
        InputError: naming the file, when it is truncated or holds NaN, infinite or only equal voxels.
    """
    try:
        data, properties = SimpleITKIO().read_images([str(path)])
    except RuntimeError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "unreadable")
        raise InputError(f"{path}: unreadable or truncated ({reason.strip()}); replace or remove it") from error
    data = data.astype(np.float32, copy=False)
    broken = int((~np.isfinite(data)).sum())
    if broken:
        raise InputError(f"{path}: {broken} voxels are NaN or infinite; repair or remove it")
    if data.min() == data.max():
        raise InputError(f"{path}: empty, every voxel is {data.min():g}; remove it")
    return data, properties


def body_mask(volume: Volume, data: np.ndarray) -> np.ndarray:
    """Body of a volume, uint8 of the shape of `data` (1, z, y, x): its mask file, else a threshold by domain.

    Raises:
        InputError: when the mask file is unreadable or on another grid.
    """
    if volume.mask is not None:
        mask, _ = read_volume(volume.mask)
        if mask.shape != data.shape:
            raise InputError(
                f"{volume.mask}: size {mask.shape[1:]} (z, y, x), its volume {volume.path.name} has {data.shape[1:]}; "
                "resample or remove the mask"
            )
        return (mask > 0).astype(np.uint8)
    if volume.domain == "CT":
        mask = (data > CT_BODY_HU).astype(np.uint8)
    else:
        image = sitk.GetImageFromArray(data[0])
        mask = sitk.GetArrayFromImage(sitk.OtsuThreshold(image, 0, 1))[None].astype(np.uint8)
    # A volume whose threshold finds nothing is all body, as far as we can tell.
    return mask if mask.any() else np.ones_like(mask)


def fingerprint_volume(volume: Volume) -> VolumeFingerprint:
    """Reads a volume whole and measures it; raises InputError as :func:`read_volume` does."""
    data, _ = read_volume(volume.path)
    body = data[body_mask(volume, data) > 0]
    # Seeded by nothing but the volume's size: a rerun must find the same normalisation.
    chosen = np.random.default_rng(body.size).choice(body, min(SAMPLES_PER_VOLUME, body.size), replace=False)
    inside = np.argwhere(create_nonzero_mask(data))
    extent = np.prod(inside.max(0) - inside.min(0) + 1)
    return VolumeFingerprint(chosen, float(extent / data[0].size))


def intensity_properties(samples: list[np.ndarray]) -> dict[str, float]:
    """nnU-Net's `foreground_intensity_properties` of one channel from samples of all volumes."""
    values = np.concatenate(samples)
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_00_5": float(np.percentile(values, 0.5)),
        "percentile_99_5": float(np.percentile(values, 99.5)),
    }
