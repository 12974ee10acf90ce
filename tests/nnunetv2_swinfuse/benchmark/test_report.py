import json

import pytest

from nnunetv2_swinfuse.benchmark.report import html_report, write_report
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.benchmark.tables import TRANSDUCTIVE
from tests.pretraining.monitoring.test_page import Document

from .tables import COMMAND, DATASET, analysed, make_experiment


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


def test_transductive_is_printed_in_every_table(special, plain):
    # Each section with a table has the note before it.
    sections = [part for part in special.split("<section>") if "<table>" in part and "<h2>Experiment" not in part]
    assert len(sections) == 7
    assert all(TRANSDUCTIVE in part for part in sections)
    assert not any(TRANSDUCTIVE in text for text in plain[1].values())


def test_warnings_are_on_the_page(special):
    assert "Not compared" in special
    assert f"run: swinfuse_benchmark made.json --cell {LATE}" in special
    assert "No test case has these classes" in special
    assert f"core in {DATASET}" in special
    assert "Empty classes" in special
    assert "nnunet, resenc_m was pretrained on was not checked" in special
