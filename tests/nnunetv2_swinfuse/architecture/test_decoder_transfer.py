import pytest
import torch
from torch import nn

from nnunetv2_swinfuse.architecture.decoder_transfer import adapt_upsampling, name_at_resolution


@pytest.mark.parametrize(
    ("name", "stages", "expected"),
    [
        # Five stages have four of the decoder, 0 being the deepest; the finest stays the last.
        ("decoder.stages.3.convs.0.conv.weight", 5, "decoder.stages.3.convs.0.conv.weight"),
        ("decoder.stages.3.convs.0.conv.weight", 6, "decoder.stages.4.convs.0.conv.weight"),
        ("decoder.transpconvs.0.weight", 6, "decoder.transpconvs.1.weight"),
        ("decoder.transpconvs.1.bias", 4, "decoder.transpconvs.0.bias"),
        ("decoder.transpconvs.0.bias", 4, None),
        # Skips and stem are counted from the finest.
        ("skips.2.convs.0.norm.weight", 4, "skips.2.convs.0.norm.weight"),
        ("stem.convs.1.conv.bias", 6, "stem.convs.1.conv.bias"),
    ],
)
def test_a_stage_keeps_its_resolution_in_a_network_of_another_depth(name, stages, expected):
    assert name_at_resolution(name, 5, stages) == expected


@pytest.mark.parametrize(("old", "new"), [((2, 2, 2), (1, 2, 2)), ((1, 2, 2), (2, 2, 1)), ((2, 2, 2), (2, 2, 2))])
def test_upsampling_with_another_stride_keeps_its_mean_along_the_axes(old, new):
    torch.manual_seed(0)
    first = nn.ConvTranspose3d(3, 4, old, old)
    second = nn.ConvTranspose3d(3, 4, new, new)
    weight, change = adapt_upsampling(first.weight.detach(), new)
    assert (change == "") == (old == new)
    second.load_state_dict({"weight": weight, "bias": first.bias.detach()})
    tokens = torch.randn(1, 3, 1, 1, 1)
    changed = [2 + axis for axis in range(3) if old[axis] != new[axis]]
    ours, theirs = second(tokens), first(tokens)
    for axis in changed:
        ours, theirs = ours.mean(axis, keepdim=True), theirs.mean(axis, keepdim=True)
    torch.testing.assert_close(ours, theirs)
