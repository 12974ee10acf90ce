import math

import pytest

from nnunetv2_swinfuse.architecture.topology import check_patch_size, clamp_window, plan_topology

CASES = [
    # patch, strides after stage 0, Swin merges, further convolution stages
    ((40, 56, 40), [(2, 2, 2)] * 3, 2, 0),
    ((20, 320, 256), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)], 4, 1),
    ((128, 128, 128), [(2, 2, 2)] * 5, 4, 0),
    ((64, 128, 112), [(2, 2, 2)] * 4, 3, 0),
    ((16, 16, 16), [(2, 2, 2)], 0, 0),
]


@pytest.mark.parametrize(("patch", "strides", "merges", "convolutions"), CASES)
def test_stages_of_nnunet_plans(patch, strides, merges, convolutions):
    topology = plan_topology([(1, 1, 1), *strides], swin_stages=4)
    assert topology.patch_stride == strides[0]
    assert topology.stage_strides == tuple(strides[1 : 1 + merges])
    assert len(topology.convolution_strides) == convolutions
    assert topology.downsampling == tuple(math.prod(s[axis] for s in strides) for axis in range(3))
    check_patch_size(patch, topology)


@pytest.mark.parametrize(
    ("strides", "words"),
    [
        ([(1, 1, 1)], "1 stage"),
        ([(1, 1), (2, 2)], "3d plans"),
        ([(1, 1, 1), (3, 2, 2)], r"strides\[1\] is \[3, 2, 2\]; expected 1 or 2"),
        ([(2, 2, 2), (2, 2, 2)], r"strides\[0\]"),
    ],
)
def test_impossible_strides_name_the_field(strides, words):
    with pytest.raises(ValueError, match=words):
        plan_topology(strides, 4)


def test_patch_that_does_not_divide_names_its_axis():
    with pytest.raises(ValueError, match="axis y has 30 voxels"):
        check_patch_size((32, 30, 32), plan_topology([(1, 1, 1), (2, 2, 2), (2, 2, 2)], 4))


def test_windows_are_clamped_and_unshifted_where_the_map_is_no_longer():
    assert clamp_window((20, 7, 3), (7, 7, 7), shifted=True) == ((7, 7, 3), (3, 0, 0))
    assert clamp_window((20, 7, 3), (7, 7, 7), shifted=False) == ((7, 7, 3), (0, 0, 0))
