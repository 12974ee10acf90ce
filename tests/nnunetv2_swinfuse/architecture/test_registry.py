import json

import pytest
import torch
from torch import nn

from nnunetv2_swinfuse.architecture.registry import (
    NETWORKS,
    build_backbone,
    build_network,
    planned_backbone,
    planned_settings,
    plans_architecture,
)

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


@pytest.fixture(params=["swin", "resenc"])
def chosen(request, settings, residual_settings):
    return settings if request.param == "swin" else residual_settings


def test_plans_name_the_network_and_keep_its_settings(chosen):
    architecture = json.loads(json.dumps(plans_architecture(STRIDES, chosen)))
    assert planned_backbone(architecture) == chosen.backbone
    assert planned_settings(architecture) == chosen
    network = build_network(architecture, 1, 3)
    assert type(network) is NETWORKS[chosen.backbone]
    assert network.settings == chosen


def test_the_backbone_is_that_of_the_network(chosen):
    network = build_network(plans_architecture(STRIDES, chosen), 1, 3)
    stem, encoder = build_backbone(chosen, chosen.topology(STRIDES))
    built = nn.ModuleDict({"patch_embed": stem, "encoder": encoder}).state_dict()
    inside = {k: v for k, v in network.state_dict().items() if k.startswith(("patch_embed.", "encoder."))}
    assert {name: tensor.shape for name, tensor in built.items()} == {k: v.shape for k, v in inside.items()}
    assert stem(torch.zeros(1, 1, 16, 16, 16)).shape[1] == chosen.feature_size


def test_other_networks_are_named():
    architecture = {"network_class_name": "somebody.elses.UNet", "arch_kwargs": {}}
    assert planned_backbone(architecture) is None
    with pytest.raises(ValueError, match=r"somebody\.elses\.UNet is none of .*SwinFUSEUNet"):
        build_network(architecture, 1, 2)
