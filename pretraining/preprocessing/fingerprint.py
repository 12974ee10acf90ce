"""nnU-Net's dataset fingerprint for unlabelled volumes, and the normalisation that follows from it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from pretraining.collections.collection import Volume
from pretraining.preprocessed.collection import INDEX_VERSION
from pretraining.preprocessing.foreground import body_mask, read_volume

SAMPLES_PER_VOLUME = 10_000
# Of all volumes together, so that memory does not grow with their number; a tenth of nnU-Net's number.
SAMPLES = 10_000_000
# nnU-Net's rule: if cropping to nonzero keeps a smaller share of the voxels, intensities are normalised in the mask.
NONZERO_SHARE_FOR_MASK = 0.75
# The median of a body in HU is far below this, that of unsigned values with an offset of 1000 or 1024 far above.
LARGEST_MEDIAN_HU = 500


@dataclass(frozen=True)
class VolumeFingerprint:
    """What one volume contributes to the collection's fingerprint.

    Attributes:
        intensities: a sample of the raw intensities of a CT's body; empty for MR, which is normalised per volume.
        nonzero_share: share of an MR's voxels that nnU-Net's cropping to nonzero keeps; 1 for CT.
    """

    intensities: np.ndarray
    nonzero_share: float


@dataclass(frozen=True)
class Normalisation:
    """Spacing and intensities that all volumes of a collection are brought to.

    Attributes:
        spacing: mm (z, y, x).
        ct: nnU-Net's intensity properties that CT is normalised with: of the foreground of all CT volumes, or of the
            dataset to fine-tune on; empty without CT.
        mr_use_mask: whether MR is normalised inside its nonzero mask (nnU-Net's `use_mask_for_norm`).
    """

    spacing: tuple[float, float, float]
    ct: dict[str, float]
    mr_use_mask: bool

    @classmethod
    def of(
        cls,
        volumes: Sequence[Volume],
        fingerprints: Sequence[VolumeFingerprint],
        spacing: tuple[float, float, float],
        ct_intensities: Mapping[str, float] | None = None,
    ) -> Normalisation:
        """The normalisation of a collection from the fingerprints of its volumes, in the same order.

        CT gets the intensities of a dataset's plans where they are given.
        """
        measured = list(zip(volumes, fingerprints, strict=True))
        samples = [fingerprint.intensities for volume, fingerprint in measured if volume.domain == "CT"]
        ct: dict[str, float] = {}
        if samples:
            ct = intensity_properties(samples) if ct_intensities is None else dict(ct_intensities)
        shares = [fingerprint.nonzero_share for volume, fingerprint in measured if volume.domain == "MR"]
        return cls(spacing, ct, bool(shares) and float(np.median(shares)) < NONZERO_SHARE_FOR_MASK)

    def plans(self, domains: Sequence[str]) -> dict[str, Any]:
        """nnU-Net plans for an image with these channels."""
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        return {
            "dataset_name": "swinfuse",
            "plans_name": "swinfuse",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): self.ct for i in range(len(domains))},
            "configurations": {
                "swinfuse": {
                    "spacing": list(self.spacing),
                    "normalization_schemes": [
                        "CTNormalization" if domain == "CT" else "ZScoreNormalization" for domain in domains
                    ],
                    "use_mask_for_norm": [domain == "MR" and self.mr_use_mask for domain in domains],
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": resampling,
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                    # Not used by preprocessing; nnU-Net takes plans without it for an old format.
                    "architecture": {},
                }
            },
        }


def fingerprint_volume(volume: Volume, cache: Path, samples: int = SAMPLES_PER_VOLUME) -> VolumeFingerprint:
    """Reads a whole volume and measures it, or takes the result of an earlier call from the cache.

    Args:
        volume: the volume.
        cache: folder with the fingerprints of all volumes read so far, by their signatures.
        samples: largest number of intensities to return; the cache keeps `SAMPLES_PER_VOLUME`.

    Raises:
        InputError: for a volume or a mask that cannot be used.
    """
    # A folder that an older version has left incomplete holds fingerprints that were measured otherwise.
    key = f"{INDEX_VERSION}|{signature(volume)}"
    cached = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if cached.is_file() and zipfile.is_zipfile(cached):
        with np.load(cached) as stored:
            # The stored intensities are in random order, so the first of them are a random sample too.
            return VolumeFingerprint(stored["intensities"][:samples], float(stored["nonzero_share"]))
    data, _ = read_volume(volume.path)
    # Computed for MR too, so that a mask that cannot be used is reported now and not hours later.
    body = data[body_mask(volume, data) > 0]
    if volume.domain == "CT":
        # The seed depends only on the volume's size: repeated runs must get the same normalisation.
        chosen = np.random.default_rng(body.size).choice(body, min(SAMPLES_PER_VOLUME, body.size), replace=False)
        result = VolumeFingerprint(chosen, 1.0)
    else:
        inside = np.argwhere(create_nonzero_mask(data))
        extent = np.prod(inside.max(0) - inside.min(0) + 1)
        result = VolumeFingerprint(np.empty(0, np.float32), float(extent / data[0].size))
    with atomic_write(cached) as temporary:
        np.savez(temporary, intensities=result.intensities, nonzero_share=result.nonzero_share)
    return VolumeFingerprint(result.intensities[:samples], result.nonzero_share)


def unit_warning(
    volumes: Sequence[Volume], fingerprints: Sequence[VolumeFingerprint], ct_intensities: Mapping[str, float] | None
) -> str | None:
    """A warning where CTs do not have one unit, or not that of the intensities that they are normalised with.

    Args:
        volumes: all volumes.
        fingerprints: their fingerprints, in the same order.
        ct_intensities: intensities of a dataset's plans, taken to be in HU; None for those of the volumes.
    """
    measured = [(v.path, f.intensities) for v, f in zip(volumes, fingerprints, strict=True) if v.domain == "CT"]
    others = [path for path, intensities in measured if np.median(intensities) > LARGEST_MEDIAN_HU]
    if not others or (len(others) == len(measured) and ct_intensities is None):
        return None
    return (
        f"WARNING: {len(others)} of {len(measured)} CT volumes, such as {others[0]}, are not in Hounsfield units: half "
        f"of the body is above {LARGEST_MEDIAN_HU}. Unsigned files often have an offset of 1000 or 1024. All CT is "
        "normalised with the same intensities, so subtract the offset"
        + ("" if ct_intensities is None else ", or give --own_normalisation if all CT has it")
    )


def samples_per_volume(volumes: Sequence[Volume]) -> int:
    """How many intensities each volume contributes to the collection's fingerprint."""
    return min(SAMPLES_PER_VOLUME, max(1, SAMPLES // max(1, sum(volume.domain == "CT" for volume in volumes))))


def signature(volume: Volume) -> str:
    """Identifies a state of the files of a volume: paths, sizes and times of modification of image and masks."""
    states = [(file, file.stat()) for file in volume.files]
    return "|".join([volume.domain, *(f"{file}|{state.st_size}|{state.st_mtime_ns}" for file, state in states)])


def intensity_properties(samples: Sequence[np.ndarray]) -> dict[str, float]:
    """nnU-Net's `foreground_intensity_properties` of one channel, from samples of all volumes."""
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
