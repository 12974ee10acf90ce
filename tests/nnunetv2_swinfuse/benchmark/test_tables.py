import re
from dataclasses import replace

import pandas as pd
import pytest

from nnunetv2_swinfuse.benchmark.tables import (
    TRANSDUCTIVE,
    arrowed,
    comparison_table,
    latex_table,
    markdown_report,
    markdown_table,
    surroundings,
    table_rows,
    wide_means,
)

from .tables import COMMAND, DATASET, analysed, make_experiment, result_of


@pytest.fixture
def plain(plain_analysis):
    """Experiment and analysis with nothing special."""
    experiment, _, analysis = plain_analysis
    return experiment, analysis


def test_markdown_escapes_what_would_end_a_cell():
    table = pd.DataFrame({"name": ["a|b", "c"], "value": [0.123456, None]})
    assert markdown_table(table).splitlines() == [
        "| name | value |",
        "| --- | --- |",
        "| a/b | 0.123 |",
        "| c | - |",
    ]


def test_plain_values():
    table = pd.DataFrame({"text": ["x"], "whole": [3], "nothing": [float("nan")]})
    assert table_rows(table) == [["x", 3.0, None]]


def test_latex_rows_have_as_many_cells_as_its_head(plain):
    text = latex_table(*plain)
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert DATASET.replace("_", r"\_") in text
    assert r"resenc\_m" in text
    rows = re.findall(r"^.*&.*\\\\$", text, re.MULTILINE)
    assert len(rows) == 3
    assert len({row.count("&") for row in rows}) == 1


def test_transductive_is_printed_in_every_table(plain, tmp_path):
    experiment, _, analysis = analysed(tmp_path, experiment=make_experiment(transductive=True))
    # Verdicts, means, four metrics, empty classes, cost.
    assert markdown_report(experiment, analysis, COMMAND).count(TRANSDUCTIVE) == 8
    assert TRANSDUCTIVE in latex_table(experiment, analysis)
    assert TRANSDUCTIVE not in markdown_report(*plain, COMMAND) + latex_table(*plain)


def test_metrics_are_columns_with_their_direction(plain):
    table = wide_means(plain[1])
    assert list(table.columns[-4:]) == [arrowed(name) for name in ("Dice", "HD95", "SurfaceDice", "VolumeError")]
    assert (arrowed("Dice"), arrowed("HD95")) == ("Dice (higher is better)", "HD95 (lower is better)")
    # Two arms; foreground and two classes.
    assert len(table) == 6
    assert list(table["class"]) == ["foreground"] * 2 + ["core"] * 2 + ["shell"] * 2
    assert table.iloc[0, -4].endswith(")")


def test_a_comparison_is_one_row(plain):
    (found,) = plain[1].comparisons["Dice"]
    (row,) = comparison_table([found]).to_dict("records")
    assert (row["first"], row["second"], row["verdict"]) == ("resenc_m", "nnunet", "better")
    assert row["difference"] == f"{found.estimate.mean:+.4f}"
    assert row["bootstrap interval"] == f"{found.bootstrap[0]:+.4f} to {found.bootstrap[1]:+.4f}"
    (row,) = comparison_table([replace(found, p=0.0123, wilcoxon_adjusted=0.00099)]).to_dict("records")
    assert (row["p (Holm)"], row["Wilcoxon p (Holm)"]) == ("0.012", "< 0.001")


def test_surroundings_list_what_differs(plain):
    assert surroundings(plain[1])["machine"] == "here"
    analysis = plain[1]
    results = {**analysis.results, analysis.cells[0].name: result_of(analysis.cells[0], machine="there")}
    assert surroundings(replace(analysis, results=results))["machine"] == "here, there"
    assert surroundings(analysis)["nnunetv2"] == "2.8.1"
