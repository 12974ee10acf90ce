import json
import re

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.report import write_report
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.benchmark.tables import TRANSDUCTIVE
from tests.pretraining.monitoring.test_page import Document

from .tables import DATASET, fill, make_experiment, noisy, read_json

COMMAND = ["swinfuse_benchmark", "made.json"]


def report(tmp_path, values=None, experiment=None, **options):
    experiment = experiment or make_experiment()
    workspace, cells = fill(experiment, tmp_path, values or (lambda cell, cases: noisy(cell, cases, 0.1)), **options)
    paths = write_report(experiment, workspace, cells, COMMAND)
    return dict(zip(("html", "markdown", "latex", "json"), paths, strict=True)), workspace


def test_verdicts_come_first_and_the_page_asks_for_nothing_outside(tmp_path):
    paths, _ = report(tmp_path)
    html = paths["html"].read_text()
    document = Document(html)
    assert {"script", "link", "iframe"}.isdisjoint(document.tags)
    sources = [value for name, value in document.attributes if name in ("src", "href")]
    # Matrix, boxes, ranks, curves; no case, because there is no image here.
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    text = [piece for piece in document.text if piece.strip()]
    assert text.index("Verdicts") < text.index("Means")
    assert any(piece.startswith(f"resenc_m against nnunet on {DATASET}, 3 labels: better (Dice +0.") for piece in text)


def test_its_figures_are_those_of_the_table(tmp_path):
    paths, workspace = report(tmp_path)
    rows = read_rows(workspace.results)
    dice = (
        rows[rows["metric"] == "Dice"].groupby(["arm", "seed", "class"])["value"].mean().groupby(["arm", "seed"]).mean()
    )
    runs = dice.groupby("arm")
    content = read_json(paths["json"])
    means = {
        entry["arm"]: entry for entry in content["means"] if (entry["metric"], entry["class"]) == ("Dice", "foreground")
    }
    for arm in ("nnunet", "resenc_m"):
        mean, deviation = runs.mean()[arm], runs.std()[arm]
        assert (means[arm]["mean"], means[arm]["deviation"]) == pytest.approx((mean, deviation))
        written = f"{mean:.3f} ({deviation:.3f})"
        for kind in ("html", "markdown", "latex"):
            assert written in paths[kind].read_text()
    verdict = content["verdicts"][0]
    assert verdict["estimate"]["mean"] == pytest.approx(runs.mean()["resenc_m"] - runs.mean()["nnunet"])
    assert verdict["sentence"] in paths["markdown"].read_text()


def test_json_is_strict_also_with_one_run(tmp_path):
    paths, _ = report(tmp_path, experiment=make_experiment(seeds=[0]))

    def refuse(name):
        raise AssertionError(name)

    content = json.loads(paths["json"].read_text(), parse_constant=refuse)
    assert content["verdicts"][0]["interval"] == [None, None]
    assert "unknown: one run" in paths["markdown"].read_text()


def test_a_refused_comparison_is_told_in_its_place(tmp_path):
    late = f"nnunet__{DATASET}__3_labels__seed_2__fold_0"
    paths, _ = report(tmp_path, skip=(late,))
    for kind in ("html", "markdown"):
        text = paths[kind].read_text()
        assert "not compared" in text.lower()
        assert f"finish with: swinfuse_benchmark made.json --cell {late}" in text
    assert read_json(paths["json"])["verdicts"] == []


def test_transductive_is_printed_in_every_table(tmp_path):
    paths, _ = report(tmp_path, experiment=make_experiment(transductive=True))
    html = paths["html"].read_text()
    # Each section with a table has the note before it.
    sections = [part for part in html.split("<section>") if "<table>" in part and "<h2>Experiment" not in part]
    assert len(sections) == 6
    assert all(TRANSDUCTIVE in part for part in sections)
    assert paths["markdown"].read_text().count(TRANSDUCTIVE) == 8
    assert TRANSDUCTIVE in paths["latex"].read_text()
    other, _ = report(tmp_path / "other")
    assert TRANSDUCTIVE not in other["html"].read_text()


def test_empty_classes_are_counted_and_absent_ones_warned_of(tmp_path):
    def empty(cell):
        return {(f"case_{i:03d}", "core"): "invented" if cell.arm == "nnunet" else "both" for i in range(30)}

    paths, _ = report(tmp_path, lambda cell, cases: np.full(len(cases), 0.8), empty=empty)
    html = paths["html"].read_text()
    assert "No test case has these classes" in html
    assert f"core in {DATASET}" in html
    assert "Empty classes" in html
    counts = {(entry["arm"], entry["class"]): entry for entry in read_json(paths["json"])["empty"]}
    assert counts["nnunet", "core"]["invented"] == 30


def test_costs(tmp_path):
    encoder = {"sha256": "e", "saw": [], "recipe": "swinfuse", "seconds": 77.0}
    trainers = {"nnunet": "nnUNetTrainerSwinFUSEScratch", "resenc_m": "nnUNetTrainerSwinFUSE"}

    def changes(cell):
        return {"encoder": encoder, "arm": {"trainer": trainers[cell.arm]}}

    paths, _ = report(tmp_path, changes=changes)
    rows = {row["arm"]: row for row in read_json(paths["json"])["cost"]}
    assert rows["resenc_m"]["parameters, million"] == 2.0
    assert rows["resenc_m"]["GFLOP per patch"] == 3.0
    assert rows["resenc_m"]["peak memory, GiB"] == 1.0
    assert rows["resenc_m"]["pretraining, s"] == 77.0
    # The twin from scratch does not pay for weights it does not use.
    assert rows["nnunet"]["pretraining, s"] is None


def test_an_encoder_of_unknown_origin_is_told(tmp_path):
    paths, _ = report(tmp_path, changes=lambda cell: {"encoder": {"sha256": "e", "saw": None}})
    assert "was pretrained on was not checked" in paths["html"].read_text()


def test_latex_compiles_in_the_head(tmp_path):
    text = report(tmp_path)[0]["latex"].read_text()
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert DATASET.replace("_", r"\_") in text
    rows = re.findall(r"^.*&.*\\\\$", text, re.MULTILINE)
    assert len({row.count("&") for row in rows}) == 1
