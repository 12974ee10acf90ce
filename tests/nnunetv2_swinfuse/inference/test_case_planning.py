"""Decisions about a case by its entry, its mask and its memory; the whole command: test_prediction.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunetv2_swinfuse.inference import case_planning
from nnunetv2_swinfuse.inference.case_planning import announce, estimate_task, fits_into_memory, plan_case, plan_cases
from nnunetv2_swinfuse.inference.case_runner import CaseTask
from nnunetv2_swinfuse.inference.estimate import CaseEstimate
from nnunetv2_swinfuse.inference.findings import CaseFindings
from nnunetv2_swinfuse.inference.output_folder import OutputFolder
from nnunetv2_swinfuse.inference.prediction_report import case_entry

from .synthetic_models import SHAPE, ct_voxels, write_image

ORIGIN = {"plans.json": "a", "step_size": 0.5}
OPTIONS = SimpleNamespace(overwrite=False, prev_stage_predictions=None, accept=())
PREDICTOR = SimpleNamespace(
    configuration_manager=SimpleNamespace(previous_stage_name=None, patch_size=(8, 8, 8)),
    network=torch.nn.Conv3d(1, 1, 1),
    device=torch.device("cpu"),
    plans_manager=SimpleNamespace(plans={"image_reader_writer": "SimpleITKIO"}),
)
MODEL = SimpleNamespace(predictor=PREDICTOR)


@pytest.fixture
def planned(tmp_path):
    """Plans one case with an image of given content in a folder that may hold its mask."""
    (tmp_path / "a_0000.nii.gz").write_bytes(b"image")
    findings = CaseFindings("a", (tmp_path / "a_0000.nii.gz",))

    def plan(output, origin=ORIGIN, model=MODEL, **options):
        entry = case_entry(findings)
        options = SimpleNamespace(**{**vars(OPTIONS), **options})
        return plan_case(findings, entry, output, origin, options, model), entry

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
        assert "another image, first-stage mask, model or setting" in entry["findings"][0]["reason"]
        assert isinstance(planned(output, overwrite=True)[0], CaseTask)


def test_missing_probabilities_are_predicted_for_an_own_mask_only(planned, tmp_path):
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        _, entry = planned(output)
        output.draft("a").with_name("a.nii.gz").write_bytes(b"mask")
        output.publish("a", {"origin": ORIGIN, "input_sha256": entry["input_sha256"]})
    with OutputFolder(tmp_path / "out", ".nii.gz", probabilities=True) as output:
        assert isinstance(planned(output)[0], CaseTask)
        task, entry = planned(output, {**ORIGIN, "plans.json": "another model"})
        assert (task, entry["status"]) == (None, "refused")
        output.mask("a").write_bytes(b"corrected by hand")
        task, entry = planned(output)
        assert (task, entry["status"]) == (None, "kept")
        assert "unknown origin, or changed since" in entry["warnings"][0]


def test_a_mask_of_another_first_stage_is_not_kept(planned, tmp_path):
    write_image(tmp_path / "a_0000.nii.gz", ct_voxels())
    second_stage = SimpleNamespace(
        configuration_manager=SimpleNamespace(previous_stage_name="3d_lowres"), dataset_json={"labels": {"organ": 1}}
    )
    cascade = {"model": SimpleNamespace(predictor=second_stage), "prev_stage_predictions": tmp_path / "first"}
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        task, entry = planned(output, **cascade)
        assert (task, entry["findings"][0]["check"]) == (None, "channels")
        first = np.zeros(SHAPE, np.uint8)
        write_image(tmp_path / "first" / "a.nii.gz", first + 2)
        task, entry = planned(output, **cascade)
        assert (task, entry["findings"][0]["check"]) == (None, "channels")
        assert "values [2.0]; the model's labels are [0, 1]" in entry["findings"][0]["reason"]
        write_image(tmp_path / "first" / "a.nii.gz", first)
        task, entry = planned(output, **cascade)
        assert task.previous == tmp_path / "first" / "a.nii.gz"
        output.draft("a").with_name("a.nii.gz").write_bytes(b"mask")
        used = {name: entry[name] for name in ("input_sha256", "previous_stage_sha256")}
        output.publish("a", {"origin": ORIGIN, **used})
        assert planned(output, **cascade)[1]["status"] == "kept"
        write_image(tmp_path / "first" / "a.nii.gz", first + 1)
        task, entry = planned(output, **cascade)
        assert (task, entry["status"], entry["findings"][0]["check"]) == (None, "refused", "output")


def test_an_old_mask_of_a_case_that_is_not_predicted_is_named(tmp_path, monkeypatch):
    """Also with --overwrite: the mask is replaced only by another one."""
    monkeypatch.setattr(case_planning, "estimate_case", lambda *_: CaseEstimate(3, 101, (8, 8, 8)))
    monkeypatch.setattr(case_planning, "available_memory", lambda: 100)
    checked = [CaseFindings("a", (write_image(tmp_path / "a_0000.nii.gz", ct_voxels()),))]
    entries = {"a": case_entry(checked[0])}
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        output.mask("a").write_bytes(b"mask of an earlier image")
        options = SimpleNamespace(**{**vars(OPTIONS), "overwrite": True})
        assert plan_cases(checked, entries, output, ORIGIN, options, MODEL) == ([], 0)
    assert (entries["a"]["status"], entries["a"]["earlier_mask"]) == ("refused", str(output.mask("a")))
    assert "of an earlier run is still there" in entries["a"]["warnings"][0]


def test_a_case_that_cannot_be_planned_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(case_planning, "estimate_case", lambda *_: CaseEstimate(3, 0, (8, 8, 8)))
    checked = []
    for name, voxels in (("a", ct_voxels()), ("b", ct_voxels()[:1]), ("d", ct_voxels())):
        checked.append(CaseFindings(name, (write_image(tmp_path / f"{name}_0000.nii.gz", voxels),)))
    checked.insert(2, CaseFindings("c", (tmp_path / "gone_0000.nii.gz",)))
    entries = {result.case: case_entry(result) for result in checked}
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        tasks, passes = plan_cases(checked, entries, output, ORIGIN, OPTIONS, MODEL)
    assert ([task.case for task in tasks], passes) == (["a", "d"], 6)
    assert [entry["status"] for entry in entries.values()] == ["pending", "refused", "refused", "pending"]
    assert "at least 2 voxels" in entries["b"]["findings"][0]["reason"]
    assert "gone_0000.nii.gz" in entries["c"]["findings"][0]["reason"]


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIOWithReorient])
@pytest.mark.parametrize("code", ["LPS", "ASR", "SPL"])
def test_the_estimate_is_for_the_axes_of_the_reader(tmp_path, monkeypatch, reader, code):
    monkeypatch.setattr(case_planning, "estimate_case", lambda *given: given[:2])
    image = write_image(tmp_path / "a_0000.nii.gz", ct_voxels(), orientation=code)
    plans = SimpleNamespace(plans={"image_reader_writer": reader.__name__})
    model = SimpleNamespace(predictor=SimpleNamespace(plans_manager=plans))
    size, spacing = estimate_task(CaseTask("a", (image,), tmp_path / "draft"), model)
    voxels, properties = reader().read_images([str(image)])
    assert tuple(size) == voxels.shape[1:]
    assert spacing == pytest.approx(properties["spacing"])


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


def test_a_full_gpu_costs_the_estimate_of_the_time_only(capsys, monkeypatch, tmp_path):
    def fails(error):
        def timed(predictor, channels):
            raise error

        monkeypatch.setattr(case_planning, "seconds_per_pass", timed)
        return announce(2, 100, MODEL, SimpleNamespace(channels=[1]), tmp_path)

    estimate = fails(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))
    assert estimate == {"cases": 2, "forward_passes": 100}
    assert "100 forward passes (how long it takes is not known" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fails(RuntimeError("CUDA error: an illegal memory access was encountered"))
