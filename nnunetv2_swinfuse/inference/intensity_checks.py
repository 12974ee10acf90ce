"""Intensities of an image against its modality: constant, a label map, not in Hounsfield units, CT in place of MR.

CT and MR are told apart by what lies below zero. CT holds air (-1000 HU) and fat (-100 HU): in each of 209 CT volumes
at hand, some clipped to [-125, 275], at least 32 % of the voxels lie below -20. MR is a magnitude: in none of 281 MR
volumes does a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nnunetv2_swinfuse.imaging.volume import VoxelVolume
from nnunetv2_swinfuse.inference.findings import Finding, Severity
from nnunetv2_swinfuse.inference.model_description import Channel

# Share of voxels below BELOW: a CT has more than CT_SHARE of them, an MR less than MR_SHARE.
BELOW, CT_SHARE, MR_SHARE = -20.0, 0.05, 0.02
# Everything between fat and enhanced vessels, as share of all voxels and in HU.
SOFT_TISSUE, SOFT_SHARE = (-200.0, 300.0), 0.01
# Bone and metal fill little of a patient; an inverted CT has its air there.
BRIGHT, BRIGHT_SHARE = 700.0, 0.2
# Padding of scanners goes down to -3024, metal up to 32767.
HOUNSFIELD_RANGE = (-4096.0, 32767.0)
# A foreground of the training CT that lies above this was not in Hounsfield units, or is metal.
SHIFTED = 700.0
LARGEST_NORMALISED = 50.0
# The noise of a CT alone makes labelled voxels differ by more Hounsfield units.
NORMALISED_SPREAD = 10.0
CONSTANT_SHARE = 0.999
MOST_LABELS = 24
_SAMPLE = 1_000_000

# `stored`: as scanners store it, 1000 or 1024 above Hounsfield units. `unknown`: these or others, such as 0..255.
Scale = Literal["hounsfield", "normalised", "stored", "unknown"]


@dataclass(frozen=True)
class Profile:
    """Intensities of a volume in a few numbers; shares are of all voxels, by a sample of them in large volumes."""

    minimum: float
    maximum: float
    deviation: float
    commonest: float
    distinct: int
    below: float
    soft_tissue: float
    bright: float
    integer: bool

    @property
    def normalised(self) -> str | None:
        """Describes how the intensities appear to be normalised; None when they do not."""
        if self.integer or self.minimum == self.maximum:
            return None
        if self.minimum >= 0 and self.maximum <= 1:
            return "scaled to 0..1"
        if -LARGEST_NORMALISED < self.minimum < 0 < self.maximum < LARGEST_NORMALISED and self.deviation < 10:
            return "normalised to a mean near 0, as by a z-score"
        return None


def profile(volume: VoxelVolume) -> Profile:
    """The numbers that all checks below need."""
    voxels = volume.voxels.ravel()
    sample = _sample(voxels)
    _, counts = np.unique(sample, return_counts=True)
    low, high = SOFT_TISSUE
    return Profile(
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        deviation=float(sample.std(dtype=np.float64)),
        commonest=float(counts.max() / sample.size),
        distinct=len(counts),
        below=float((sample < BELOW).mean()),
        soft_tissue=float(((sample >= low) & (sample <= high)).mean()),
        bright=float((sample > BRIGHT).mean()),
        integer=volume.integer,
    )


def _sample(voxels: np.ndarray) -> np.ndarray:
    """About a million voxels, the same ones each time: one of each n in a row, at a random place.

    Every n-th voxel would be a single slice where n is the length of a row.
    """
    step = max(1, voxels.size // _SAMPLE)
    starts = np.arange(voxels.size // step) * step
    return voxels[starts + np.random.default_rng(0).integers(0, step, starts.size)]


def check_content(image: Profile) -> Finding | None:
    """Not constant, nor nearly so."""
    if image.commonest < CONSTANT_SHARE and image.minimum < image.maximum:
        return None
    return Finding(
        "content", Severity.REFUSED,
        f"{100 * image.commonest:.4g} % of its voxels have one value ({image.minimum:.4g} to {image.maximum:.4g} in "
        "all): there is no image in it",
        "Export it again.",
    )  # fmt: skip


def check_label_map(image: Profile) -> Finding | None:
    """Not a segmentation: a few whole numbers from 0 on."""
    if not (image.integer and image.minimum >= 0 and image.distinct <= MOST_LABELS):
        return None
    return Finding(
        "label_map", Severity.REFUSED,
        f"only {image.distinct} different values, all of them whole numbers: a segmentation, not an image",
        "Give the image that it was drawn on.",
    )  # fmt: skip


def training_scale(channel: Channel) -> Scale:
    """In which unit the CT was that a model was trained on, by its labelled voxels.

    Whoever labels an organ in Hounsfield units includes some voxels of fat or noise below -20.
    """
    known = channel.intensities
    spread = known["percentile_99_5"] - known["percentile_00_5"]
    if max(abs(known["min"]), abs(known["max"])) < LARGEST_NORMALISED and spread < NORMALISED_SPREAD:
        return "normalised"
    if known["percentile_00_5"] > SHIFTED:
        return "stored"
    return "unknown" if known["min"] >= BELOW else "hounsfield"


def check_modality(image: Profile, channel: Channel) -> Finding | None:
    """CT where the model expects CT, MR where it expects MR."""
    if modality_reason(channel) is not None:
        return None
    share = f"{100 * image.below:.2g} % of its voxels lie below {BELOW:.0f}"
    if channel.domain == "CT" and image.below < CT_SHARE and not image.normalised:
        remedy = "Give a CT in Hounsfield units."
        if training_scale(channel) == "unknown":
            remedy += f" If the training CT was in another unit ({_labelled(channel)}), accept this."
        return Finding(
            "modality", Severity.REFUSED,
            f"{share}; a CT holds air (-1000 HU) and fat (-100 HU), and the model was trained on CT ({channel.name}): "
            "this is an MR, or a CT without its rescale intercept",
            remedy,
        )  # fmt: skip
    negative_training = channel.intensities["min"] < BELOW
    if channel.domain == "MR" and not negative_training and image.below > MR_SHARE and not image.normalised:
        return Finding(
            "modality", Severity.REFUSED,
            f"{share}, as in a CT; MR intensities are not negative, and the model was trained on MR ({channel.name})",
            "Give an MR image.",
        )  # fmt: skip
    return None


def check_hounsfield(image: Profile, channel: Channel) -> Finding | None:
    """A CT's intensities in plausible Hounsfield units; not in these where the training CT was not."""
    if channel.domain != "CT" or hounsfield_reason(channel) is not None:
        return None
    if training_scale(channel) == "stored":
        return _check_stored(image, channel)
    if image.normalised:
        return Finding(
            "hounsfield", Severity.REFUSED,
            f"intensities of {image.minimum:.4g} to {image.maximum:.4g}, {image.normalised}; expected Hounsfield "
            "units: air at -1000, water at 0",
            "Give the CT as the scanner exported it.",
        )  # fmt: skip
    if image.soft_tissue < SOFT_SHARE:
        return Finding(
            "hounsfield", Severity.REFUSED,
            f"only {100 * image.soft_tissue:.2g} % of its voxels lie between {SOFT_TISSUE[0]:.0f} and "
            f"{SOFT_TISSUE[1]:.0f} HU, where all soft tissue lies",
            "Check that rescale slope and intercept were applied once, and that it shows a patient.",
        )  # fmt: skip
    if image.bright > BRIGHT_SHARE:
        return Finding(
            "hounsfield",
            Severity.REFUSED,
            f"{100 * image.bright:.2g} % of its voxels lie above {BRIGHT:.0f} HU, as only bone and metal do: inverted"
            " or no Hounsfield units",
            "Give the CT as the scanner exported it.",
        )
    low, high = HOUNSFIELD_RANGE
    if image.minimum < low or image.maximum > high:
        return Finding(
            "hounsfield", Severity.WARNING,
            f"intensities of {image.minimum:.4g} to {image.maximum:.4g}; Hounsfield units stay within {low:.0f} to "
            f"{high:.0f}",
            "Check the voxels outside this range; nnU-Net clips them.",
        )  # fmt: skip
    return None


def _check_stored(image: Profile, channel: Channel) -> Finding | None:
    if image.below < CT_SHARE or image.bright > BRIGHT_SHARE:
        return None
    return Finding(
        "hounsfield", Severity.WARNING,
        f"{100 * image.below:.2g} % of its voxels lie below {BELOW:.0f} and {100 * image.bright:.2g} % above "
        f"{BRIGHT:.0f}, as in Hounsfield units; the training CT was in another unit, or its labels are of metal: "
        f"{_labelled(channel)}",
        "Unless they are, give the CT in the unit of the training images.",
    )  # fmt: skip


def check_normalised(image: Profile, channel: Channel) -> Finding | None:
    """An image as it was acquired, since nnU-Net normalises it itself; a normalised CT where the training CT was."""
    if channel.domain == "CT":
        return _check_normalised_ct(image, channel)
    if not image.normalised:
        return None
    if max(abs(channel.intensities["min"]), abs(channel.intensities["max"])) < LARGEST_NORMALISED:
        return None  # So were the training images.
    return Finding(
        "normalised", Severity.REFUSED if channel.masked else Severity.WARNING,
        f"intensities of {image.minimum:.4g} to {image.maximum:.4g}, {image.normalised}; the training images were not"
        + (", and the model tells the patient from the background by zeros" if channel.masked else ""),
        "Give the image as it was acquired; nnU-Net normalises it itself.",
    )  # fmt: skip


def _check_normalised_ct(image: Profile, channel: Channel) -> Finding | None:
    scale = training_scale(channel)
    # In Hounsfield units, check_hounsfield looks for it.
    if scale == "hounsfield" or bool(image.normalised) == (scale == "normalised"):
        return None
    return Finding(
        "normalised", Severity.REFUSED,
        f"intensities of {image.minimum:.4g} to {image.maximum:.4g}, {image.normalised or 'not normalised'}; the "
        f"training CT was{' not' if image.normalised else ''}: {_labelled(channel)}",
        "Give the CT in the unit of the training images.",
    )  # fmt: skip


def modality_reason(channel: Channel) -> str | None:
    """Why the modality cannot be checked; None when it can be."""
    if channel.domain is None:
        return f"channel {channel.name!r} is neither CT nor MR by its name"
    if channel.domain == "CT" and training_scale(channel) in ("normalised", "stored"):
        return f"the model's training CT was not in Hounsfield units: {_labelled(channel)}"
    return None


def hounsfield_reason(channel: Channel) -> str | None:
    """Why the unit of a CT cannot be checked; None when it can be, and for other modalities."""
    if channel.domain != "CT":
        return None
    scale = training_scale(channel)
    if scale == "unknown":
        return f"the unit of the model's training CT is not known: {_labelled(channel)}, none below {BELOW:.0f}"
    return modality_reason(channel) if scale == "normalised" else None


def _labelled(channel: Channel) -> str:
    known = channel.intensities
    return f"its labelled voxels lie between {known['min']:.4g} and {known['max']:.4g}"
