"""Patch merging for other strides gives the pretrained response, with numbers of the pretrained size."""

import itertools

import pytest
import torch

from nnunetv2_swinfuse.architecture.swin import PatchMerging
from nnunetv2_swinfuse.architecture.swin_transfer import adapt_merging, adapt_patch

PREFIX = "encoder.stages.0.merging."
STRIDES = list(itertools.product((1, 2), repeat=3))


def merging(channels, stride, seed=0, legacy=False):
    torch.manual_seed(seed)
    module = PatchMerging(channels, stride, legacy)
    with torch.no_grad():
        module.reduction.weight.normal_(std=0.02)
        module.norm.weight.add_(0.1 * torch.randn_like(module.norm.weight))
        module.norm.bias.add_(0.1 * torch.randn_like(module.norm.bias))
    return module


def adapted(module, stride, legacy=False):
    weights = {PREFIX + name: tensor for name, tensor in module.state_dict().items()}
    new = PatchMerging(module.reduction.out_features // 2, stride, legacy)
    weights = adapt_merging(weights, PREFIX + "norm.bias", module.stride, stride, legacy)
    new.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    return new


@pytest.mark.parametrize(("old", "new"), itertools.permutations(STRIDES, 2))
def test_maps_that_are_constant_along_changed_axes_keep_the_response(old, new):
    pretrained = merging(6, old)
    x = torch.randn(2, 4, 4, 4, 6)
    for axis in range(3):
        if old[axis] != new[axis]:
            x = x.select(1 + axis, 0).unsqueeze(1 + axis).expand(2, 4, 4, 4, 6)
    # The first output position is the same for both.
    ours, theirs = adapted(pretrained, new)(x)[:, 0, 0, 0], pretrained(x)[:, 0, 0, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("old", STRIDES[:-1])
def test_legacy_sub_grids_keep_the_response_to_maps_that_are_constant_along_changed_axes(old):
    pretrained = merging(6, old, legacy=True)
    network = adapted(pretrained, (2, 2, 2), legacy=True)
    # They are joined in other numbers than the pretrained ones, which changes the norm's statistics: without them.
    network.norm = torch.nn.Identity()
    x = torch.randn(2, 2, 2, 2, 6)
    for axis in range(3):
        if old[axis] == 1:
            x = x.select(1 + axis, 0).unsqueeze(1 + axis).expand(2, 2, 2, 2, 6)
    # Every channel with mean 0: what is added to whole rows for the norm's shift does not count.
    x = x - x.mean(-1, keepdim=True)
    first = x[:, : old[0], : old[1], : old[2]].flatten(1)
    expected = (first * pretrained.norm.weight) @ pretrained.reduction.weight.T
    torch.testing.assert_close(network(x)[:, 0, 0, 0], expected, atol=1e-5, rtol=1e-4)


def size(tensor):
    return float(tensor.detach().square().mean().sqrt())


@pytest.mark.parametrize("channels", [12, 24, 48])
@pytest.mark.parametrize("new", [(1, 2, 2), (1, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_shift_keeps_its_size(channels, new, legacy):
    # Solved for, it was up to 41 times as large with one halved axis, and wrong by 70 % with none.
    for seed in range(3):
        pretrained = merging(channels, (2, 2, 2), seed, legacy)
        folded = adapted(pretrained, new, legacy)
        assert size(folded.norm.bias) == pytest.approx(size(pretrained.norm.bias), rel=1e-4)
        assert folded.reduction.weight.abs().max() < 8 * pretrained.reduction.weight.abs().max()
        constant = pretrained.reduction(pretrained.norm.bias)
        torch.testing.assert_close(folded.reduction(folded.norm.bias), constant, atol=1e-5, rtol=1e-3)


def test_half_precision_bears_the_folded_weights():
    pretrained = merging(24, (2, 2, 2), 1)
    folded = adapted(pretrained, (1, 1, 2))
    x = torch.randn(1, 1, 1, 4, 24).expand(1, 2, 2, 4, 24)
    with torch.autocast("cpu", torch.bfloat16):
        ours = folded(x)[0, 0, 0].float()
    theirs = pretrained(x)[0, 0, 0]
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_a_merging_without_shift_keeps_none():
    module = merging(6, (2, 2, 2))
    torch.nn.init.zeros_(module.norm.bias)
    assert not adapted(module, (1, 1, 2)).norm.bias.any()


def test_patch_filters_are_summed_or_spread():
    weight = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    folded, change = adapt_patch(weight, (1, 2, 2))
    assert folded.flatten().tolist() == [4, 6, 8, 10]
    assert change == "patch (2, 2, 2) to (1, 2, 2)"
    spread, _ = adapt_patch(folded, (2, 2, 2))
    assert spread.flatten().tolist() == [2, 3, 4, 5, 2, 3, 4, 5]
    assert adapt_patch(weight, (2, 2, 2)) == (weight, "")
