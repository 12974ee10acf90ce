import copy
import json
import pickle

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture

from .networks import HALVINGS, build

PATCHES = [
    ((40, 56, 40), HALVINGS),
    ((4, 64, 32), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 1]]),
    ((64, 32, 48), [[1, 1, 1], *[[2, 2, 2]] * 4]),
    ((8, 8, 8), [[1, 1, 1], [2, 2, 2]]),
    ((4, 128, 128), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "strides"), PATCHES)
@pytest.mark.parametrize("invariance", [True, False])
def test_nnunet_rebuilds_it_from_json_for_any_plan(patch, strides, invariance, settings):
    if not invariance:
        settings = EncoderSettings(**{**settings.to_dict(), "domain_invariance": None})
    plan = json.loads(json.dumps(plans_architecture(strides, settings)))
    network = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 2, 3, deep_supervision=True
    )
    outputs = network(torch.randn(1, 2, *patch))
    assert len(outputs) == len(strides) - 1
    size = list(patch)
    for output, stride in zip(outputs, strides[:-1], strict=True):
        size = [s // f for s, f in zip(size, stride, strict=True)]
        assert output.shape == (1, 3, *size)
    sum(output.mean() for output in outputs).backward()
    # All but the deepest head's upsampled branch is used: DDP has no find_unused_parameters in nnU-Net.
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.decoder.deep_supervision = False
    assert network(torch.randn(1, 2, *patch)).shape == (1, 3, *patch)
    assert network.compute_conv_feature_map_size(patch) > 0


def test_a_single_sample_equals_the_sample_in_a_batch(settings):
    network = build(HALVINGS, settings).eval()
    batch = torch.randn(3, 1, 16, 24, 16)
    with torch.no_grad():
        together = network(batch)
        for index in range(3):
            torch.testing.assert_close(network(batch[index : index + 1]), together[index : index + 1])


def test_one_checkpoint_serves_three_patch_sizes(settings, tmp_path):
    torch.save(build(HALVINGS, settings).state_dict(), tmp_path / "checkpoint.pth")
    for patch in [(16, 16, 16), (8, 32, 24), (40, 24, 16)]:
        network = build(HALVINGS, settings).eval()
        # No buffer or parameter may be missing, left over or of another shape.
        network.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True), strict=True)
        with torch.no_grad():
            assert network(torch.randn(1, 1, *patch)).shape == (1, 3, *patch)


def test_encoder_is_registered_once_and_heads_are_always_built(settings):
    names = list(build(HALVINGS, settings, deep_supervision=False).state_dict())
    assert not [name for name in names if name.startswith("decoder.encoder")]
    assert len([name for name in names if ".seg_layers." in name and name.endswith("weight")]) == 3


def test_copies_and_pickles(settings):
    network = build(HALVINGS, settings).eval()
    image = torch.randn(1, 1, 8, 8, 16)
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(copy.deepcopy(network)(image), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(network))(image), expected)


def test_checkpointing_gives_the_same_gradients(settings):
    image = torch.randn(1, 1, 16, 16, 16)
    gradients = []
    for checkpointing in (False, True):
        network = build(HALVINGS, settings, checkpointing=checkpointing)
        network(image).square().mean().backward()
        gradients.append(network.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_stochastic_depth_rises_with_depth_and_is_off_in_evaluation(settings):
    network = build(HALVINGS, settings, drop_path_rate=0.9)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in network.encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.3, 0.6, 0.9])
    image = torch.randn(1, 1, 16, 16, 16)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(image))


def test_kernels_of_another_plan_are_refused(settings):
    with pytest.raises(ValueError, match="kernel_sizes lists 2 stages, strides lists 4"):
        build(HALVINGS, settings, kernel_sizes=[[3, 3, 3]] * 2)


def test_a_model_of_a_newer_version_says_so_where_stock_nnunet_builds_it(settings):
    with pytest.raises(ValueError, match=r"'rotary'.*newer version: install the newer wheel"):
        build(HALVINGS, settings, rotary=True)


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"num_heads\[1\] is 5"):
        EncoderSettings(feature_size=12, depths=(2, 2), num_heads=(3, 5))
    with pytest.raises(ValueError, match="unknown encoder settings"):
        EncoderSettings.from_dict({"featuresize": 3})
    with pytest.raises(ValueError, match="same Swin stages"):
        EncoderSettings(depths=(2, 2), num_heads=(3,))
