import json
from dataclasses import replace

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


@pytest.mark.parametrize(("feature_size", "expected"), [(12, 16), (48, 24), (96, 48)])
def test_the_segmentation_is_read_from_enough_channels_at_full_resolution(settings, feature_size, expected):
    architecture = plans_architecture(STRIDES, replace(settings, feature_size=feature_size))
    network = build_network(architecture, 1, 5)
    assert network.stem.output_channels == expected
    assert network.decoder.seg_layers[-1].weight.shape[:2] == (5, expected)
    # Plans of earlier versions do not name the width.
    del architecture["arch_kwargs"]["stem_features"]
    assert build_network(architecture, 1, 5).stem.output_channels == feature_size // 2


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
