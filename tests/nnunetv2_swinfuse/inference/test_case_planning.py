"""Decisions about a case by its entry, its mask and its memory; the whole command: test_prediction.py."""

from types import SimpleNamespace

import pytest
import torch

from nnunetv2_swinfuse.inference import case_planning
from nnunetv2_swinfuse.inference.case_planning import announce, fits_into_memory, plan_case
from nnunetv2_swinfuse.inference.case_runner import CaseTask
from nnunetv2_swinfuse.inference.estimate import CaseEstimate
from nnunetv2_swinfuse.inference.findings import CaseFindings
from nnunetv2_swinfuse.inference.output_folder import OutputFolder
from nnunetv2_swinfuse.inference.prediction_report import case_entry

ORIGIN = {"plans.json": "a", "step_size": 0.5}
OPTIONS = SimpleNamespace(overwrite=False, prev_stage_predictions=None)
PREDICTOR = SimpleNamespace(
    configuration_manager=SimpleNamespace(previous_stage_name=None, patch_size=(8, 8, 8)),
    network=torch.nn.Conv3d(1, 1, 1),
    device=torch.device("cpu"),
)
MODEL = SimpleNamespace(predictor=PREDICTOR)


@pytest.fixture
def planned(tmp_path):
    """Plans one case with an image of given content in a folder that may hold its mask."""
    (tmp_path / "a_0000.nii.gz").write_bytes(b"image")
    findings = CaseFindings("a", (tmp_path / "a_0000.nii.gz",))

    def plan(output, origin=ORIGIN, **options):
        entry = case_entry(findings)
        options = SimpleNamespace(**{**vars(OPTIONS), **options})
        return plan_case(findings, entry, output, origin, options, MODEL), entry

    return plan


def test_a_mask_is_kept_for_the_same_image_model_and_settings_only(planned, tmp_path):
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        task, entry = planned(output)
        assert isinstance(task, CaseTask)
        output.draft("a").with_name("a.nii.gz").write_bytes(b"mask")
        record = {"origin": ORIGIN, "input_sha256": entry["input_sha256"], "volumes_ml": {"organ": 1.5}}
        output.publish("a", record)
        task, entry = planned(output)
        assert (task, entry["status"], entry["volumes_ml"]) == (None, "kept", {"organ": 1.5})
        task, entry = planned(output, {**ORIGIN, "step_size": 1.0})
        assert (task, entry["status"]) == (None, "refused")
        assert "another image, model or setting" in entry["findings"][0]["reason"]
        assert isinstance(planned(output, overwrite=True)[0], CaseTask)


def test_memory_decides_unless_accepted(monkeypatch):
    monkeypatch.setattr(case_planning, "available_memory", lambda: 100)
    for needed, accepted, fits, status in ((100, (), True, "pending"), (101, (), False, "refused"),
                                           (101, ("memory",), True, "pending")):  # fmt: skip
        entry = {"status": "pending", "findings": [], "warnings": []}
        assert fits_into_memory(CaseEstimate(1, needed, (8, 8, 8)), entry, accepted) is fits
        assert (entry["status"], entry["memory_bytes_estimated"]) == (status, needed)
        assert bool(entry["warnings"]) == bool(accepted)


def test_only_long_runs_are_timed(capsys, tmp_path):
    described = SimpleNamespace(channels=[1])
    assert announce(2, 99, MODEL, described, tmp_path) == {"cases": 2, "forward_passes": 99}
    assert announce(2, 100, MODEL, described, tmp_path)["seconds"] >= 0
    assert "2 case(s) to predict with 100 forward passes, about" in capsys.readouterr().out
