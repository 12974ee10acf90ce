"""plans.json of trained models: read, restored after a kill, refused."""

import json

import pytest

from nnunetv2_swinfuse.training.model_plans import trained_plans
from nnunetv2_swinfuse.training.planned_network import PlansError

pytestmark = pytest.mark.slow


def test_a_model_without_trained_folds_has_none(tmp_path):
    (tmp_path / "plans.json").write_text("{")
    assert trained_plans(tmp_path, "3d_fullres") is None


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_plans_that_a_kill_cut_short_are_restored_from_a_checkpoint(copied, capsys, length):
    path = copied.model() / "plans.json"
    whole = json.loads(path.read_text())
    expected = trained_plans(copied.model(), "3d_fullres")
    path.write_bytes(path.read_bytes()[:length])
    assert trained_plans(copied.model(), "3d_fullres") == expected
    assert json.loads(path.read_text()) == whole
    assert f"{path} was damaged and has been restored from {copied.model() / 'fold_0'}" in capsys.readouterr().out


def test_without_a_readable_checkpoint_they_are_refused(copied):
    path = copied.model() / "plans.json"
    path.write_text("{")
    for checkpoint in copied.model().rglob("*.pth"):
        checkpoint.write_bytes(b"")
    with pytest.raises(PlansError, match=r"plans.json: its folds .fold_0. were trained with it, but it is damaged"):
        trained_plans(copied.model(), "3d_fullres")


def test_plans_of_another_trainer_are_refused_and_left_alone(copied):
    path = copied.model() / "plans.json"
    plans = json.loads(path.read_text())
    del plans["configurations"]["3d_fullres"]["swinfuse"]
    path.write_text(json.dumps(plans))
    with pytest.raises(PlansError, match="not a SwinFUSE plan"):
        trained_plans(copied.model(), "3d_fullres")
    assert json.loads(path.read_text()) == plans
