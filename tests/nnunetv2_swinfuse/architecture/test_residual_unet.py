import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.residual_unet import ResEncFUSEUNet

from .networks import HALVINGS, build

SLICES = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
PLANS = [
    ((16, 24, 16), HALVINGS, [[3, 3, 3]] * 4),
    ((4, 32, 24), SLICES, [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]),
    ((8, 8, 8), HALVINGS[:2], None),
]


def dynamic_peer(network: ResEncFUSEUNet, strides, kernels, blocks) -> ResidualEncoderUNet:
    """dynamic-network-architectures' network, as nnU-Net's ResEnc planner asks for it, with our network's weights."""
    stages = len(strides)
    features = [min(network.settings.feature_size * 2**stage, 320) for stage in range(stages)]
    peer = ResidualEncoderUNet(
        2, stages, features, nn.Conv3d, kernels or [[3, 3, 3]] * stages, strides,
        blocks, 3, [1] * (stages - 1), True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None,
        nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    ours = network.state_dict()
    # Its decoder registers the encoder a second time.
    names = {name: name.removeprefix("decoder.") if ".encoder." in name else name for name in peer.state_dict()}
    names = {name: own.replace("encoder.stem.", "patch_embed.") for name, own in names.items()}
    assert set(names.values()) == set(ours)
    peer.load_state_dict({name: ours[own] for name, own in names.items()})
    return peer.eval()


@pytest.mark.parametrize(("patch", "strides", "kernels"), PLANS)
def test_without_the_module_it_is_nnunets_residual_encoder_unet(patch, strides, kernels, residual_settings):
    settings = replace(residual_settings, domain_invariance=None)
    network = build(strides, settings, 2, deep_supervision=True, kernel_sizes=kernels).eval()
    peer = dynamic_peer(network, strides, kernels, settings.stage_depths(len(strides)))
    image = torch.randn(2, 2, *patch)
    with torch.no_grad():
        for ours, theirs in zip(network(image), peer(image), strict=True):
            assert torch.equal(ours, theirs)
    assert network.compute_conv_feature_map_size(patch) == peer.compute_conv_feature_map_size(patch)


@pytest.mark.parametrize(("patch", "strides", "kernels"), PLANS)
def test_nnunet_rebuilds_it_from_json(patch, strides, kernels, residual_settings):
    plan = json.loads(json.dumps(plans_architecture(strides, residual_settings, kernel_sizes=kernels)))
    network = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3, deep_supervision=True
    )
    assert isinstance(network, ResEncFUSEUNet)
    assert network.settings == residual_settings
    image = torch.randn(1, 2, *patch)
    outputs = network(image)
    assert [output.shape[2:] for output in outputs] == [
        tuple(np.array(patch) // np.prod(strides[: stage + 1], 0)) for stage in range(len(strides) - 1)
    ]
    sum(output.mean() for output in outputs).backward()
    # DDP has no find_unused_parameters in nnU-Net.
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.decoder.deep_supervision = False
    assert network(image).shape == (1, 3, *patch)
    # nnU-Net's start: each block is its shortcut.
    block = network.encoder.stages[-1].blocks[-1]
    x = torch.randn(1, block.output_channels, 4, 4, 4).relu()
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("invariance", [True, False])
def test_gradients_reach_everything(invariance, residual_settings):
    settings = residual_settings if invariance else replace(residual_settings, domain_invariance=None)
    network = build(HALVINGS, settings, deep_supervision=True)
    torch.manual_seed(1)
    sum((output * torch.randn_like(output)).sum() for output in network(torch.randn(1, 1, 16, 16, 16))).backward()
    without = [name for name, p in network.named_parameters() if not p.grad.any()]
    # An instance norm takes away what its convolution's bias adds; a softmax does not see what is added to all keys.
    assert [name for name in without if not name.endswith(("conv.bias", "key.bias"))] == []


def test_the_module_follows_the_stem(residual_settings):
    network = build(HALVINGS, residual_settings).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        stem = network.patch_embed(image)
        x = network.encoder.domain_invariance(stem)
        assert not torch.allclose(x, stem)
        for stage, result in zip(network.encoder.stages, network.encoder(stem), strict=True):
            x = stage(x)
            assert torch.equal(result, x)
    assert [feature.shape[1] for feature in network.encoder(stem)] == [8, 16, 32, 64]


def test_a_single_sample_equals_the_sample_in_a_batch(residual_settings):
    network = build(HALVINGS, residual_settings).eval()
    batch = torch.randn(3, 1, 16, 24, 16)
    with torch.no_grad():
        together = network(batch)
        for index in range(3):
            single = network(batch[index : index + 1])
            torch.testing.assert_close(single, together[index : index + 1], atol=1e-4, rtol=1e-4)


def test_checkpointing_gives_the_same_gradients(residual_settings):
    image = torch.randn(1, 1, 16, 16, 16)
    gradients = []
    for checkpointing in (False, True):
        network = build(HALVINGS, residual_settings, checkpointing=checkpointing)
        network(image).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(*gradients)


def test_stochastic_depth_rises_with_depth_and_is_off_in_evaluation(residual_settings):
    network = build(HALVINGS, residual_settings, drop_path_rate=0.9)
    rates = [getattr(stage.blocks[0], "drop_path", None) for stage in network.encoder.stages]
    assert [rate and rate.drop_prob for rate in rates] == [None, *map(pytest.approx, (0.3, 0.6, 0.9))]
    image = torch.randn(1, 1, 16, 16, 16)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(image))


def test_channels_stop_at_nnunets_limit(residual_settings):
    with torch.device("meta"):
        network = build([[1, 1, 1], *[[2, 2, 2]] * 5], replace(residual_settings, feature_size=32))
    assert network.encoder.output_channels == [32, 64, 128, 256, 320, 320]


def test_what_stands_in_plans_is_checked(residual_settings):
    with pytest.raises(ValueError, match=r"'window_size'.*newer version: install the newer wheel"):
        build(HALVINGS, residual_settings, window_size=7)
    with pytest.raises(ValueError, match="kernel_sizes lists 2 stages, strides lists 4"):
        build(HALVINGS, residual_settings, kernel_sizes=[[3, 3, 3]] * 2)
    with pytest.raises(ValueError, match=r"strides\[1\] is \[3, 3, 3\]"):
        build([[1, 1, 1], [3, 3, 3]], residual_settings)
