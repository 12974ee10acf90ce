"""Picture of how features change with the contrast of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pretraining.analysis.arms import Arm
from pretraining.analysis.contrast_shift import STRENGTHS, ContrastShift, Similarity
from pretraining.analysis.figures import Curve, draw_curves, new_figure, save, shared_legend
from pretraining.voxel_probe.encoders import RANDOM

# Where along x the similarities to other images are drawn, right of the curves.
OTHER_PATIENT, OTHER_DOMAIN = 1.3, 1.6
MEASURES = {"cka": "debiased CKA", "cosine": "cosine similarity"}


def draw_shifts(path: Path, arms: Sequence[Arm], shifts: Mapping[str, ContrastShift], other: str, title: str) -> Path:
    """Draws CKA and cosine similarity over the strength of the contrast, a column for each layer.

    Right of each curve, the similarity to another patient's crop, and to the registered crop of the other domain.

    Args:
        path: the PNG to write.
        arms: the encoders.
        shifts: of one domain, by :attr:`Arm.label`.
        other: name of the other domain.
        title: of the picture.
    """
    layers = list(dict.fromkeys(layer for shift in shifts.values() for layer in shift.by_strength))
    references = {OTHER_PATIENT: "other\npatient"}
    if any(shift.other_domain for shift in shifts.values()):
        references[OTHER_DOMAIN] = f"its\n{other}"
    names = [*(f"{strength:g}" for strength in STRENGTHS), *references.values()]
    figure, axes = new_figure(len(MEASURES), len(layers), 3.0, 2.8)
    for row, (measure, measure_name) in zip(axes, MEASURES.items(), strict=True):
        for axis, layer in zip(row, layers, strict=True):
            draw_curves(axis, STRENGTHS, _curves(arms, shifts, layer, measure, None), RANDOM)
            for place in references:
                draw_curves(axis, [place], _curves(arms, shifts, layer, measure, place), RANDOM)
            axis.set_title(f"{layer}, {measure_name}", fontsize=9)
            axis.set_xticks([*STRENGTHS, *references], names, fontsize=7)
            axis.axvline(1.15, color="black", linewidth=0.6)
            axis.set_ylim(top=1.04)
    for axis in axes[-1]:
        axis.set_xlabel("strength of the contrast", fontsize=8, loc="left")
    shared_legend(figure, axes)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _curves(
    arms: Sequence[Arm], shifts: Mapping[str, ContrastShift], layer: str, measure: str, place: float | None
) -> dict[str, list[Curve]]:
    """Values by arm, one curve for each seed; at a place right of the curves, a single value."""
    curves: dict[str, list[Curve]] = {}
    for arm in arms:
        shift = shifts[arm.label]
        found: Sequence[Similarity | None]
        if place is None:
            found = shift.by_strength.get(layer, [None] * len(STRENGTHS))
        elif place == OTHER_PATIENT:
            found = [shift.other_patient.get(layer)]
        else:
            found = [(shift.other_domain or {}).get(layer)]
        curves.setdefault(arm.name, []).append([None if value is None else getattr(value, measure) for value in found])
    return curves
