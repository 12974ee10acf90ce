import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from nnunetv2_swinfuse.architecture.windows import window_layout

CASES = [
    ((6, 4, 8), (3, 2, 4), (0, 0, 0)),
    ((6, 4, 8), (3, 2, 4), (1, 1, 2)),
    ((5, 4, 7), (3, 4, 4), (1, 0, 2)),
    ((2, 9, 3), (2, 4, 3), (0, 2, 0)),
]


@pytest.mark.parametrize(("shape", "window", "shift"), CASES)
def test_partition_and_reverse(shape, window, shift):
    x = torch.randn(2, *shape, 3)
    layout = window_layout(2, shape, window, shift)
    windows = layout.to_windows(x)
    assert windows.shape == (
        2 * math.prod(-(-s // w) for s, w in zip(shape, window, strict=True)),
        math.prod(window),
        3,
    )
    assert torch.equal(layout.from_windows(windows, (2, *shape)), x)
    assert windows.sum().item() == pytest.approx(x.sum().item(), abs=1e-4)


@pytest.mark.parametrize(("shape", "window", "shift"), CASES)
def test_tokens_that_may_attend_are_neighbours_of_one_image(shape, window, shift):
    # Each token carries its image and position: what the masks let through must lie in one window of the moved grid.
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in shape), indexing="ij")
    positions = torch.stack(axes, -1)
    maps = torch.stack([torch.cat([torch.full_like(positions[..., :1], n), positions], -1) for n in (1, 2)])
    layout = window_layout(2, shape, window, shift)
    windows = layout.to_windows(maps)
    first = 0
    for group in layout.groups:
        members = windows[first : first + group.windows]
        first += group.windows
        image, place = members[..., 0], members[..., 1:]
        real = image > 0
        cells = torch.floor((place - torch.tensor(shift)) / torch.tensor(window))
        cells = torch.where(place < torch.tensor(shift), -1.0, cells)
        together = (cells[:, :, None] == cells[:, None]).all(-1) & (image[:, :, None] == image[:, None])
        both = real[:, :, None] & real[:, None]
        allowed = torch.ones_like(together) if group.separated is None else ~group.separated.expand_as(together)
        assert torch.equal(allowed[both], together[both])
    assert first == len(windows)


def test_shifted_windows_have_at_most_eight_masks_and_unshifted_none():
    shifted = window_layout(1, (12, 12, 12), (4, 4, 4), (2, 2, 2))
    assert [group.windows for group in shifted.groups] == [8, 4, 4, 2, 4, 2, 2, 1]
    assert [group.separated is None for group in shifted.groups] == [True] + [False] * 7
    (only,) = window_layout(1, (12, 12, 12), (4, 4, 4), (0, 0, 0)).groups
    assert only.windows == 27
    assert only.separated is None


def test_gradients_pass_partition_and_reverse():
    layout = window_layout(1, (3, 2, 3), (2, 2, 2), (1, 0, 1))
    x = torch.randn(1, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.to_windows, x)
    windows = torch.randn(len(layout.to_windows(x)), 8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: layout.from_windows(w, (1, 3, 2, 3)), windows)


def test_fake_tensors_never_reach_an_ordinary_forward_nor_ordinary_ones_a_fake():
    arguments = (1, (5, 6, 7), (3, 3, 3), (1, 1, 1))
    with FakeTensorMode():
        fake = window_layout(*arguments)
        assert type(fake.to_windows(torch.zeros(1, 5, 6, 7, 2))) is FakeTensor
    layout = window_layout(*arguments)
    assert type(layout.position) is torch.Tensor
    assert layout.to_windows(torch.ones(1, 5, 6, 7, 2)).sum() == 5 * 6 * 7 * 2
    # The cache holds the ordinary layout now, which an operation on fake tensors refuses.
    with FakeTensorMode():
        window_layout(*arguments).to_windows(torch.zeros(1, 5, 6, 7, 2))
    assert window_layout(*arguments) is layout
