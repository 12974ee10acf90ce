"""Picture of how different two domains are, layer by layer, and of what each layer knows of organs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretraining.analysis.arms import Arm
from pretraining.analysis.figures import draw_curves, new_figure, save, shared_legend
from pretraining.voxel_probe.encoders import RANDOM

COLUMNS = 3
# By encoder, then layer: the fields of DomainGap, and `organs`, a list of OrganScore.
Gaps = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Panel(NamedTuple):
    """One plot.

    Attributes:
        title, hint: above it; the hint says how to read it.
        values: by encoder and layer; None where not measured.
    """

    title: str
    hint: str
    values: dict[str, dict[str, float | None]]


def panels_of(results: Gaps, names: tuple[str, str]) -> list[Panel]:
    """What is drawn: the measures that any encoder has.

    Args:
        results: of all encoders.
        names: of the domains.
    """

    def collect(read: Any) -> dict[str, dict[str, float | None]]:
        return {label: {layer: read(gap) for layer, gap in layers.items()} for label, layers in results.items()}

    panels = [
        Panel("JSD / ln 2, above its floor", "0: alike", collect(lambda gap: gap["divergence"] - gap["floor"])),
        Panel("squared MMD", "0: alike", collect(lambda gap: gap["mmd"])),
        Panel(f"linear probe: {names[0]} or {names[1]}?", "0.5: chance", collect(lambda gap: gap["probe_accuracy"])),
        Panel("debiased CKA, registered tokens", "1: alike", collect(lambda gap: gap["cka"])),
        Panel("CKA, another patient's", "what positions give", collect(lambda gap: gap["cka_other_patient"])),
        Panel("effective rank / channels", "near 0: collapsed", collect(lambda gap: gap["rank"])),
        Panel("ICC, registered tokens", "1: alike, 0: independent", collect(lambda gap: gap["icc"])),
        Panel("ICC, another patient's", "what positions give", collect(lambda gap: gap["icc_other_patient"])),
        Panel("standard deviation of tokens", "near 0: shrunken", collect(lambda gap: gap["deviation"])),
    ]
    organs = next(iter(next(iter(results.values())).values()))["organs"]
    for index, score in enumerate(organs):
        title = f"organ probe: {score.task}, {score.labelled} labelled"
        panels.append(Panel(title, "Dice; higher is better", collect(_dice(index))))
    return [panel for panel in panels if any(v is not None for of in panel.values.values() for v in of.values())]


def draw_gaps(path: Path, arms: Sequence[Arm], results: Gaps, names: tuple[str, str], title: str) -> Path:
    """Draws a curve over the layers for each arm and measure.

    Args:
        path: the PNG to write.
        arms: the encoders.
        results, names: see :func:`panels_of`; encoders by :attr:`Arm.label`.
        title: where the images come from.
    """
    layers = list(dict.fromkeys(layer for of_arm in results.values() for layer in of_arm))
    panels = panels_of(results, names)
    figure, axes = new_figure(-(-len(panels) // COLUMNS), COLUMNS, 4.4, 3.1)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        curves: dict[str, list[list[float | None]]] = {}
        for arm in arms:
            curves.setdefault(arm.name, []).append([panel.values[arm.label].get(layer) for layer in layers])
        draw_curves(axis, layers, curves, RANDOM)
        axis.set_title(f"{panel.title}\n({panel.hint})", fontsize=9)
    shared_legend(figure, axes)
    figure.suptitle(f"{title}: features of single images; band: range over seeds", fontsize=11)
    return save(figure, path)


def _dice(index: int) -> Any:
    return lambda gap: gap["organs"][index].dice
