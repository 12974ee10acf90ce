"""The tables of a report, as Markdown and LaTeX too."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_swinfuse.benchmark.analysis import Analysis
from nnunetv2_swinfuse.benchmark.comparison import Comparison
from nnunetv2_swinfuse.benchmark.distribution import PAPER
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.metrics import HIGHER_IS_BETTER, METRICS

TRANSDUCTIVE = "Transductive: pretraining may have seen images of test cases."
HEAD = (
    "first", "second", "dataset", "labels", "difference", "95 % interval", "bootstrap interval", "p (Holm)",
    "Wilcoxon p (Holm)", "effect size", "noise of the baseline's runs", "runs needed", "verdict",
)  # fmt: skip
Cellular = str | float | None


def wide_means(analysis: Analysis) -> pd.DataFrame:
    """Arms in rows, metrics in columns, foreground and classes below each other."""
    means = analysis.means.copy()
    # The mean of the classes stands before them, whatever their names.
    names = sorted(set(means["class"]), key=lambda name: (name != "foreground", name))
    means["class"] = pd.Categorical(means["class"], names, ordered=True)
    deviation = means["deviation"].map(lambda value: "" if math.isnan(value) else f" ({value:.3f})")
    means["text"] = means["mean"].map(lambda value: "-" if math.isnan(value) else f"{value:.3f}") + deviation
    table = means.pivot(
        index=["dataset", "labels", "class", "arm", "runs"], columns="metric", values="text"
    ).sort_index()
    columns = [metric for metric in METRICS if metric in table.columns]
    return table[columns].rename(columns=arrowed).reset_index().rename_axis(columns=None)


def unchecked(arms: Sequence[str]) -> str:
    """What is not known of encoders that are given as files."""
    return f"What the encoder of {', '.join(arms)} was pretrained on was not checked: a file was named"


def arrowed(metric: str) -> str:
    """The metric with the direction in which it is better."""
    return f"{metric} ({'higher' if HIGHER_IS_BETTER[metric] else 'lower'} is better)"


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row for each comparison."""
    rows = []
    for comparison in comparisons:
        low, high = comparison.estimate.interval()
        rows.append(
            (
                comparison.first,
                comparison.second,
                comparison.dataset,
                comparison.labels,
                f"{comparison.estimate.mean:+.4f}",
                f"{low:+.4f} to {high:+.4f}"
                if math.isfinite(low)
                else f"unknown: one {'case' if comparison.estimate.clusters else 'run'}",
                "{:+.4f} to {:+.4f}".format(*comparison.bootstrap),
                _p(comparison.p),
                _p(comparison.wilcoxon_adjusted),
                f"{comparison.effect:+.2f}",
                "unknown: one run" if math.isnan(comparison.noise) else f"{comparison.noise:.4f}",
                "-" if comparison.needed is None else str(comparison.needed),
                comparison.verdict,
            )
        )
    return pd.DataFrame(rows, columns=list(HEAD))


def _p(value: float) -> str:
    """A p-value as it is read; report.json has all digits."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def table_rows(table: pd.DataFrame) -> list[list[Cellular]]:
    """Rows of plain values; NaN becomes None."""
    return [[_cell(value) for value in row] for row in table.itertuples(index=False)]


def _cell(value: Any) -> Cellular:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(value) if isinstance(value, int | float | np.number) else str(value)


def surroundings(analysis: Analysis) -> dict[str, str]:
    results = [analysis.results[cell.name] for cell in analysis.cells if cell.name in analysis.results]
    facts = {name: sorted({str(result[name]) for result in results}) for name in ("machine", "device")}
    for package in results[0]["versions"] if results else ():
        facts[package] = sorted({result["versions"][package] for result in results})
    return {name: ", ".join(values) for name, values in facts.items()}


def markdown_report(experiment: Experiment, analysis: Analysis, command: Sequence[str]) -> str:
    """Verdicts and tables; no pictures."""
    note = [TRANSDUCTIVE, ""] if experiment.transductive else []
    done = sum(cell.name in analysis.results for cell in analysis.cells)
    lines = [f"# Comparison: {experiment.name}", "", f"{done} of {len(analysis.cells)} cells are done.", ""]
    lines += ["## Verdicts", "", *note, *(f"- {text}" for text in analysis.sentences)]
    lines += [f"- {refusal}" for refusal in analysis.refusals]
    lines += [f"- No test case has {name}; nothing can be said of it." for name in analysis.absent]
    lines += [f"- {sentence}." for sentence in analysis.repeated]
    if analysis.unchecked_encoders:
        lines += [f"- {unchecked(analysis.unchecked_encoders)}."]
    if len(analysis.distribution):
        lines += ["", "## In and out of distribution", "", PAPER, "", *note, markdown_table(analysis.distribution)]
    lines += ["", "## Means", "", *note, markdown_table(wide_means(analysis))]
    for metric, comparisons in analysis.comparisons.items():
        if comparisons:
            lines += ["", f"## Differences: {metric}", "", *note, markdown_table(comparison_table(comparisons))]
    lines += ["", "## Empty classes", "", *note, markdown_table(analysis.empties)]
    lines += ["", "## Cost", "", *note, markdown_table(analysis.costs)]
    lines += ["", "## Made by", "", f"    {shlex.join(command)}", ""]
    lines += [f"- {name}: {value}" for name, value in surroundings(analysis).items()]
    return "\n".join(lines) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A Markdown table; numbers have three significant digits."""
    rows = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    for row in table_rows(table):
        rows.append(["-" if cell is None else cell if isinstance(cell, str) else f"{cell:.3g}" for cell in row])
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows)


def latex_table(experiment: Experiment, analysis: Analysis) -> str:
    """A LaTeX table (booktabs) of all arms' foreground means."""
    means = wide_means(analysis)
    table = means[means["class"] == "foreground"].drop(columns=["class"])
    caption = f"{experiment.name}: mean over runs (standard deviation of the runs)."
    caption += f" {TRANSDUCTIVE}" if experiment.transductive else ""
    return str(table.to_latex(index=False, escape=True, caption=caption, label=f"tab:{experiment.name}"))
