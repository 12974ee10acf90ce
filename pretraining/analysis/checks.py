"""The checks of `swinfuse_analyze`: each measures all encoders on the same crops, and writes pictures and a record."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.arms import Arm
from pretraining.analysis.attention import DIFFERENCES, RELATIVE, attention_of_crops, pair_attention
from pretraining.analysis.attention_figure import draw_differences, draw_overlay, mean_attention
from pretraining.analysis.contrast_shift import STRENGTHS, ContrastShift, measure_shift, voxel_correlation
from pretraining.analysis.crops import CropSets
from pretraining.analysis.density_sensitivity import Sweep, draw_sweeps, sweep
from pretraining.analysis.domain_gap import measure_gap
from pretraining.analysis.gap_figure import draw_gaps
from pretraining.analysis.layers import DIM
from pretraining.analysis.projections import Projected, draw_projections, project
from pretraining.analysis.record import write_record
from pretraining.analysis.shift_figure import draw_shifts
from pretraining.analysis.tokens import sample_layers
from pretraining.markdown import markdown_table
from pretraining.voxel_probe.encoders import RANDOM
from pretraining.voxel_probe.results import Summary, summarise

if TYPE_CHECKING:
    # Imports nnunetv2, which takes seconds.
    from pretraining.analysis.layer_probe import OrganScore

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
DIMENSIONS = (2, 4, 8, 16, 1000)
TOKENS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Context:
    """What all checks are given.

    Attributes:
        arms: the encoders.
        crops: the images.
        output: folder of the pictures and the record.
        command: words of the command line.
        seed: of all draws.
        tokens: of each domain and layer.
        notes: for the record.
    """

    arms: Sequence[Arm]
    crops: CropSets
    output: Path
    command: Sequence[str]
    seed: int
    tokens: int
    notes: Sequence[str] = ()

    def encoders(self) -> Iterator[Arm]:
        """The encoders, with a progress bar where there is a terminal."""
        yield from tqdm(self.arms, desc="encoders", unit="encoder", leave=False, disable=None)

    @property
    def title(self) -> str:
        """Of the pictures: where the images come from."""
        return str(self.crops.source.get("collection") or " and ".join(self.crops.source.get("datasets", [])))

    def write(self, check: str, results: Mapping[str, Any], started: float) -> Path:
        """Writes the record of a check."""
        seconds = time.perf_counter() - started
        path = self.output / f"{check}.json"
        return write_record(path, self.command, self.arms, self.crops.source, results, self.notes, seconds)


def check_attention(context: Context, pair: int) -> str:
    """Attention of the two blocks of the module on registered pairs; returns a table.

    Args:
        context: arms with a module, registered crops.
        pair: index of the crop whose attention is drawn.
    """
    started = time.perf_counter()
    values: dict[str, dict[str, dict[str, dict[int, list[float]]]]] = {}
    for arm in context.encoders():
        for patient, measures in attention_of_crops(arm.network, context.crops, context.seed):
            for measure, value in measures.items():
                of_arm = values.setdefault(measure, {}).setdefault(arm.name, {})
                of_arm.setdefault(patient, {}).setdefault(arm.seed, []).append(value)
    means = {measure: {name: _patient_means(of) for name, of in arms.items()} for measure, arms in values.items()}
    floors = {arm.name: arm.floor for arm in context.arms}
    summaries: dict[str, dict[str, Summary]] = defaultdict(dict)
    for measure, by_arm in means.items():
        for name, of_patients in by_arm.items():
            floor = by_arm.get(floors[name]) if floors[name] != name else None
            summaries[name][measure] = summarise(of_patients, floor)
    for name in summaries:
        registered, others = means["registered"][name], means["unregistered"][name]
        summaries[name]["registered minus unregistered"] = summarise(
            {p: {s: v - others[p][s] for s, v in of.items()} for p, of in registered.items()}, None
        )
    _draw_attention(context, pair)
    draw_differences(context.output / "attention_differences.png", summaries, RANDOM)
    context.write("attention", summaries, started)
    shown = [*DIFFERENCES, "registered minus unregistered", *RELATIVE, "distance in mm"]
    lines = [[name, *(_interval(s[m]) for m in shown), _difference(s["registered"])] for name, s in summaries.items()]
    return markdown_table(["encoder", *shown, "registered minus random"], lines)


def check_features(context: Context, projections: bool, organs: Callable[[Arm], dict[str, Any]] | None) -> str:
    """Distance of the two domains layer by layer, and where known what each layer tells of organs; returns a table.

    Args:
        context: arms and crops.
        projections: draw PCA and t-SNE.
        organs: the organ probe of an arm: scores by layer.
    """
    started = time.perf_counter()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    projected: dict[str, dict[str, Projected]] = defaultdict(dict)
    for arm in context.encoders():
        samples = sample_layers(arm.maps, context.crops, context.tokens, context.seed)
        scores = organs(arm) if organs else {}
        results[arm.label] = {
            layer: {
                **measure_gap(*sides, context.crops.registered, context.seed)._asdict(),
                "organs": scores.get(layer, []),
            }
            for layer, sides in samples.items()
        }
        # One random encoder is enough for a picture.
        if projections and (not arm.random or arm.seed == 0):
            for layer, sides in samples.items():
                projected[layer][arm.label] = project(*sides)
    for layer, of_layer in projected.items():
        path = context.output / f"features_{_file_name(layer)}.png"
        title = f"{context.title}: tokens of {layer} that show tissue, single images"
        draw_projections(path, of_layer, context.crops.names, context.crops.classes, title)
    draw_gaps(context.output / "features.png", context.arms, results, context.crops.names, context.title)
    context.write("features", results, started)
    shown = (
        "divergence", "floor", "mmd", "cka", "cka_other_patient", "icc", "icc_other_patient", "cka_crops",
        "probe_accuracy", "rank", "deviation",
    )  # fmt: skip
    lines = [
        [label, layer, *(gap[name] for name in shown), "; ".join(_score(score) for score in gap["organs"])]
        for label, layers in results.items() for layer, gap in layers.items()
    ]  # fmt: skip
    return markdown_table(["encoder", "layer", *shown, "organ probe: Dice"], lines)


def check_density(context: Context, layer: str | None) -> str:
    """The density estimate over a grid of its settings; returns a table.

    Args:
        context: arms and crops.
        layer: whose tokens; those of the module, or of the deepest stage without one, when None.
    """
    started = time.perf_counter()
    sweeps: dict[str, Sweep] = {}
    for arm in context.encoders():
        # More tokens than are used at most, since some show air.
        samples = sample_layers(arm.maps, context.crops, 2 * max(TOKENS), context.seed)
        chosen = layer or (DIM if DIM in samples else list(samples)[-1])
        if chosen not in samples:
            raise InputError(f"{arm.label}: --layer {chosen!r}; expected one of {', '.join(samples)}")
        first, second = samples[chosen]
        sweeps[f"{arm.label}, {chosen}"] = sweep(first, second, BANDWIDTHS, DIMENSIONS, TOKENS, context.seed)
    title = f"{context.title}: density estimate of {' and '.join(context.crops.names)}"
    draw_sweeps(context.output / "density.png", sweeps, title)
    context.write("density", sweeps, started)
    lines = [
        [name, e.bandwidth, str(e.dimensions), str(e.tokens), e.divergence, e.floor, e.deviation]
        for name, of_arm in sweeps.items() for part in of_arm for e in part
    ]  # fmt: skip
    return markdown_table(["tokens of", "bandwidth", "dimensions", "tokens", "JSD / ln 2", "floor", "deviation"], lines)


def check_contrast(context: Context, contrasts: int) -> str:
    """Features of crops against those of the same crops in random contrasts; returns a table.

    Args:
        context: arms and crops.
        contrasts: random ones of each crop.
    """
    started = time.perf_counter()
    shifts: dict[str, dict[str, ContrastShift]] = {name: {} for name in context.crops.names}
    for arm in context.encoders():
        samples = sample_layers(arm.maps, context.crops, context.tokens, context.seed)
        for number, name in enumerate(context.crops.names):
            shifts[name][arm.label] = measure_shift(
                arm.maps, context.crops, samples, number, STRENGTHS, contrasts, context.tokens, context.seed
            )
    voxels = {
        domain.name: voxel_correlation(domain.crops, STRENGTHS, contrasts, context.seed) for domain in context.crops
    }
    for number, (name, by_arm) in enumerate(shifts.items()):
        path = context.output / f"contrast_{_file_name(name)}.png"
        title = f"{context.title}: features of {name} crops and of the same crops in random contrasts"
        draw_shifts(path, context.arms, by_arm, context.crops.names[1 - number], title)
    results = {"strengths": STRENGTHS, "voxel_correlation": voxels, "features": shifts}
    context.write("contrast", results, started)
    lines: list[list[object]] = []
    for name, by_arm in shifts.items():
        for label, shift in by_arm.items():
            for layer, values in shift.by_strength.items():
                other = shift.other_domain[layer].cka if shift.other_domain else None
                lines.append([name, label, layer, *(v.cka for v in values), shift.other_patient[layer].cka, other])
    header = ["domain", "encoder", "layer", *(f"CKA at {s:g}" for s in STRENGTHS), "other patient", "other domain"]
    return markdown_table(header, lines)


def _patient_means(values: Mapping[str, Mapping[int, Sequence[float]]]) -> dict[str, dict[int, float]]:
    return {patient: {s: sum(v) / len(v) for s, v in by_seed.items()} for patient, by_seed in values.items()}


def _draw_attention(context: Context, pair: int) -> None:
    crops = context.crops
    for arm in context.arms:
        if arm.random and arm.seed:
            continue
        fused = pair_attention(arm.network, crops, pair)
        draw_overlay(
            context.output / f"attention_{_file_name(arm.label)}.png",
            (crops.first.crops[pair].image, crops.second.crops[pair].image), crops.names,
            (mean_attention(fused.ct_weights), mean_attention(fused.mr_weights)), fused.grid, crops.spacing,
            f"{arm.label}, {context.title}, patient {crops.first.crops[pair].patient}",
        )  # fmt: skip


def _score(score: OrganScore) -> str:
    return f"{score.task} ({score.labelled}): {score.dice:.3f}"


def _interval(summary: Summary) -> str:
    if summary.interval is None:
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} [{summary.interval[0]:.3f}, {summary.interval[1]:.3f}]"


def _difference(summary: Summary) -> str:
    if summary.difference is None or summary.difference_interval is None:
        return ""
    low, high = summary.difference_interval
    return f"{summary.difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_")
