from pathlib import Path

from nnunetv2_swinfuse.inference.findings import EXIT_CODES, CaseFindings, Finding, Severity, accept, worst

REFUSED = Finding("spacing", Severity.REFUSED, "12 mm", "Resample.", "a.nii.gz")
WARNING = Finding("field_of_view", Severity.WARNING, "small", "Look.")
CASE = CaseFindings("a", (Path("a.nii.gz"),), (WARNING, REFUSED), ("spacing",), {"modality": "PET"})


def test_the_worst_finding_decides():
    assert CASE.severity is Severity.REFUSED
    assert CaseFindings("b", ()).severity is Severity.PASSED
    assert worst([CaseFindings("b", ()), CaseFindings("c", (), (WARNING,))]) is Severity.WARNING
    assert worst([]) is Severity.PASSED
    assert [EXIT_CODES[severity] for severity in Severity] == [0, 3, 4]


def test_only_named_refusals_are_accepted():
    accepted = accept(REFUSED, ["spacing"])
    assert (accepted.severity, accepted.accepted, accepted.reason) == (Severity.WARNING, True, "12 mm")
    assert accept(REFUSED, ["size"]) is REFUSED
    assert accept(WARNING, ["field_of_view"]) is WARNING


def test_text_and_json():
    assert CASE.to_text().splitlines() == [
        "a: refused", "  warning [field_of_view]", "    small", "    Look.", "  refused [spacing]",
        "    a.nii.gz: 12 mm", "    Resample.",
    ]  # fmt: skip
    assert "[spacing, accepted by --accept]" in CaseFindings("a", (), (accept(REFUSED, ["spacing"]),)).to_text()
    content = CASE.to_dict()
    assert (content["verdict"], content["files"], content["checks_not_made"]) == (
        "refused", ["a.nii.gz"], {"modality": "PET"},
    )  # fmt: skip
    assert [finding["severity"] for finding in content["findings"]] == ["warning", "refused"]
