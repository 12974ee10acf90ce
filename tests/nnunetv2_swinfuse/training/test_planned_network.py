import pytest

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.planned_network import check_buildable, check_encoder_fits

SETTINGS = EncoderSettings(feature_size=12, depths=(1, 1), num_heads=(2, 4), window_size=3)
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
PLANS = {"dataset_name": "Dataset007_Pancreas", "plans_name": "nnUNetSwinFUSEPlans"}


def test_plans_that_can_be_built_give_the_sizes_of_the_network():
    assert check_buildable(plans_architecture(STRIDES, SETTINGS), "3d_fullres") == SETTINGS


@pytest.mark.parametrize(
    ("changes", "words"), [({"num_heads": [5, 4]}, r"num_heads\[0\] is 5"), ({"colour": 3}, "colour")]
)
def test_edited_plans_name_configuration_and_field(changes, words):
    architecture = plans_architecture(STRIDES, SETTINGS)
    architecture["arch_kwargs"] |= changes
    with pytest.raises(ValueError, match=rf"configuration 3d_fullres: .*{words}.*swinfuse_plan_and_preprocess"):
        check_buildable(architecture, "3d_fullres")


def test_an_encoder_of_other_sizes_is_refused_with_the_command_that_plans_for_it():
    other = EncoderSettings(feature_size=24, depths=(1, 1), num_heads=(2, 4), window_size=3)
    encoder = Encoder({}, other, tuple(map(tuple, STRIDES)), source="/other.pth")
    with pytest.raises(EncoderChoiceError, match=r"feature_size") as caught:
        check_encoder_fits(SETTINGS, encoder, PLANS, {"gpu_memory_target_in_gb": 8.0})
    assert "swinfuse_plan_and_preprocess -d 7 -pretrained" in str(caught.value)
    assert "-overwrite_plans_name nnUNetSwinFUSEPlans -gpu_memory_target 8" in str(caught.value)


def test_an_encoder_of_the_planned_sizes_fits():
    check_encoder_fits(SETTINGS, Encoder({}, SETTINGS, tuple(map(tuple, STRIDES))), PLANS, {})
