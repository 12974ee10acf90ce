"""The report of an experiment: HTML in one file, Markdown, a LaTeX table and JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nnunetv2_swinfuse.benchmark import figures
from nnunetv2_swinfuse.benchmark.analysis import PRIMARY, Analysis, Group, analyse
from nnunetv2_swinfuse.benchmark.cells import Cell, Workspace
from nnunetv2_swinfuse.benchmark.comparison import Comparison
from nnunetv2_swinfuse.benchmark.distribution import PAPER
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.files import write_json, write_text
from nnunetv2_swinfuse.benchmark.metrics import METRICS
from nnunetv2_swinfuse.benchmark.raw_dataset import find_dataset
from nnunetv2_swinfuse.benchmark.tables import (
    TRANSDUCTIVE,
    comparison_table,
    latex_table,
    markdown_report,
    surroundings,
    table_rows,
    unchecked,
    wide_means,
)
from nnunetv2_swinfuse.errors import BenchmarkError
from pretraining.monitoring import page


def write_report(
    experiment: Experiment, workspace: Workspace, cells: Sequence[Cell], command: Sequence[str], pictures: bool = True
) -> list[Path]:
    """Writes `report.html` beside the models, and report.md, report.json and table.tex beside the kept results.

    Args:
        experiment, workspace, cells: what and where.
        command: that resumes the experiment.
        pictures: whether to show test cases, which are pictures of patients; they are in the HTML only.
    """
    analysis = analyse(experiment, workspace, cells, command)
    html = workspace.root / "report.html"
    write_text(html, html_report(experiment, workspace, analysis, command, pictures))
    write_text(workspace.results / "report.md", markdown_report(experiment, analysis, command))
    write_text(workspace.results / "table.tex", latex_table(experiment, analysis))
    write_json(workspace.results / "report.json", {"experiment": experiment.to_dict(), **analysis.to_dict()})
    return [html, *(workspace.results / name for name in ("report.md", "table.tex", "report.json"))]


def html_report(
    experiment: Experiment, workspace: Workspace, analysis: Analysis, command: Sequence[str], pictures: bool
) -> str:
    """The whole page."""
    done = sum(cell.name in analysis.results for cell in analysis.cells)
    sections = [
        page.paragraph(f"{done} of {len(analysis.cells)} cells are done.", "lead"),
        page.box(TRANSDUCTIVE, warning=True) if experiment.transductive else "",
        _verdicts(analysis),
        _warnings(analysis),
        *(_group(analysis, group, experiment) for group in analysis.groups),
        _section("In and out of distribution", experiment, analysis.distribution, PAPER)
        if len(analysis.distribution)
        else "",
        _means(experiment, analysis),
        *(_comparisons(experiment, metric, pairs) for metric, pairs in analysis.comparisons.items() if pairs),
        _empties(experiment, analysis),
        _cases(analysis, workspace, experiment) if pictures else "",
        _section("Cost", experiment, analysis.costs),
        page.section(
            "Experiment",
            page.paragraph("This command continues the experiment; with --report_only it only writes this page again:"),
            page.code(shlex.join(command)),
            page.facts({name: json.dumps(value) for name, value in experiment.to_dict().items()}),
            page.facts(surroundings(analysis)),
        ),
    ]
    return page.page(f"Comparison: {experiment.name}", filter(None, sections))


def _verdicts(analysis: Analysis) -> str:
    sentences = analysis.sentences
    if not sentences:
        return page.box("No comparison can be made yet.", warning=True)
    shown = any(comparison.verdict != "not shown" for comparison in analysis.comparisons[PRIMARY])
    return page.box("Verdicts", sentences, warning=not shown)


def _warnings(analysis: Analysis) -> str:
    parts = []
    if analysis.refusals:
        parts.append(page.box("Not compared", [str(refusal) for refusal in analysis.refusals], warning=True))
    if analysis.absent:
        parts.append(page.box("No test case has these classes; nothing can be said of them", analysis.absent, True))
    if analysis.repeated:
        parts.append(page.box("Seeds that are no independent runs", analysis.repeated, True))
    if analysis.unchecked_encoders:
        parts.append(page.box(unchecked(analysis.unchecked_encoders), (), True))
    return "\n".join(parts)


def _group(analysis: Analysis, group: Group, experiment: Experiment) -> str:
    comparisons = [
        comparison
        for comparison in analysis.comparisons[PRIMARY]
        if (comparison.dataset, comparison.labels) == (group.dataset, group.labels)
    ]
    arms = list(group.scores.arms)
    curves = {
        arm: [
            analysis.results[cell.name]["curve"]
            for cell in analysis.cells
            if (cell.arm, cell.dataset, str(cell.labels)) == (arm, group.dataset, group.labels)
        ]
        for arm in arms
    }
    drawn = [
        page.picture(
            figures.draw_boxes(group.scores), f"Box plot of {PRIMARY}", "Boxes: cases, means over runs. Points: runs."
        ),
        page.picture(
            figures.draw_ranks(group.ranks, group.critical_difference),
            "Mean ranks of the arms",
            "Mean ranks with a bootstrap interval (runs and cases resampled). The critical difference is "
            "Nemenyi's with cases as blocks; it knows nothing of the noise of runs.",
        ),
        page.picture(figures.draw_curves(curves), "Learning curves", "One line for each run."),
    ]
    of_both = [pair for pair in comparisons if pair.first in arms and pair.second in arms]
    if of_both:
        caption = "Differences; a star where a verdict is shown."
        drawn.insert(0, page.picture(figures.draw_matrix(of_both, arms), "Matrix of differences", caption))
    note = [page.paragraph(TRANSDUCTIVE)] if experiment.transductive else []
    return page.section(f"{group.dataset}, {group.labels} labels", *note, page.group("pictures", drawn))


def _means(experiment: Experiment, analysis: Analysis) -> str:
    return _section(
        "Means",
        experiment,
        wide_means(analysis),
        "Figures as in nnU-Net's summary.json, means over the runs (standard deviation of the runs). foreground: mean "
        "over the classes that have a value.",
    )


def _comparisons(experiment: Experiment, metric: str, comparisons: Sequence[Comparison]) -> str:
    family = "the declared family" if metric == PRIMARY else "described; the verdicts rest on Dice"
    return _section(f"Differences: {metric}, {family}", experiment, comparison_table(comparisons), METRICS[metric])


def _empties(experiment: Experiment, analysis: Analysis) -> str:
    table = analysis.empties[(analysis.empties[["missed", "invented", "both"]] > 0).any(axis=1)]
    if table.empty:
        return ""
    note = (
        "Predictions that miss a class or have one too many, over all runs. missed and invented: Dice and "
        "surface Dice 0, HD95 the diagonal of the image. both: rightly absent; no figure in the means, perfect in the "
        "differences."
    )
    return _section("Empty classes", experiment, table, note)


def _section(heading: str, experiment: Experiment, table: pd.DataFrame, note: str = "") -> str:
    notes = [page.paragraph(text) for text in (TRANSDUCTIVE if experiment.transductive else "", note) if text]
    return page.section(heading, *notes, page.table(list(table.columns), table_rows(table)))


def _cases(analysis: Analysis, workspace: Workspace, experiment: Experiment) -> str:
    """The worst and the median case of each group, by the mean over all arms and runs, as the first run saw them."""
    drawn = []
    for group in analysis.groups:
        means = np.mean([group.scores.case_means(arm) for arm in group.scores.arms], axis=0)
        by_fold = zip(tuple(sorted(experiment.folds)) or (0,), group.scores.cases, strict=True)
        names = [(fold, case) for fold, cases in by_fold for case in cases]
        order = np.argsort(means)
        for title, index in (("worst", order[0]), ("median", order[len(order) // 2])):
            fold, case = names[int(index)]
            shown = _case_files(analysis, workspace, experiment, group, fold, case)
            if shown is None:
                continue
            image, reference, predictions = shown
            data = figures.draw_case(
                figures.read_volume(image),
                figures.read_volume(reference),
                {arm: figures.read_volume(path) for arm, path in predictions.items()},
            )
            where = f"{group.dataset}, {group.labels} labels"
            caption = f"{where}, {title} case {case}: {PRIMARY} {means[index]:.3f} over all arms"
            drawn.append(page.picture(data, f"The {title} case with contours", caption))
    if not drawn:
        return ""
    note = "Pictures of test cases: pass this page on only where those may go. Dashed white: reference."
    return page.section("Cases", page.paragraph(note), page.group("pictures", drawn))


def _case_files(
    analysis: Analysis, workspace: Workspace, experiment: Experiment, group: Group, fold: int, case: str
) -> tuple[Path, Path, dict[str, Path]] | None:
    """Image, reference and each arm's prediction; None where this machine does not have them."""
    predictions = {}
    for cell in analysis.cells:
        where = (cell.dataset, str(cell.labels), cell.seed, cell.fold)
        if where != (group.dataset, group.labels, group.scores.seeds[0], fold) or cell.arm not in group.scores.arms:
            continue
        pattern = f"nnUNet_results/*/*/fold_{fold}/validation/{case}.*"
        files = [path for path in workspace.cell(cell).glob(pattern) if path.suffix not in (".npz", ".pkl", ".json")]
        if not files:
            return None
        predictions[cell.arm] = files[0]
    try:
        dataset = find_dataset(int(group.dataset[len("Dataset") :].split("_")[0]))
    except BenchmarkError:
        return None
    return dataset.images[case][0], dataset.label[case], predictions
