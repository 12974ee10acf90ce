"""An encoder file against nnssl's own definition of its adaptation plan.

The fields and types below are those of the dataclasses AdaptationPlan and ArchitecturePlans in nnssl's
`adaptation_planning/adaptation_plan.py`, and of Plan and ConfigurationPlan in its
`experiment_planning/experiment_planners/plan.py`; a reader of nnssl passes all of them to these by name.
"""

import json
from types import NoneType

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from nnunetv2_swinfuse.architecture.registry import build_network
from pretraining.checkpoint import export_encoder
from pretraining.model import PretrainingModel

from .synthetic import RESENC, tiny

ADAPTATION_PLAN = {
    "architecture_plans": dict, "pretrain_plan": dict, "pretrain_num_input_channels": int,
    "recommended_downstream_patchsize": list, "key_to_encoder": str, "key_to_stem": str, "keys_to_in_proj": list,
    "key_to_lpe": (str, NoneType),
}  # fmt: skip
ARCHITECTURE_PLANS = {
    "arch_class_name": str, "arch_kwargs": NoneType, "arch_kwargs_requiring_import": NoneType,
}  # fmt: skip
PLAN = {
    "dataset_name": str, "plans_name": str, "original_median_spacing_after_transp": list, "image_reader_writer": str,
    "transpose_forward": list, "transpose_backward": list, "configurations": dict, "experiment_planner_used": str,
}  # fmt: skip
CONFIGURATION_PLAN = {
    "data_identifier": str, "preprocessor_name": str, "spacing_style": str, "normalization_schemes": list,
    "use_mask_for_norm": list, "resampling_fn_data": str, "resampling_fn_data_kwargs": dict, "resampling_fn_mask": str,
    "resampling_fn_mask_kwargs": dict, "spacing": list, "patch_size": list,
}  # fmt: skip
SPACING_STYLES = ("onemmiso", "median", "noresample")


@pytest.fixture(scope="module", params=[{}, RESENC], ids=["swin", "resenc"])
def content(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    configuration = tiny(**request.param)
    export_encoder(
        PretrainingModel(configuration), configuration, {"name": "Synthetic", "hash": "0"}, (2.0, 1.0, 1.0), path
    )
    assert load_encoder(path).details["citations"]
    return torch.load(path, weights_only=True)


def agree(values, fields):
    assert values.keys() == fields.keys()
    for name, kind in fields.items():
        assert isinstance(values[name], kind), name


def test_the_fields_and_types_are_nnssls(content):
    plan = content["nnssl_adaptation_plan"]
    agree(plan, ADAPTATION_PLAN)
    agree(plan["architecture_plans"], ARCHITECTURE_PLANS)
    agree(plan["pretrain_plan"], PLAN)
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    agree(configuration, CONFIGURATION_PLAN)
    assert configuration["spacing_style"] in SPACING_STYLES
    assert configuration["spacing"] == [2.0, 1.0, 1.0]
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"] == [16, 16, 16]
    assert len(configuration["normalization_schemes"]) == plan["pretrain_num_input_channels"] == 1
    assert json.loads(json.dumps(plan)) == plan


def test_keys_divide_the_weights_and_load_into_the_network_they_name(content):
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    architecture = content["architecture"]
    assert plan["architecture_plans"]["arch_class_name"] == architecture["network_class_name"]
    network = build_network(architecture, 1, 2)
    covered = set()
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {name: tensor for name, tensor in weights.items() if name.startswith(key)}
        covered |= part.keys()
        # As nnU-Net's command for pretrained weights does it: the key is cut away, everything must fit.
        network.get_submodule(key).load_state_dict({n.replace(key, "").removeprefix("."): t for n, t in part.items()})
    assert covered == weights.keys()
    for name in plan["keys_to_in_proj"]:
        assert weights[f"{name}.weight"].shape[1] == plan["pretrain_num_input_channels"]


def test_citations_have_type_name_and_references(content):
    for citation in content["citations"]:
        assert isinstance(citation["type"], str)
        assert isinstance(citation["name"], str)
        assert all(isinstance(reference, str) for reference in citation["apa_citations"])
