"""Tiny volumes for the tests of this folder: a bright ball in air, as CT in HU and as MR."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.collections.collection import ORIENTATION

SHAPE = (18, 22, 20)


def ball(shape: tuple[int, ...]) -> np.ndarray:
    """A ball that fills most of the volume, bool (z, y, x)."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < 0.7


def ct(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Air at -1000 and soft tissue at about 40 HU, int16."""
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    return np.where(ball(shape), 40 + noise, -1000).astype(np.int16)


def mr(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Tissue at about 300 over a dark, but nowhere zero, background, float32."""
    noise = np.random.default_rng(seed).uniform(1, 30, shape)
    return (np.where(ball(shape), 300, 0) + noise).astype(np.float32)


def write(
    path: Path,
    voxels: np.ndarray,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    stored: str = ORIENTATION,
) -> Path:
    """Writes a volume (z, y, x), or a series of them, with its spacing and origin (x, y, z).

    The voxels are in the order of ORIENTATION, which preprocessing does not change; the file may be in another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels, isVector=False)
    if voxels.ndim == 3:
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(ORIENTATION))
        image = sitk.DICOMOrient(image, stored)
    sitk.WriteImage(image, str(path))
    return path


def write_folder_pair(root: Path, pairs: int = 0, ct_only: int = 0, mr_only: int = 0) -> Path:
    """A collection of two folders; pairs are p0, p1..., CT c0..., MR m0..."""
    for index in range(pairs):
        write(root / "ct" / f"p{index}.nii.gz", ct(index))
        write(root / "mr" / f"p{index}.nii.gz", mr(index))
    for index in range(ct_only):
        write(root / "ct" / f"c{index}.nii.gz", ct(100 + index))
    for index in range(mr_only):
        write(root / "mr" / f"m{index}.nii.gz", mr(200 + index))
    return root


def shorten(path: Path, share: float = 0.6) -> None:
    """Cuts a file off, as an interrupted download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
