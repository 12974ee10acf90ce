"""Several pretraining runs side by side: their health at the last validation, and what the voxel probe found in them.

For experiments that need training runs: one proxy task alone, with and without the Domain Invariance Module, other
backbones, other weights, numbers of volumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.statistics import estimate
from pretraining.analysis.figures import GREY, colour_of, marker_of, new_figure, save, widen
from pretraining.collections.collection import DOMAINS
from pretraining.markdown import markdown_table
from pretraining.monitoring.log import RECORDS, read_records
from pretraining.monitoring.report import CONFIGURATION, FACTS
from pretraining.voxel_probe.comparison import LabelledCases, independent_runs, seed_differences
from pretraining.voxel_probe.encoders import RANDOM
from pretraining.voxel_probe.results import (
    Row,
    Summary,
    case_means,
    mean_interval,
    on_own_splits,
    rows_by_task,
    splits_by_task,
    summarise,
)

VOLUMES = "volumes"
# Measures of the last validation: name in the records, what is wanted.
HEALTH = {
    "masked_error": "lower", "rotation_accuracy": "above 0.25", "cka": "towards 1", "probe_accuracy": "towards 0.5",
    "divergence_single_image": "towards the floor", "floor_single_image": "", "rank_single_image": "not near 0",
}  # fmt: skip


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name: of its arm; runs with the same name are seeds of one.
        folder: of the run.
        settings: of the run.
        step: of the last validation.
        health: values of that validation by name.
        volumes: that it was trained on; None where its folder does not say.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    step: int
    health: Mapping[str, float]
    volumes: int | None

    def position(self, setting: str) -> float:
        """The value of a setting, or the number of volumes.

        Raises:
            InputError: when the run does not have it, or it is no number.
        """
        value = self.volumes if setting == VOLUMES else self.settings.get(setting)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(
                f"{self.folder}: {setting} is {value!r}; --over needs a setting that is a number, or {VOLUMES}"
            )
        return float(value)


def read_run(words: str) -> ComparedRun:
    """Reads the settings and the last validation of a run.

    Args:
        words: `RUN` or `NAME=RUN`, the folder of a run.

    Raises:
        InputError: when it is no folder of a run, or has no validation.
    """
    name, equals, text = words.partition("=")
    folder = Path(text if equals else words)
    try:
        settings = json.loads((folder / CONFIGURATION).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIGURATION}: {error}; expected a run, such as $nnUNet_results/NAME/swinfuse__tiny"
        ) from error
    validations = [record for record in read_records(folder) if record["kind"] == "validation"]
    if not validations and settings.get("steps", 0):
        raise InputError(f"{folder / RECORDS}: no validation; let the run reach one, or leave it out")
    last = validations[-1] if validations else {"step": 0}
    health = {key: float(value) for key, value in last.items() if isinstance(value, int | float)}
    volumes = _training_volumes(folder / FACTS, settings.get("modalities", DOMAINS))
    return ComparedRun(name if equals else folder.name, folder, settings, int(last["step"]), health, volumes)


def group_runs(runs: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Runs by arm, in the order they were named."""
    arms: dict[str, list[ComparedRun]] = {}
    for run in runs:
        arms.setdefault(run.name, []).append(run)
    return arms


def probe_summaries(
    rows: Sequence[Row], floors: Mapping[str, str], labelled: LabelledCases | None = None, metric: str = "dice"
) -> dict[str, dict[str, Summary]]:
    """Results of the voxel probe: by task, then by arm, with random encoders first where the table has them.

    Several splits are pooled, see :func:`pretraining.voxel_probe.results.on_own_splits`. Where an arm and its random
    encoders have two seeds in common or more, the interval of their difference covers other seeds and other cases, as
    in `python -m pretraining.voxel_probe --compare`; otherwise only other cases.

    Args:
        rows: of the probe's table.
        floors: of the arms to show, the arm of random encoders that each is compared with.
        labelled: of the splits in the rows; those with the same labelled cases are one run. Where it is not known,
            splits count as different.
        metric: of the probe.

    Returns:
        A summary of each arm, with the difference to random encoders.
    """
    summaries: dict[str, dict[str, Summary]] = {}
    splits = splits_by_task(rows)
    for task, of_task in rows_by_task(on_own_splits(rows)).items():
        sets = (labelled or {}).get((task.dataset, task.labelled), {}) if len(splits[task]) > 1 else {}
        dataset = task.dataset if task.dataset == task.tested_on else f"{task.dataset} to {task.tested_on}"
        of_arms = summaries[f"{dataset}, {task.labelled} labelled"] = {}
        for arm in (RANDOM, *floors):
            values = case_means([row for row in of_task if row.key.arm == arm], metric)
            if not values:
                continue
            floor = floors.get(arm, "")
            summary = summarise(values, case_means([row for row in of_task if row.key.arm == floor], metric))
            differences = seed_differences(of_task, arm, floor, metric)
            runs = independent_runs(differences, sets) if differences else []
            if len(runs) > 1:
                of_seeds = estimate([runs])
                summary = replace(summary, difference=of_seeds.mean, difference_interval=of_seeds.interval())
            of_arms[arm] = summary
    return summaries


def make_table(arms: Mapping[str, Sequence[ComparedRun]], probes: Mapping[str, Mapping[str, Summary]]) -> str:
    """A Markdown table with one line for each arm: means over its runs, and Dice of the probe minus random encoders."""
    measures = [name for name in HEALTH if any(name in run.health for runs in arms.values() for run in runs)]
    header = ["arm", "runs", "recipe", "steps", VOLUMES, *measures, *(f"Dice {task} (minus random)" for task in probes)]
    lines = []
    for name, runs in arms.items():
        cells = [name, str(len(runs)), *(_joined(runs, key) for key in ("recipe",))]
        cells += [_distinct([run.step for run in runs]), _distinct([run.volumes for run in runs])]
        for measure in measures:
            values = [run.health[measure] for run in runs if measure in run.health]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        for of_arms in probes.values():
            cells.append(_format(of_arms[name]) if name in of_arms else "")
        lines.append(cells)
    if any(RANDOM in of_arms for of_arms in probes.values()):
        empty = [""] * (len(header) - len(probes) - 1)
        lines.append([RANDOM, *empty, *(_format(of[RANDOM]) if RANDOM in of else "" for of in probes.values())])
    return markdown_table(header, lines)


def draw_comparison(
    path: Path,
    arms: Mapping[str, Sequence[ComparedRun]],
    probes: Mapping[str, Mapping[str, Summary]],
    over: str | None,
) -> Path:
    """Draws a panel for each task of the probe, with the floor of each arm, and for each measure of health.

    Args:
        path: the PNG to write.
        arms: runs by arm.
        probes: from :func:`probe_summaries`.
        over: a setting along x, such as `density_weight`, or `volumes`; the arms side by side when None.
    """
    measures = [name for name in HEALTH if any(name in run.health for runs in arms.values() for run in runs)]
    panels = [*probes, *measures]
    columns = min(3, max(len(panels), 1))
    figure, axes = new_figure(max(-(-len(panels) // columns), 1), columns, 4.2, 3.1)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    places = {name: _place(runs, over, number) for number, (name, runs) in enumerate(arms.items())}
    for axis, panel in zip(axes.flat, panels, strict=False):
        for number, (name, runs) in enumerate(arms.items()):
            style = {"color": colour_of(number), "marker": marker_of(number), "markersize": 6}
            if panel in probes:
                if name in probes[panel]:
                    summary = probes[panel][name]
                    axis.plot([places[name]] * len(summary.seeds), summary.seeds, linestyle="", **style)
                    if summary.interval:
                        axis.plot([places[name]] * 2, summary.interval, color=style["color"], linewidth=1)
                    if summary.difference is not None:
                        floor = summary.mean - summary.difference
                        axis.plot([places[name]], [floor], marker="_", markersize=18, markeredgewidth=2, color=GREY)
            else:
                values = [run.health[panel] for run in runs if panel in run.health]
                axis.plot([places[name]] * len(values), values, linestyle="", **style)
        wanted = HEALTH.get(panel, "grey: same encoder, random weights; lines: 95 %")
        title = f"Dice, {panel}" if panel in probes else panel
        axis.set_title(f"{title}\n({wanted})" if wanted else title, fontsize=9)
        widen(axis)
        axis.grid(alpha=0.3)
        if over:
            axis.set_xlabel(over, fontsize=9)
        else:
            axis.set_xticks(list(places.values()), list(places), rotation=35, ha="right", fontsize=8)
            axis.set_xlim(-0.5, len(places) - 0.5)
    return save(figure, path)


def health_summary(runs: Sequence[ComparedRun]) -> dict[str, dict[str, Any]]:
    """Mean over the runs of an arm, its interval for other seeds, and every value, by measure."""
    summary = {}
    for measure in sorted({name for run in runs for name in run.health}):
        values = [run.health[measure] for run in runs if measure in run.health]
        mean, interval = mean_interval(np.array(values))
        summary[measure] = {"mean": mean, "interval": interval, "runs": values}
    return summary


def _place(runs: Sequence[ComparedRun], over: str | None, number: int) -> float:
    if over is None:
        return float(number)
    positions = {run.position(over) for run in runs}
    if len(positions) > 1:
        raise InputError(f"{runs[0].name}: runs with {over} {sorted(positions)}; give each value a name of its own")
    return positions.pop()


def _training_volumes(facts: Path, modalities: Sequence[str]) -> int | None:
    """Volumes for training of these modalities, from a run's `run.json`; None where it does not say."""
    try:
        text = str(json.loads(facts.read_text())["data"]["volumes for train"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sum(int(count) for count, domain in re.findall(r"(\d+) (CT|MR)\b", text) if domain in modalities)


def _joined(runs: Sequence[ComparedRun], setting: str) -> str:
    return ", ".join(dict.fromkeys(str(run.settings.get(setting, "")) for run in runs))


def _distinct(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values) if value is not None)


def _format(summary: Summary) -> str:
    if summary.difference is None:
        return f"{summary.mean:.3f}"
    text = f"{summary.mean:.3f} ({summary.difference:+.3f}"
    if summary.difference_interval:
        low, high = summary.difference_interval
        text += f" [{low:+.3f}, {high:+.3f}]"
    return text + ")"
