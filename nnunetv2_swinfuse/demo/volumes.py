"""Synthetic heads: CT and MR of the same shapes, with labels, so that everything can be tried without data.

A head is a set of nested, slightly bent ellipsoids: skin, fat, skull, fluid, folded cortex, white matter, two curved
ventricles, two deep nuclei and a brainstem, with eyes, sinuses and a neck. Each tissue has a CT number and an MR
brightness of its own, which is all that the two images share but for the shapes; the MR also has noise and a smooth
bias field, the CT noise of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE

LABELS = {"background": 0, "brain": 1, "ventricles": 2, "brainstem": 3}

# Tissue: Hounsfield units, MR T1 brightness.
CONTRASTS = {
    "air": (-1000.0, 0.0),
    "skin": (40.0, 300.0),
    "fat": (-90.0, 900.0),
    "muscle": (55.0, 350.0),
    "skull": (950.0, 60.0),
    "fluid": (8.0, 150.0),
    "cortex": (38.0, 450.0),
    "white": (28.0, 650.0),
    "nucleus": (42.0, 540.0),
    "stem": (32.0, 520.0),
}
TISSUES = list(CONTRASTS)

# Voxels inside an ellipsoid of this centre and these radii (z, y, x).
Inside = Callable[[Sequence[float | np.ndarray], Sequence[float]], np.ndarray]


class DemoError(SwinFUSEError, RuntimeError):
    """The demo cannot continue; the message says why and what to do."""


@dataclass(frozen=True)
class SyntheticPatient:
    """One synthetic head; arrays are (z, y, x), z from feet to head, y from front to back.

    Attributes:
        ct: Hounsfield units, float32.
        mr: arbitrary brightness, float32.
        labels: uint8, see LABELS.
        mask: the head, uint8.
        spacing: mm (z, y, x).
    """

    ct: np.ndarray
    mr: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float]


def make_patient(
    seed: int, shape: tuple[int, int, int] = (40, 48, 40), spacing: tuple[float, float, float] = (3.6, 4.0, 4.0)
) -> SyntheticPatient:
    """A head that differs with each seed in size, tilt, bending, ventricles and contrast.

    Args:
        seed: seed of everything random.
        shape: voxels (z, y, x).
        spacing: mm (z, y, x); only written down, the head fills the volume.
    """
    random = np.random.default_rng(seed)
    coordinates = _bent_coordinates(shape, random)
    size = random.uniform(0.92, 1.06, 3)

    def inside(centre: Sequence[float | np.ndarray], radii: Sequence[float]) -> np.ndarray:
        offsets = [(c - m) / (r * s) for c, m, r, s in zip(coordinates, centre, radii, size, strict=True)]
        return sum(np.square(o) for o in offsets) < 1

    tissue = np.zeros(shape, np.uint8)
    labels = np.zeros(shape, np.uint8)
    ventricle_width = random.uniform(0.75, 1.35)
    shift = random.uniform(-0.03, 0.03, 3)
    _paint_head(tissue, coordinates, inside)
    _paint_brain(tissue, coordinates, inside, random)
    labels[np.isin(tissue, [TISSUES.index("cortex"), TISSUES.index("white")])] = LABELS["brain"]
    structures = [
        # Cisterns: fluid around the lower brainstem, whose upper end grows out of the white matter.
        ("fluid", "background", (-0.56, 0.10, 0.0), (0.30, 0.31, 0.30)),
        ("stem", "brainstem", (-0.50, 0.10, 0.0), (0.38, 0.21, 0.20)),
        ("nucleus", "brain", (0.04, -0.02, -0.33), (0.18, 0.22, 0.10)),
        ("nucleus", "brain", (0.04, -0.02, 0.33), (0.18, 0.22, 0.10)),
        ("fluid", "ventricles", (0.14, 0.02, -0.13), (0.20, 0.36, 0.095 * ventricle_width)),
        ("fluid", "ventricles", (0.14, 0.02, 0.13), (0.20, 0.36, 0.095 * ventricle_width)),
    ]
    for name, label, centre, radii in structures:
        moved = [c + s for c, s in zip(centre, shift, strict=True)]
        # The horns of the ventricles diverge at the front and at the back.
        spread = 0.7 * np.sign(centre[2]) * np.square(coordinates[1] - moved[1]) if label == "ventricles" else 0.0
        voxels = inside((moved[0], moved[1], moved[2] + spread), [r * random.uniform(0.85, 1.15) for r in radii])
        tissue[voxels] = TISSUES.index(name)
        labels[voxels] = LABELS[label]

    hounsfield, brightness = (np.array([CONTRASTS[t][i] for t in TISSUES], np.float32) for i in range(2))
    # Voxels at borders hold a bit of both tissues.
    ct = ndimage.gaussian_filter(hounsfield[tissue], 0.45) + random.normal(0, 8, shape)
    mr_brightness = brightness * random.uniform(0.9, 1.1, len(brightness)).astype(np.float32)
    mr = ndimage.gaussian_filter(mr_brightness[tissue], 0.45) * _bias_field(coordinates, random)
    # Noise of a magnitude image is Rician: the length of a complex number.
    mr = np.hypot(mr + random.normal(0, 18, shape), random.normal(0, 18, shape))
    mask = ndimage.binary_fill_holes(tissue > 0)
    return SyntheticPatient(
        np.clip(ct, -1024, 3000).astype(np.float32), mr.astype(np.float32), labels, mask.astype(np.uint8), spacing
    )


def write_synthrad(root: Path, patients: int, seed: int = 0) -> Path:
    """Writes patients in SynthRAD2023 layout, `Task1/brain/1BA001/{ct,mr,mask}.nii.gz`.

    Raises:
        DemoError: when `root` exists; nothing is overwritten.
    """
    _require_absent(root)
    for number in range(patients):
        folder = root / "Task1" / "brain" / f"1BA{number + 1:03d}"
        folder.mkdir(parents=True)
        patient = make_patient(seed + number)
        _write(patient.ct.astype(np.int16), patient.spacing, folder / "ct.nii.gz")
        _write(patient.mr.astype(np.float32), patient.spacing, folder / "mr.nii.gz")
        _write(patient.mask, patient.spacing, folder / "mask.nii.gz")
    return root


def write_nnunet_raw(
    raw: Path,
    dataset_id: int,
    name: str,
    modality: str = "MR",
    train_cases: int = 10,
    test_cases: int = 3,
    seed: int = 1000,
) -> Path:
    """Writes an nnU-Net raw dataset with imagesTr, labelsTr, imagesTs and labelsTs.

    Args:
        raw: nnUNet_raw.
        dataset_id, name: make the folder's name.
        modality: which image of each patient is the only channel, `CT` or `MR`.
        train_cases, test_cases: how many.
        seed: seed of the first patient.

    Raises:
        DemoError: when the folder exists; nothing is overwritten.
    """
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    _require_absent(folder)
    for number in range(train_cases + test_cases):
        side = "Tr" if number < train_cases else "Ts"
        patient = make_patient(seed + number)
        image = patient.ct if modality == "CT" else patient.mr
        for sub, array, suffix in (("images", image, "_0000"), ("labels", patient.labels, "")):
            (folder / f"{sub}{side}").mkdir(parents=True, exist_ok=True)
            _write(array, patient.spacing, folder / f"{sub}{side}" / f"case_{number:03d}{suffix}.nii.gz")
    dataset = {
        "channel_names": {"0": modality},
        "labels": LABELS,
        "numTraining": train_cases,
        "file_ending": ".nii.gz",
    }
    (folder / DATASET_FILE).write_text(json.dumps(dataset, indent=4))
    return folder


def _paint_head(tissue: np.ndarray, coordinates: Sequence[np.ndarray], inside: Inside) -> None:
    """Neck, scalp, skull, eyes and sinuses; the skull is filled with fluid."""
    z, y, x = coordinates
    neck_region = z < -0.45
    neck = np.hypot((y - 0.16) / 0.46, x / 0.44)
    for name, radius in (("skin", 1.0), ("fat", 0.92), ("muscle", 0.80)):
        tissue[neck_region & (neck < radius)] = TISSUES.index(name)
    tissue[neck_region & (np.hypot((y + 0.08) / 0.10, x / 0.12) < 1)] = TISSUES.index("air")
    tissue[neck_region & (np.hypot((y - 0.14) / 0.27, x / 0.27) < 1)] = TISSUES.index("skull")
    for name, height, radii in (
        ("skin", 0.0, (0.94, 0.93, 0.84)),
        ("fat", 0.01, (0.89, 0.88, 0.79)),
        ("skull", 0.02, (0.83, 0.80, 0.71)),
        ("fluid", 0.03, (0.76, 0.73, 0.64)),
    ):
        tissue[inside((height, 0.0, 0.0), radii)] = TISSUES.index(name)
    for side in (-1, 1):
        tissue[inside((-0.30, -0.72, 0.30 * side), (0.17, 0.17, 0.18))] = TISSUES.index("fat")
        tissue[inside((-0.30, -0.75, 0.30 * side), (0.115, 0.11, 0.12))] = TISSUES.index("fluid")
    tissue[inside((-0.42, -0.66, 0.0), (0.17, 0.12, 0.13))] = TISSUES.index("air")


def _paint_brain(
    tissue: np.ndarray, coordinates: Sequence[np.ndarray], inside: Inside, random: np.random.Generator
) -> None:
    """Cortex with furrows, white matter, and the fissure between the halves."""
    z, y, x = coordinates
    brain = inside((0.04, 0.0, 0.0), (0.73, 0.70, 0.61))
    phases = random.uniform(0, 6, 4)
    # Waves along the surface, never quite parallel: furrows where they are high, a wavy inner border everywhere.
    angle = np.arctan2(x, y)
    waves = np.sin(11 * angle + 4 * z + phases[0]) * np.sin(9 * z + 3 * angle + phases[1])
    waves += 0.5 * np.sin(17 * angle + phases[2]) * np.sin(13 * z + phases[3])
    depth = np.sqrt(np.square((z - 0.04) / 0.73) + np.square(y / 0.70) + np.square(x / 0.61))
    tissue[brain] = TISSUES.index("cortex")
    tissue[brain & (waves > 0.55) & (depth > 0.86)] = TISSUES.index("fluid")
    tissue[brain & (depth < 0.78 - 0.07 * waves)] = TISSUES.index("white")
    fissure = (np.abs(x) < 0.025) & (depth > 0.55) & (z > -0.15)
    tissue[brain & fissure] = TISSUES.index("fluid")


def _bent_coordinates(shape: tuple[int, int, int], random: np.random.Generator) -> list[np.ndarray]:
    """Coordinates from -1 to 1 along z, y, x, tilted a little and bent smoothly: no two heads have one shape."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    tilt = np.eye(3) + random.normal(0, 0.06, (3, 3))
    points = np.tensordot(tilt.astype(np.float32), np.stack(grid), axes=1)
    bends = [ndimage.zoom(random.normal(0, 0.035, (4, 4, 4)), [n / 4 for n in shape], order=3) for _ in range(3)]
    return [(p + b).astype(np.float32) for p, b in zip(points, bends, strict=True)]


def _bias_field(coordinates: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    slopes = random.uniform(-0.2, 0.2, 3)
    return np.exp(sum(s * c for s, c in zip(slopes, coordinates, strict=True)))


def _write(array: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))


def _require_absent(folder: Path) -> None:
    if folder.exists():
        raise DemoError(f"{folder} exists already and is never overwritten; move it away first")
