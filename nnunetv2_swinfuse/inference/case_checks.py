"""All checks of one case in order. A check that fails for an unforeseen reason refuses the case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_swinfuse.imaging.volume import VolumeError, VoxelVolume, read_volume
from nnunetv2_swinfuse.inference import geometry_checks, intensity_checks
from nnunetv2_swinfuse.inference.blank_slices import check_blank_slices
from nnunetv2_swinfuse.inference.cases import InputCase
from nnunetv2_swinfuse.inference.findings import CaseFindings, Finding, Severity, accept
from nnunetv2_swinfuse.inference.model_description import Channel, ModelDescription

# Each check by name, with what it looks at: the table in docs/clinical.md. Those in NEVER_ACCEPTED leave nothing to
# predict from.
CHECKS = {
    "file_name": "the model's file ending, CASE_0000, no subfolders",
    "channels": "all channels of a case, no others, on one grid",
    "readable": "whole file, sound header and compression, known format, voxels in the file itself",
    "header": "orientation and voxel size in the header, without contradictions",
    "three_dimensional": "one 3D image of numbers",
    "finite": "no NaN, no infinity, nothing that overflows float32",
    "size": "at least 4 voxels along each axis",
    "content": "not constant",
    "label_map": "an image, not a segmentation",
    "blank_slices": "no slices of a single value within the image",
    "direction": "orthonormal direction matrix",
    "orientation": "axes stored as in a training image",
    "spacing": "voxel size near the training images'",
    "field_of_view": "extent near the training images'",
    "modality": "CT where the model expects CT, MR where it expects MR",
    "hounsfield": "CT in plausible Hounsfield units",
    "normalised": "MR as acquired, not normalised already; CT normalised only if the training CT was",
    "internal": "a check failed for an unforeseen reason",
}
NEVER_ACCEPTED = frozenset({"file_name", "channels", "readable", "three_dimensional", "finite", "content", "internal"})

# nnU-Net's readers raise an error if the spacings of two channels are not equal by numpy.allclose, which has this
# tolerance. Of other origins and directions they only warn.
NNUNET_SPACING_TOLERANCE = 1e-8
# What these checks refuse is no image, unless the user accepts it; the other checks would have nothing to look at.
NO_IMAGE = ("content", "label_map")


def check_case(case: InputCase, model: ModelDescription, accepted: Sequence[str] = ()) -> CaseFindings:
    """Reads a case and makes all checks that its state allows.

    Args:
        case: its files.
        model: what the training images were like.
        accepted: names of checks whose refusals become warnings.
    """
    files = tuple(case.files[number] for number in sorted(case.files))
    findings, performed, not_performed = list(case.problems), ["file_name", "channels"], dict[str, str]()
    if not findings:
        try:
            _check_files(files, model, accepted, findings, performed, not_performed)
        except Exception as error:
            # Any exception that a damaged file causes in a reader must refuse its case.
            findings.append(
                Finding(
                    "internal",
                    Severity.REFUSED,
                    f"the checks failed: {type(error).__name__}: {error}",
                    "Export the image again; if that does not help, report this message.",
                )
            )
    findings = [accept(finding, accepted) for finding in findings]
    return CaseFindings(case.name, files, tuple(findings), tuple(dict.fromkeys(performed)), not_performed)


def _check_files(
    files: Sequence[Path],
    model: ModelDescription,
    accepted: Sequence[str],
    findings: list[Finding],
    performed: list[str],
    not_performed: dict[str, str],
) -> None:
    volumes: list[VoxelVolume] = []
    for path, channel in zip(files, model.channels, strict=True):
        try:
            volume = read_volume(path)
        except VolumeError as error:
            findings.append(Finding(error.check, Severity.REFUSED, error.reason, _sentence(error.remedy), str(path)))
            continue
        volumes.append(volume)
        performed += ["readable", "header", "three_dimensional", "finite"]
        findings += _check_header(volume)
        _check_volume(volume, channel, model, accepted, findings, performed, not_performed)
    for volume in volumes[1:]:
        if difference := volumes[0].grid.differs_from(volume.grid, NNUNET_SPACING_TOLERANCE):
            findings.append(
                Finding(
                    "channels",
                    Severity.REFUSED,
                    f"not on the grid of {volumes[0].path} ({difference})",
                    "Resample one to the other, or give it the header of the other if only the rounding differs; all "
                    "channels of a case must lie on one grid.",
                    str(volume.path),
                )
            )
    # A case that has no image, or not all channels on one grid, has no field of view.
    fatal = {*NO_IMAGE, "channels"} - set(accepted)
    if len(volumes) == len(files) and not any(finding.check in fatal for finding in findings):
        performed.append("field_of_view")
        finding = geometry_checks.check_field_of_view(volumes, model)
        findings += [finding] if finding is not None else []


def _check_header(volume: VoxelVolume) -> list[Finding]:
    return [
        Finding(
            "header",
            Severity.REFUSED if problem.geometry else Severity.WARNING,
            problem.reason,
            problem.remedy,
            str(volume.path),
        )
        for problem in volume.header_problems
    ]


def _check_volume(
    volume: VoxelVolume,
    channel: Channel,
    model: ModelDescription,
    accepted: Sequence[str],
    findings: list[Finding],
    performed: list[str],
    not_performed: dict[str, str],
) -> None:
    image = intensity_checks.profile(volume)
    checks: dict[str, Callable[[], Finding | None]] = {
        "size": lambda: geometry_checks.check_size(volume),
        "content": lambda: intensity_checks.check_content(image),
        "label_map": lambda: intensity_checks.check_label_map(image),
        "blank_slices": lambda: check_blank_slices(volume),
        "direction": lambda: geometry_checks.check_direction(volume),
        "orientation": lambda: geometry_checks.check_orientation(volume, model),
        "spacing": lambda: geometry_checks.check_spacing(volume, model),
        "modality": lambda: intensity_checks.check_modality(image, channel),
        "hounsfield": lambda: intensity_checks.check_hounsfield(image, channel),
        "normalised": lambda: intensity_checks.check_normalised(image, channel),
    }
    if model.orientations is None:
        not_performed["orientation"] = model.orientation_source
        del checks["orientation"]
    if reason := intensity_checks.modality_reason(channel):
        not_performed["modality"] = reason
        del checks["modality"]
    if channel.domain != "CT":
        del checks["hounsfield"]
    elif intensity_checks.training_scale(channel) == "hounsfield":
        del checks["normalised"]
    elif reason := intensity_checks.hounsfield_reason(channel):
        not_performed["hounsfield"] = reason
        del checks["hounsfield"]
    for name, check in checks.items():
        performed.append(name)
        finding = check()
        if finding is None:
            continue
        findings.append(
            Finding(finding.check, finding.severity, finding.reason, finding.remedy, finding.file or str(volume.path))
        )
        if name in NO_IMAGE and name not in accepted:
            # The other checks need an image.
            break


def _sentence(remedy: str) -> str:
    return remedy[0].upper() + remedy[1:] + "."
