import pytest
import torch

from pretraining.mask_cells import automatic_cell, cells_along_axes, cells_to_cut_out
from pretraining.views import ViewSettings, draw_view


@pytest.mark.parametrize(
    ("crop", "token", "cell"),
    [
        # 8 cells or more are as large as a token.
        ((32, 32, 32), (16, 16, 16), (16, 16, 16)),
        ((96, 96, 96), (32, 32, 32), (32, 32, 32)),
        ((40, 96, 96), (8, 32, 32), (8, 32, 32)),
        # One cell, two cells.
        ((32, 32, 32), (32, 32, 32), (16, 16, 16)),
        ((16, 32, 32), (16, 32, 32), (8, 16, 16)),
        ((16, 32, 32), (8, 32, 32), (8, 16, 16)),
        ((128, 64, 64), (64, 64, 64), (32, 32, 64)),
        # A crop without 8 voxels.
        ((1, 2, 2), (1, 2, 2), (1, 1, 1)),
    ],
)
def test_cells_are_halved_until_a_crop_has_eight(crop, token, cell):
    assert automatic_cell(crop, token) == cell


def test_smaller_cells_at_the_border_count():
    assert cells_along_axes((33, 32, 31), (16, 16, 16)) == (3, 2, 2)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_as_many_cells_are_drawn_as_are_counted(share):
    settings = ViewSettings(share, "cells", (4, 8, 8))
    mask = draw_view((8, 16, 16), settings, [torch.Generator().manual_seed(0)]).mask
    assert mask.sum().item() == cells_to_cut_out(share, (2, 2, 2)) * 4 * 8 * 8
