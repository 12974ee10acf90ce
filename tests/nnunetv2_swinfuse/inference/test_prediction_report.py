"""Entries of report.json and what they say of the run; the whole report: test_prediction.py."""

import json
from pathlib import Path

from nnunetv2_swinfuse.inference.findings import CaseFindings, Finding, Severity
from nnunetv2_swinfuse.inference.prediction_report import (
    case_entry,
    case_severity,
    note_earlier_mask,
    print_summary,
    refuse_case,
    write_report,
)

WARNING = Finding("spacing", Severity.WARNING, "coarse", "Check it.")
REFUSAL = Finding("finite", Severity.REFUSED, "3 voxel(s) are NaN", "Export it again.")


def entry(*findings, status=None, warnings=()):
    content = case_entry(CaseFindings("a", (Path("a_0000.nii.gz"),), findings))
    return {**content, "status": status or content["status"], "warnings": list(warnings)}


def test_severity_of_a_case():
    assert case_severity(entry(status="predicted")) is Severity.PASSED
    assert case_severity(entry(status="kept", warnings=["empty"])) is Severity.WARNING
    assert case_severity(entry(WARNING, status="predicted")) is Severity.WARNING
    assert case_severity(entry(REFUSAL)) is Severity.REFUSED
    assert case_severity(entry(status="failed")) is Severity.REFUSED
    refused = entry()
    refuse_case(refused, "memory", "needs 9 GB", "Crop it.")
    assert case_severity(refused) is Severity.REFUSED
    assert (refused["verdict"], refused["status"]) == ("refused", "refused")
    assert refused["findings"] == [Finding("memory", Severity.REFUSED, "needs 9 GB", "Crop it.").to_dict()]


def test_every_case_without_a_mask_is_named_with_its_reason(capsys):
    failed = {**entry(status="failed"), "error": "export failed (OSError: disk)"}
    print_summary({"a": entry(REFUSAL), "b": failed, "c": entry(status="predicted", warnings=["empty"])}, Path("r"))
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "a: REFUSED, no mask: 3 voxel(s) are NaN",
        "b: FAILED, no mask: export failed (OSError: disk)",
    ]
    assert printed.out.splitlines() == ["c: empty", "1 predicted, 0 kept, 1 refused, 1 failed; see r"]


def test_a_mask_of_an_earlier_run_is_not_taken_for_this_one(tmp_path, capsys):
    (tmp_path / "a.nii.gz").write_bytes(b"mask")
    entries = {"a": entry(status="failed"), "b": entry(REFUSAL), "c": entry(status="predicted")}
    entries["a"]["error"] = "disk"
    for case, content in entries.items():
        note_earlier_mask(content, tmp_path / f"{'a' if case == 'c' else case}.nii.gz")
    assert ["earlier_mask" in content for content in entries.values()] == [True, False, False]
    print_summary(entries, Path("r"))
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["a: FAILED, no new mask: disk", "b: REFUSED, no mask: 3 voxel(s) are NaN"]
    assert printed.out.splitlines()[0] == f"a: {tmp_path / 'a.nii.gz'} of an earlier run is still there"


def test_the_report_says_whether_the_run_was_finished(tmp_path):
    for finished in (False, True):
        write_report({"cases": []}, tmp_path / "r.json", 0.0, finished)
        assert json.loads((tmp_path / "r.json").read_text())["finished"] is finished
