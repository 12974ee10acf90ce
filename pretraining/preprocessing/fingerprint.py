"""nnU-Net's dataset fingerprint for unlabelled volumes, and the normalisation that follows from it."""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

from pretraining.collections.collection import Volume
from pretraining.preprocessing.foreground import body_mask, read_volume

SAMPLES_PER_VOLUME = 10_000
# Of all volumes together, so that memory does not grow with their number; a tenth of what nnU-Net samples.
SAMPLES = 10_000_000
# nnU-Net's rule: where cropping to nonzero leaves less than this, intensities are normalised inside the mask.
NONZERO_SHARE_FOR_MASK = 0.75


@dataclass(frozen=True)
class VolumeFingerprint:
    """What the collection's fingerprint needs of one volume.

    Attributes:
        intensities: a sample of a CT body's raw intensities; empty for MR, which is normalised by itself.
        nonzero_share: share of an MR's voxels that nnU-Net's cropping to nonzero keeps; 1 for CT.
    """

    intensities: np.ndarray
    nonzero_share: float


@dataclass(frozen=True)
class Normalisation:
    """What every volume is brought to.

    Attributes:
        spacing: mm (z, y, x).
        ct: nnU-Net's intensity properties of the collection's CT foreground; empty without CT.
        mr_use_mask: whether MR is normalised inside its nonzero mask.
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
    ) -> Normalisation:
        """The normalisation of a collection from the fingerprints of its volumes, in the same order."""
        each = list(zip(volumes, fingerprints, strict=True))
        samples = [print_.intensities for volume, print_ in each if volume.domain == "CT"]
        ct = intensity_properties(samples) if samples else {}
        shares = [print_.nonzero_share for volume, print_ in each if volume.domain == "MR"]
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
                    # Not used by preprocessing; its absence would mean plans of an old format.
                    "architecture": {},
                }
            },
        }


def fingerprint_volume(volume: Volume, memory: Path, samples: int = SAMPLES_PER_VOLUME) -> VolumeFingerprint:
    """Reads a volume whole and measures it, or remembers what it measured before.

    Args:
        volume: the volume.
        memory: folder that keeps the fingerprint of every volume that has been read, by its signature.
        samples: how many intensities to return at most; the memory keeps `SAMPLES_PER_VOLUME`.

    Raises:
        InputError: for a volume or a mask that cannot be used.
    """
    kept = memory / f"{hashlib.sha256(signature(volume).encode()).hexdigest()[:32]}.npz"
    if kept.is_file() and zipfile.is_zipfile(kept):
        with np.load(kept) as found:
            # They are in random order: the first of them are a sample too.
            return VolumeFingerprint(found["intensities"][:samples], float(found["nonzero_share"]))
    data, _ = read_volume(volume.path)
    # Drawn for MR too: a mask that cannot be used must show here, not hours later.
    body = data[body_mask(volume, data) > 0]
    if volume.domain == "CT":
        # Seeded by nothing but the volume's size: a rerun must find the same normalisation.
        chosen = np.random.default_rng(body.size).choice(body, min(SAMPLES_PER_VOLUME, body.size), replace=False)
        result = VolumeFingerprint(chosen, 1.0)
    else:
        inside = np.argwhere(create_nonzero_mask(data))
        extent = np.prod(inside.max(0) - inside.min(0) + 1)
        result = VolumeFingerprint(np.empty(0, np.float32), float(extent / data[0].size))
    # Parts of a collection on several machines may read the same volume: the name must differ among machines as well.
    temporary = kept.with_suffix(f".{secrets.token_hex(4)}.tmp.npz")
    try:
        np.savez(temporary, intensities=result.intensities, nonzero_share=result.nonzero_share)
        os.replace(temporary, kept)
    finally:
        temporary.unlink(missing_ok=True)
    return VolumeFingerprint(result.intensities[:samples], result.nonzero_share)


def samples_per_volume(volumes: Sequence[Volume]) -> int:
    """How many intensities of each volume make the collection's fingerprint."""
    return min(SAMPLES_PER_VOLUME, max(1, SAMPLES // max(1, sum(volume.domain == "CT" for volume in volumes))))


def signature(volume: Volume) -> str:
    """Changes when the volume or one of its masks is replaced: paths, sizes and times of modification."""
    states = [(file, file.stat()) for file in volume.files]
    return "|".join([volume.domain, *(f"{file}|{state.st_size}|{state.st_mtime_ns}" for file, state in states)])


def intensity_properties(samples: Sequence[np.ndarray]) -> dict[str, float]:
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
