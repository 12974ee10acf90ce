import json
import os
import pickle
from copy import deepcopy

import blosc2
import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE
from nnunetv2_swinfuse.planning.data_folders import is_preprocessed, newest_change, share_data_folders

from ..training.workshop import SETTINGS

pytestmark = pytest.mark.slow

SHAPE, SPACING = (60, 80, 80), (2.0, 1.0, 1.0)
LARGE = ((400, 512, 512), (1.0, 0.8, 0.8))
OURS = "nnUNetSwinFUSEPlans"


def identifiers(plans):
    return {
        name: block["data_identifier"] for name, block in plans["configurations"].items() if "data_identifier" in block
    }


@pytest.fixture
def planned(folders):
    """A dataset with plans of ours, and its folder."""
    name = folders.fingerprint(SHAPE, SPACING)
    return folders.plan(name, 1, encoder=Encoder({}, SETTINGS, ())), folders.preprocessed / name


def write_plans(folder, plans, name, **changes):
    """The same plans under another name with other blocks."""
    other = deepcopy(plans)
    other["plans_name"] = name
    for block in other["configurations"].values():
        block.update(changes)
    (folder / f"{name}.json").write_text(json.dumps(other))
    return other


def test_the_same_preprocessing_is_shared_whichever_planner_comes_first(folders):
    first, second = folders.fingerprint(SHAPE, SPACING), folders.fingerprint(SHAPE, SPACING, number=902)
    expected = {"2d": "nnUNetPlans_2d", "3d_fullres": "nnUNetPlans_3d_fullres"}
    assert identifiers(folders.plan(first, 4)) == expected
    ExperimentPlanner(second).plan_experiment()
    assert identifiers(folders.plan(second, 4)) == identifiers(folders.plans(second, "nnUNetPlans")) == expected


def test_another_spacing_gets_folders_of_its_own(folders):
    name = folders.fingerprint(SHAPE, SPACING)
    ExperimentPlanner(name).plan_experiment()
    plans = folders.plan(name, 4, overwrite_target_spacing=[2.0, 1.5, 1.5])
    assert identifiers(plans) == {"2d": f"{OURS}_2d", "3d_fullres": f"{OURS}_3d_fullres"}
    # And the reverse: stock plans that were made with another spacing.
    other = folders.fingerprint(SHAPE, SPACING, number=902)
    ExperimentPlanner(other, overwrite_target_spacing=[2.0, 1.5, 1.5]).plan_experiment()
    assert identifiers(folders.plan(other, 4))["3d_fullres"] == f"{OURS}_3d_fullres"


def test_a_cascade_is_shared_only_at_the_same_spacing(folders):
    name = folders.fingerprint(*LARGE)
    encoder = Encoder({}, SETTINGS, ())
    assert identifiers(folders.plan(name, 2, encoder=encoder))["3d_lowres"] == f"{OURS}_3d_lowres"
    again = folders.plan(name, 2, encoder=encoder, plans_name="nnUNetSwinFUSECopyPlans")
    assert identifiers(again)["3d_lowres"] == f"{OURS}_3d_lowres"
    smaller = folders.plan(name, 1, encoder=encoder, plans_name="nnUNetSwinFUSESmallPlans")
    assert identifiers(smaller)["3d_lowres"] == "nnUNetSwinFUSESmallPlans_3d_lowres"
    assert identifiers(smaller)["3d_fullres"] == "nnUNetPlans_3d_fullres"


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing": [2.0, 1.0, 1.1]},
        {"normalization_schemes": ["NoNormalization"]},
        {"use_mask_for_norm": [True]},
        {"preprocessor_name": "Another"},
        {"resampling_fn_data_kwargs": {"order": 1}},
    ],
)
def test_a_folder_that_others_fill_otherwise_is_not_shared(planned, changes):
    plans, folder = planned
    write_plans(folder, plans, "otherPlans", data_identifier="nnUNetPlans_3d_fullres", **changes)
    share_data_folders(plans, folder, as_stock=True)
    assert identifiers(plans)["3d_fullres"] == f"{OURS}_3d_fullres"


def test_other_files_and_broken_plans_do_not_disturb(planned, capsys):
    plans, folder = planned
    before = identifiers(plans)
    (folder / "splits_final.json").write_text("[]")
    (folder / "broken.json").write_text("{")
    write_plans(folder, plans, "loopPlans", inherits_from="nowhere")
    share_data_folders(plans, folder, as_stock=True)
    assert identifiers(plans) == before
    output = capsys.readouterr().out
    assert "broken.json: not looked at" in output
    assert "loopPlans.json: not looked at" in output


def test_the_temporary_plans_of_a_killed_process_do_not_count(planned):
    plans, folder = planned
    other = write_plans(folder, plans, "nnUNetPlans", spacing=[9.0, 9.0, 9.0])
    (folder / "nnUNetPlans.json").rename(folder / "nnUNetPlans.json.0a1b2c3d.tmp.json")
    before = identifiers(plans)
    share_data_folders(plans, folder, as_stock=True)
    assert identifiers(plans) == before
    write_plans(folder, other, "nnUNetPlans")
    share_data_folders(plans, folder, as_stock=True)
    assert identifiers(plans) != before


@pytest.fixture
def preprocessed(planned, tmp_path):
    """The plans, the dataset's folder and two raw cases with their preprocessed files, as nnU-Net writes them."""
    plans, folder = planned
    data = folder / plans["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir()
    cases = {}
    for case in ("a", "b"):
        files = {"images": [str(tmp_path / f"{case}_0000.nii.gz")], "label": str(tmp_path / f"{case}.nii.gz")}
        for path in (*files["images"], files["label"]):
            with open(path, "w"):
                os.utime(path, (1000, 1000))
        # Two voxels of 1 mm become one of 2 mm along z.
        for ending in ("", "_seg"):
            blosc2.asarray(np.zeros((1, 6, 8, 8), np.float32), urlpath=str(data / f"{case}{ending}.b2nd"), mode="w")
        properties = {"spacing": [1.0, 1.0, 1.0], "shape_after_cropping_and_before_resampling": (12, 8, 8)}
        (data / f"{case}.pkl").write_bytes(pickle.dumps(properties))
        cases[case] = files
    (tmp_path / DATASET_FILE).write_text("{}")
    os.utime(tmp_path / DATASET_FILE, (1000, 1000))
    return plans, folder, cases, data


def test_complete_data_are_recognised(preprocessed, tmp_path):
    plans, folder, cases, _ = preprocessed
    assert is_preprocessed(plans, "3d_fullres", folder, tmp_path, cases)
    assert newest_change(tmp_path, cases) == 1000
    os.utime(cases["b"]["label"], (1500, 1500))
    assert newest_change(tmp_path, cases) == 1500


@pytest.mark.parametrize(
    "damage",
    ["missing", "half written", "raw changed", "label changed", "dataset.json changed", "other spacing", "own"],
)
def test_incomplete_or_outdated_data_are_not_reused(preprocessed, tmp_path, damage):
    plans, folder, cases, data = preprocessed
    block = plans["configurations"]["3d_fullres"]
    if damage == "missing":
        (data / "b_seg.b2nd").unlink()
    elif damage == "half written":
        (data / "b.pkl").write_bytes((data / "b.pkl").read_bytes()[:-5])
    elif damage == "raw changed":
        os.utime(cases["b"]["images"][0])
        os.utime(data / "b.pkl", (2000, 2000))
    elif damage == "label changed":
        os.utime(cases["b"]["label"])
        os.utime(data / "b.pkl", (2000, 2000))
    elif damage == "dataset.json changed":
        # Another reader, other channels or other labels: older than one case, newer than the other.
        os.utime(data / "a.pkl", (3000, 3000))
        os.utime(tmp_path / DATASET_FILE, (2500, 2500))
        os.utime(data / "b.pkl", (2000, 2000))
    elif damage == "other spacing":
        block["spacing"] = [2.0, 1.0, 2.0]
    else:
        data.rename(folder / f"{OURS}_3d_fullres")
        block["data_identifier"] = f"{OURS}_3d_fullres"
    assert not is_preprocessed(plans, "3d_fullres", folder, tmp_path, cases)
