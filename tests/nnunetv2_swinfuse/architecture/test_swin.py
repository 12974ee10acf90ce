import math

import pytest
import torch

from nnunetv2_swinfuse.architecture.swin import MONAI_LEGACY_SUBGRIDS, PatchEmbedding, PatchMerging, SwinStage


def test_patches_are_projected_one_by_one():
    embedding = PatchEmbedding(2, 5, (1, 2, 2))
    image = torch.randn(1, 2, 3, 4, 6)
    result = embedding(image)
    assert result.shape == (1, 5, 3, 2, 3)
    patch = image[0, :, 1:2, 2:4, 4:6].flatten()
    expected = embedding.proj.weight.flatten(1) @ patch + embedding.proj.bias
    torch.testing.assert_close(result[0, :, 1, 1, 2], expected)


def test_merging_joins_neighbours_with_the_last_axis_fastest():
    merging = PatchMerging(1, (2, 2, 2))
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    x = torch.arange(64.0).reshape(1, 4, 4, 4, 1)
    expected = x[0, 2:4, 0:2, 2:4].flatten()
    assert torch.equal(merging(x)[0, 1, 0, 1], expected)


def test_legacy_merging_joins_monais_sub_grids_where_all_axes_are_halved():
    assert len(set(MONAI_LEGACY_SUBGRIDS)) == 6
    assert PatchMerging(1, (2, 2, 2), monai_legacy=True).subgrids == MONAI_LEGACY_SUBGRIDS
    assert PatchMerging(1, (1, 2, 2), monai_legacy=True).subgrids == PatchMerging(1, (1, 2, 2)).subgrids


@pytest.mark.parametrize(("stride", "shape"), [((2, 2, 2), (5, 4, 7)), ((1, 2, 2), (3, 5, 5)), ((1, 1, 1), (2, 3, 4))])
def test_a_stage_merges_by_its_stride_and_pads_odd_sizes(stride, shape):
    stage = SwinStage(4, 2, (3, 3, 3), stride, 2.0, [0.0, 0.0])
    result = stage(torch.randn(2, *shape, 4))
    assert result.shape == (2, *(math.ceil(size / step) for size, step in zip(shape, stride, strict=True)), 8)
    assert [block.shifted for block in stage.blocks] == [False, True]
