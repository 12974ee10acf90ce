import json
import re

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.analysis import analyse
from nnunetv2_swinfuse.benchmark.report import html_report, write_report
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.benchmark.tables import TRANSDUCTIVE, latex_table, markdown_report
from tests.pretraining.monitoring.test_page import Document

from .tables import DATASET, fill, make_experiment, noisy

COMMAND = ["swinfuse_benchmark", "made.json"]


def analysed(tmp_path, values=None, experiment=None, **options):
    experiment = experiment or make_experiment()
    workspace, cells = fill(experiment, tmp_path, values or (lambda cell, cases: noisy(cell, cases, 0.1)), **options)
    return experiment, workspace, analyse(experiment, workspace, cells, COMMAND)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Workspace and report, by kind, of an experiment with nothing special."""
    experiment, workspace, analysis = analysed(tmp_path_factory.mktemp("plain"))
    paths = write_report(experiment, workspace, analysis.cells, COMMAND)
    return workspace, {path.name: path.read_text() for path in paths}


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """The page of one that is transductive, not finished, and has an absent class and an encoder of unknown origin."""
    experiment = make_experiment(arms=["nnunet", "resenc_m", "resenc_l"], transductive=True, seeds=[0])

    def empty(cell):
        return {(f"case_{i:03d}", "core"): "invented" if cell.arm == "nnunet" else "both" for i in range(30)}

    experiment, workspace, analysis = analysed(
        tmp_path_factory.mktemp("special"),
        experiment=experiment,
        empty=empty,
        skip=(LATE,),
        changes=lambda cell: {"encoder": {"sha256": "e", "saw": None}},
    )
    return html_report(experiment, workspace, analysis, COMMAND, pictures=True)


LATE = f"resenc_l__{DATASET}__3_labels__seed_0__fold_0"


def test_verdicts_come_first_and_the_page_asks_for_nothing_outside(plain):
    document = Document(plain[1]["report.html"])
    assert {"script", "link", "iframe"}.isdisjoint(document.tags)
    sources = [value for name, value in document.attributes if name in ("src", "href")]
    # Matrix, boxes, ranks, curves; no case, because there is no image here.
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    text = [piece for piece in document.text if piece.strip()]
    assert text.index("Verdicts") < text.index("Means")
    assert any(piece.startswith(f"resenc_m against nnunet on {DATASET}, 3 labels: better (Dice +0.") for piece in text)


def test_its_figures_are_those_of_the_table(plain):
    workspace, written = plain
    rows = read_rows(workspace.results)
    dice = rows[rows["metric"] == "Dice"].groupby(["arm", "seed", "class"])["value"].mean()
    runs = dice.groupby(["arm", "seed"]).mean().groupby("arm")
    content = json.loads(written["report.json"])
    of_dice = [entry for entry in content["means"] if (entry["metric"], entry["class"]) == ("Dice", "foreground")]
    means = {entry["arm"]: entry for entry in of_dice}
    for arm in ("nnunet", "resenc_m"):
        mean, deviation = runs.mean()[arm], runs.std()[arm]
        assert (means[arm]["mean"], means[arm]["deviation"]) == pytest.approx((mean, deviation))
        for name in ("report.html", "report.md", "table.tex"):
            assert f"{mean:.3f} ({deviation:.3f})" in written[name]
    verdict = content["verdicts"][0]
    assert verdict["estimate"]["mean"] == pytest.approx(runs.mean()["resenc_m"] - runs.mean()["nnunet"])
    assert verdict["sentence"] in written["report.md"]


def test_latex_rows_have_as_many_cells_as_its_head(plain):
    text = plain[1]["table.tex"]
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert DATASET.replace("_", r"\_") in text
    rows = re.findall(r"^.*&.*\\\\$", text, re.MULTILINE)
    assert len(rows) == 3
    assert len({row.count("&") for row in rows}) == 1


def test_transductive_is_printed_in_every_table(special, plain, tmp_path):
    # Each section with a table has the note before it.
    sections = [part for part in special.split("<section>") if "<table>" in part and "<h2>Experiment" not in part]
    assert len(sections) == 7
    assert all(TRANSDUCTIVE in part for part in sections)
    experiment, _, analysis = analysed(tmp_path, experiment=make_experiment(transductive=True))
    # Verdicts, means, four metrics, empty classes, cost.
    assert markdown_report(experiment, analysis, COMMAND).count(TRANSDUCTIVE) == 8
    assert TRANSDUCTIVE in latex_table(experiment, analysis)
    assert not any(TRANSDUCTIVE in text for text in plain[1].values())


def test_warnings_are_on_the_page(special):
    assert "Not compared" in special
    assert f"finish with: swinfuse_benchmark made.json --cell {LATE}" in special
    assert "No test case has these classes" in special
    assert f"core in {DATASET}" in special
    assert "Empty classes" in special
    assert "nnunet, resenc_m was pretrained on was not checked" in special


def test_json_is_strict_also_with_one_run(tmp_path):
    experiment, _, analysis = analysed(tmp_path, experiment=make_experiment(seeds=[0]))
    content = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert content["verdicts"][0]["interval"] == [None, None]
    assert "unknown: one run" in markdown_report(experiment, analysis, COMMAND)


def test_a_refused_comparison_has_no_verdict(tmp_path):
    late = f"nnunet__{DATASET}__3_labels__seed_2__fold_0"
    experiment, _, analysis = analysed(tmp_path, skip=(late,))
    assert analysis.to_dict()["verdicts"] == []
    assert f"finish with: swinfuse_benchmark made.json --cell {late}" in markdown_report(experiment, analysis, COMMAND)


def test_empty_classes_are_counted(tmp_path):
    def empty(cell):
        return {(f"case_{i:03d}", "core"): "invented" if cell.arm == "nnunet" else "both" for i in range(30)}

    _, _, analysis = analysed(tmp_path, lambda cell, cases: np.full(len(cases), 0.8), empty=empty)
    counts = {(entry["arm"], entry["class"]): entry for entry in analysis.to_dict()["empty"]}
    assert counts["nnunet", "core"]["invented"] == 30


def test_costs(tmp_path):
    encoder = {"sha256": "e", "saw": [], "recipe": "swinfuse", "seconds": 77.0}
    trainers = {"nnunet": "nnUNetTrainerSwinFUSEScratch", "resenc_m": "nnUNetTrainerSwinFUSE"}

    def changes(cell):
        return {"encoder": encoder, "arm": {"trainer": trainers[cell.arm]}}

    _, _, analysis = analysed(tmp_path, changes=changes)
    rows = {row["arm"]: row for row in analysis.to_dict()["cost"]}
    assert rows["resenc_m"]["parameters, million"] == 2.0
    assert rows["resenc_m"]["GFLOP per patch"] == 3.0
    assert rows["resenc_m"]["peak memory, GiB"] == 1.0
    assert rows["resenc_m"]["pretraining, s"] == 77.0
    # The twin from scratch does not pay for weights it does not use.
    assert rows["nnunet"]["pretraining, s"] is None
