import json
import math
from dataclasses import replace

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import NETWORK_NAMES, planned_settings
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.planning.planner import PlanningError
from nnunetv2_swinfuse.training.plans import plan_training

from ..training.workshop import SETTINGS
from .folders import INTENSITIES

pytestmark = pytest.mark.slow

ISOTROPIC = ((120, 160, 150), (1.0, 1.0, 1.0))
ANISOTROPIC = ((20, 320, 300), (5.0, 0.8, 0.8))
LARGE = ((400, 512, 512), (1.0, 0.8, 0.8))
SMALL_TARGETS = {"encoder": Encoder({}, SETTINGS, ())}


def block_of(plans, configuration="3d_fullres"):
    return plans["configurations"][configuration]


def voxels(block):
    return math.prod(block["patch_size"])


def test_the_plan_fits_the_memory_target_and_uses_it(folders):
    name = folders.fingerprint(*ISOTROPIC)
    sizes = []
    for target in (4, 8, 24):
        block = block_of(folders.plan(name, target))
        estimate = block["swinfuse"]["planned"]["estimated_memory_in_gb"]
        assert 0.7 * target <= estimate <= target
        sizes.append((voxels(block), voxels(block) * block["batch_size"]))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_small_target_shrinks_patch_and_batch(folders):
    name = folders.fingerprint((40, 56, 40), (1.0, 1.0, 1.0))
    roomy = block_of(folders.plan(name, 2))
    tight = block_of(folders.plan(name, 0.5))
    assert roomy["patch_size"] == [40, 56, 40]
    assert roomy["batch_size"] > tight["batch_size"] >= 2
    tiny = block_of(folders.plan(name, 0.1, encoder=Encoder({}, SETTINGS, ())))
    assert tiny["swinfuse"]["planned"]["estimated_memory_in_gb"] <= 0.1


def test_the_batch_never_covers_more_than_nnunet_allows(folders):
    name = folders.fingerprint((40, 56, 40), (1.0, 1.0, 1.0), cases=60)
    assert block_of(folders.plan(name, 24))["batch_size"] == round(0.05 * 60)


def test_sizes_are_the_encoders_and_the_file_is_named_only_when_asked(folders):
    name = folders.fingerprint(*ISOTROPIC)
    encoder = Encoder({}, SETTINGS, (), path="/kept/encoder.pth")
    block = block_of(folders.plan(name, 1, encoder=encoder, name_encoder=True))
    arch = block["architecture"]
    assert arch["network_class_name"] == NETWORK_NAMES["swin"]
    assert planned_settings(arch) == SETTINGS
    assert block["swinfuse"]["encoder"] == "/kept/encoder.pth"
    assert "encoder" not in block_of(folders.plan(name, 1, encoder=encoder))["swinfuse"]
    assert planned_settings(block_of(folders.plan(name, 1))["architecture"]) == EncoderSettings()


def test_the_network_is_as_wide_as_the_decoder_that_was_pretrained_with_its_encoder(folders):
    decoder = {"stem.convs.0.conv.weight": torch.zeros(3, 1, 3, 3, 3)}
    name = folders.fingerprint(*ISOTROPIC)
    whole = Encoder({}, SETTINGS, (), path="/kept/encoder.pth", decoder_weights=decoder)
    widths = [
        block_of(folders.plan(name, 1, encoder=encoder))["architecture"]["arch_kwargs"]["stem_features"]
        for encoder in (whole, replace(whole, decoder_weights={}))
    ]
    assert widths == [3, 16]


@pytest.mark.parametrize("dataset", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
def test_the_trainer_leaves_the_planned_network_as_it_is(folders, tmp_path, dataset):
    name = folders.fingerprint(*dataset)
    plans = folders.plan(name, 2, **SMALL_TARGETS)
    before = json.loads(json.dumps(block_of(plans)["architecture"]))
    plan_training(plans, "3d_fullres", tmp_path, pretrained=False)
    assert block_of(plans)["architecture"] == before
    assert block_of(plans)["swinfuse"]["planned"]["gpu_memory_target_in_gb"] == 2
    SwinFUSEUNet(1, 2, True, **before["arch_kwargs"])


def test_thick_slices_are_halved_in_plane_first(folders):
    block = block_of(folders.plan(folders.fingerprint(*ANISOTROPIC), 8))
    kwargs = block["architecture"]["arch_kwargs"]
    assert kwargs["strides"][:2] == [[1, 1, 1], [1, 2, 2]]
    assert kwargs["kernel_sizes"][0] == [1, 3, 3]
    assert block["patch_size"][0] < block["patch_size"][1]


def test_2d_is_planned_as_nnunet_plans_it(folders):
    name = folders.fingerprint(*ISOTROPIC)
    ours = block_of(folders.plan(name, 8), "2d")
    ExperimentPlanner(name).plan_experiment()
    assert ours == block_of(folders.plans(name, "nnUNetPlans"), "2d")
    assert "PlainConvUNet" in ours["architecture"]["network_class_name"]


def test_a_large_volume_gets_a_cascade_of_the_same_network(folders, tmp_path):
    name = folders.fingerprint(*LARGE)
    plans = folders.plan(name, 4, **SMALL_TARGETS)
    low, full = block_of(plans, "3d_lowres"), block_of(plans)
    assert low["next_stage"] == "3d_cascade_fullres"
    assert block_of(plans, "3d_cascade_fullres") == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert math.prod(low["spacing"]) > math.prod(full["spacing"])
    for block in (low, full):
        assert block["architecture"]["arch_kwargs"]["feature_size"] == SETTINGS.feature_size
        assert block["swinfuse"]["planned"]["estimated_memory_in_gb"] <= 4
    before = full["architecture"]
    plan_training(plans, "3d_cascade_fullres", tmp_path, pretrained=False)
    assert block_of(plans, "3d_cascade_fullres")["architecture"] == before


def test_planning_again_drops_an_old_cascade_and_keeps_a_users_configuration(folders):
    name = folders.fingerprint(*LARGE)
    plans = folders.plan(name, 4, **SMALL_TARGETS)
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    file = folders.preprocessed / name / "nnUNetSwinFUSEPlans.json"
    file.write_text(json.dumps(plans))
    # Spacing so coarse that one patch sees a quarter of the image.
    again = folders.plan(name, 4, overwrite_target_spacing=[6.0, 6.0, 6.0], **SMALL_TARGETS)
    assert list(again["configurations"]) == ["2d", "3d_fullres", "mine"]
    assert again["configurations"]["mine"]["batch_size"] == 3


def test_normalisation_as_pretrained_is_the_collections_for_ct_and_its_mask_for_mr(folders):
    name = folders.fingerprint(*ISOTROPIC, channels=("CT", "MR"))
    recorded = {"ct": {**INTENSITIES, "mean": 40.0}, "mr_use_mask": True}
    encoder = Encoder({}, SETTINGS, (), details={"normalisation": recorded}, path="e.pth")
    plans = folders.plan(name, 2, encoder=encoder, normalisation_as_pretrained=True)
    properties = plans["foreground_intensity_properties_per_channel"]
    assert properties["0"]["mean"] == 40.0
    assert properties["1"] == INTENSITIES
    assert block_of(plans)["use_mask_for_norm"] == [False, True]
    assert block_of(plans)["data_identifier"] == "nnUNetSwinFUSEPlans_3d_fullres"
    with pytest.raises(PlanningError, match=r"e.pth: it is not recorded how its volumes were normalised"):
        folders.plan(name, 2, encoder=Encoder({}, SETTINGS, (), path="e.pth"), normalisation_as_pretrained=True)


def test_ct_cannot_be_normalised_as_a_collection_without_ct(folders):
    encoder = Encoder({}, SETTINGS, (), details={"normalisation": {"ct": {}, "mr_use_mask": False}})
    with pytest.raises(PlanningError, match=r"channel 0 \(CT\) is CT; the collection"):
        folders.plan(
            folders.fingerprint(*ISOTROPIC, channels=("CT",)), encoder=encoder, normalisation_as_pretrained=True
        )
    mr = folders.fingerprint(*ISOTROPIC, number=902)
    folders.plan(mr, 2, encoder=encoder, normalisation_as_pretrained=True)


def test_a_target_too_small_for_the_network_is_refused(folders):
    name = folders.fingerprint(*ISOTROPIC)
    with pytest.raises(PlanningError, match=r"memory target of 0.02 GB is too small for feature size 48"):
        folders.plan(name, 0.02)


def test_missing_files_are_named_with_the_command_that_makes_them(folders):
    name = folders.fingerprint(*ISOTROPIC)
    (folders.preprocessed / name / "dataset_fingerprint.json").unlink()
    with pytest.raises(PlanningError, match=r"dataset_fingerprint.json: no such file.*swinfuse_plan_and_preprocess -d"):
        folders.plan(name)
    (folders.raw / name / "dataset.json").unlink()
    with pytest.raises(PlanningError, match=r"dataset.json: no such file"):
        folders.plan(name)
