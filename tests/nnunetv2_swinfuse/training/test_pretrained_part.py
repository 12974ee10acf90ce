import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import Encoder
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.architecture.transfer import TransferReport
from nnunetv2_swinfuse.architecture.unet import SwinFUSEUNet
from nnunetv2_swinfuse.training.pretrained_part import (
    evaluate_frozen,
    little_used_warning,
    pretrained_layers,
    pretrained_stages,
    set_frozen,
)

from .workshop import SETTINGS

STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 3]


@pytest.fixture
def network():
    return SwinFUSEUNet(1, 2, **plans_architecture(STRIDES, SETTINGS, drop_path_rate=0.5)["arch_kwargs"])


@pytest.mark.parametrize(("own", "given", "common"), [(3, 3, 2), (2, 3, 1), (3, 2, 1), (3, 5, 2)])
def test_stages_are_pretrained_where_both_have_them(own, given, common):
    encoder = Encoder({}, SETTINGS, tuple([(1, 1, 1)] + [(2, 2, 2)] * given))
    assert pretrained_stages(plans_architecture(STRIDES[: own + 1], SETTINGS), encoder) == common


def test_layers_are_counted_from_the_image(network):
    layers = pretrained_layers(network, 2)
    assert layers["patch_embed.proj.weight"] == 0
    assert {layers[name] for name in layers if "domain_invariance" in name} == {1}
    assert layers["encoder.stages.1.merging.reduction.weight"] == 3
    assert not [name for name in layers if not name.startswith(("patch_embed.", "encoder."))]
    fewer = pretrained_layers(network, 1)
    assert {name for name in layers if name not in fewer} == {n for n in layers if n.startswith("encoder.stages.1.")}


def test_frozen_features_are_fixed_and_everything_else_trains(network):
    layers = pretrained_layers(network, 2)
    assert set_frozen(network, layers, True)
    assert not set_frozen(network, layers, True)
    network.train()
    evaluate_frozen(network)
    image = torch.randn(2, 1, 16, 16, 16)
    features = [network.encoder(network.patch_embed(image))[-1] for _ in range(2)]
    assert torch.equal(*features)
    network(image).sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    # Without deep supervision only the finest head is used.
    assert idle == set(layers) | {f"decoder.seg_layers.0.{kind}" for kind in ("weight", "bias")} | {
        f"decoder.seg_layers.1.{kind}" for kind in ("weight", "bias")
    }
    assert network.decoder.training
    assert set_frozen(network, layers, False)
    network.train()
    features = [network.encoder(network.patch_embed(image))[-1] for _ in range(20)]
    assert not all(torch.equal(features[0], other) for other in features[1:])


def test_stages_that_pretraining_did_not_give_are_trained(network):
    set_frozen(network, pretrained_layers(network, 1), True)
    network.train()
    evaluate_frozen(network)
    assert not network.encoder.stages[0].training
    assert network.encoder.stages[1].training


def test_there_is_no_freezing_of_nothing(network):
    with pytest.raises(ValueError, match="nothing to freeze"):
        set_frozen(network, {}, True)


@pytest.mark.parametrize(
    ("plans", "words"), [("nnUNetPlans", "--for 501 takes"), ("myPlans", "--for 501 --for_plans myPlans takes")]
)
def test_the_warning_names_the_plans(plans, words):
    report = TransferReport(encoder_parameters=8_220_000, used_parameters=666_000)
    warning = little_used_warning(report, {"dataset_name": "Dataset501_Hippocampus", "plans_name": plans})
    assert "only 8.1 % of the encoder's parameters are used" in warning
    assert f"swinfuse_pretrain -d COLLECTION {words}" in warning
