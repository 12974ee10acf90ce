from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, load_encoder, save_encoder
from nnunetv2_swinfuse.architecture.residual_transfer import adapt_kernel
from nnunetv2_swinfuse.architecture.transfer import TransferError, transfer_encoder

from .networks import HALVINGS, build, encoder_of, features, fresh

STEM = "patch_embed.convs.0.conv.weight"


@pytest.fixture
def encoder(residual_settings):
    return encoder_of(build(HALVINGS, residual_settings))


def test_same_plan_gives_the_pretrained_features_through_a_file(encoder, residual_settings, tmp_path):
    save_encoder(encoder, tmp_path / "encoder.pth")
    read = load_encoder(tmp_path / "encoder.pth")
    assert read.settings == residual_settings
    network = fresh(HALVINGS, residual_settings)
    report = transfer_encoder(network, read)
    own = {name for name, _ in network.named_parameters() if name.startswith(("patch_embed.", "encoder."))}
    assert set(report.matched) == own
    assert not report.adapted
    assert not report.unused
    assert all(name.startswith("decoder.") for name in report.fresh)
    image = torch.randn(1, 1, 16, 16, 16)
    pretrained = features(build(HALVINGS, residual_settings), image)
    assert all(torch.equal(a, b) for a, b in zip(features(network, image), pretrained, strict=True))


def test_an_image_repeated_in_every_channel_gives_the_pretrained_features(encoder, residual_settings):
    network = fresh(HALVINGS, residual_settings, 3)
    report = transfer_encoder(network, encoder)
    assert report.adapted == {STEM: "1 to 3 image channels"}
    image = torch.randn(1, 1, 16, 16, 16)
    result = features(network, image.expand(-1, 3, -1, -1, -1))
    for ours, theirs in zip(result, features(build(HALVINGS, residual_settings), image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_one_hot_channels_of_a_cascade_start_silent(encoder, residual_settings):
    network = fresh(HALVINGS, residual_settings, 4)
    transfer_encoder(network, encoder, image_channels=1)
    weight = network.state_dict()[STEM]
    assert torch.equal(weight[:, :1], encoder.weights[STEM])
    assert not weight[:, 1:].any()


def test_a_plan_of_slices_keeps_the_response_to_what_is_constant_along_the_axis(encoder, residual_settings):
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    network = fresh(strides, residual_settings, kernel_sizes=[[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]])
    report = transfer_encoder(network, encoder)
    assert report.adapted[STEM] == "kernel (3, 3, 3) to (1, 3, 3)"
    first = "encoder.stages.1.blocks.0.conv1.conv.weight"
    change = "kernel (3, 3, 3) to (1, 3, 3), stride (2, 2, 2) to (1, 2, 2), weights as they are"
    assert report.adapted[first] == change
    assert not [name for name in report.adapted if ".stages.2." in name or "skip" in name]
    assert f"adapted {first}: {change}" in str(report)
    # Away from the border, where the wider kernel sees zeros.
    x = torch.randn(1, 8, 1, 6, 6).expand(-1, -1, 5, -1, -1)
    ours = network.encoder.stages[0].blocks[0].conv2.conv(x)
    theirs = build(HALVINGS, residual_settings).encoder.stages[0].blocks[0].conv2.conv(x)
    torch.testing.assert_close(ours[:, :, 2], theirs[:, :, 2], atol=1e-5, rtol=1e-5)


def test_a_wider_kernel_keeps_every_response(residual_settings):
    x = torch.randn(1, 2, 5, 6, 6)
    narrow = torch.randn(4, 2, 1, 3, 3)
    wide, change = adapt_kernel(narrow, (3, 3, 3))
    assert change == "kernel (1, 3, 3) to (3, 3, 3)"
    torch.testing.assert_close(F.conv3d(x, wide, padding=1), F.conv3d(x, narrow, padding=(0, 1, 1)))


def test_fewer_and_more_stages(encoder, residual_settings):
    report = transfer_encoder(fresh(HALVINGS[:3], residual_settings), encoder)
    assert report.unused
    assert all(name.startswith("encoder.stages.3.") for name in report.unused)
    assert len(report.unused) == len(
        [n for n, _ in build(HALVINGS, residual_settings).encoder.stages[3].named_parameters()]
    )
    deep = fresh([*HALVINGS, [2, 2, 2]], residual_settings)
    report = transfer_encoder(deep, encoder)
    assert {name for name in report.fresh if name.startswith("encoder.")} == {
        name for name, _ in deep.named_parameters() if name.startswith("encoder.stages.4.")
    }


def test_a_shortcut_loses_its_pooling_with_its_stride(encoder, residual_settings):
    network = fresh([[1, 1, 1], [2, 2, 2], [1, 1, 1], [2, 2, 2]], residual_settings)
    transfer_encoder(network, encoder)
    weight = network.state_dict()["encoder.stages.2.blocks.0.skip.0.conv.weight"]
    assert torch.equal(weight, encoder.weights["encoder.stages.2.blocks.0.skip.1.conv.weight"])


@pytest.mark.parametrize("lost", ["encoder.stages.0.blocks.0.conv2.norm.weight", STEM])
def test_a_tensor_that_is_not_covered_is_an_error_and_nothing_is_changed(encoder, residual_settings, lost):
    weights = {name: weight for name, weight in encoder.weights.items() if name != lost}
    network = fresh(HALVINGS, residual_settings)
    with pytest.raises(TransferError, match=lost):
        transfer_encoder(network, Encoder(weights, residual_settings, encoder.strides))
    assert all((tensor == 0.123).all() for tensor in network.state_dict().values())


def test_other_sizes_and_backbones_are_listed(encoder, settings, residual_settings):
    with pytest.raises(TransferError, match=r"network: backbone is resenc in the encoder, swin in the network\. "):
        transfer_encoder(fresh(HALVINGS, settings), encoder)
    other = replace(residual_settings, feature_size=16, depths=(1, 2, 3))
    with pytest.raises(TransferError, match=r"feature_size is 8 in the encoder, 16 .* depths is \[1, 2\] in the"):
        transfer_encoder(fresh(HALVINGS, other), encoder)


def test_depths_of_stages_that_were_not_pretrained_may_differ(encoder, residual_settings):
    deeper = replace(residual_settings, depths=(1, 2, 2, 2, 3))
    report = transfer_encoder(fresh([*HALVINGS, [1, 2, 2]], deeper), encoder)
    assert {name.split(".")[2] for name in report.fresh if name.startswith("encoder.stages.")} == {"4"}
