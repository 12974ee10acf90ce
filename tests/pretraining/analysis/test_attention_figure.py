import matplotlib.image
import numpy as np
import pytest
import torch

from pretraining.analysis.attention import DIFFERENCES, RELATIVE
from pretraining.analysis.attention_figure import (
    cell_slice,
    choose_queries,
    draw_differences,
    draw_overlay,
    mean_attention,
    slice_of,
)
from pretraining.voxel_probe.results import Summary


def test_queries_are_apart_in_the_layer_with_most_tissue():
    tissue = torch.zeros(3, 5, 5, dtype=torch.bool)
    tissue[1, 2, :] = True
    tissue[0, 0, 0] = True
    # The middle of the row, then both ends.
    chosen = choose_queries(tissue.flatten(), (3, 5, 5)).tolist()
    assert chosen[0] == 25 + 10 + 2
    assert set(chosen[1:]) == {25 + 10, 25 + 14}


def test_of_layers_with_equal_tissue_the_middle_one_is_chosen_and_without_tissue_none():
    everywhere = torch.ones(5 * 2 * 2, dtype=torch.bool)
    assert {int(cell) // 4 for cell in choose_queries(everywhere, (5, 2, 2))} == {2}
    assert not len(choose_queries(~everywhere, (5, 2, 2)))


def test_a_slice_of_padding_is_not_chosen():
    image = torch.randn(1, 1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    image[:, :, 6:] = -1
    assert slice_of([image, image], 3, (4, 2, 2)) in (6, 7)
    assert slice_of([image, image], 1, (2, 2, 2)) in (4, 5)


def test_cells_of_a_slice_cover_their_voxels():
    values = torch.arange(2.0 * 2 * 3)
    shown = cell_slice(values, (2, 2, 3), (4, 4, 6), 3)
    assert shown.shape == (4, 6)
    assert shown[0].tolist() == [6, 6, 7, 7, 8, 8]
    assert shown[3].tolist() == [9, 9, 10, 10, 11, 11]


def test_uniform_attention_is_one():
    assert torch.allclose(mean_attention([torch.full((1, 2, 5, 8), 1 / 8)]), torch.ones(5, 8))


@pytest.mark.slow
def test_the_overlay_lies_on_the_cell_that_is_attended_to(tmp_path):
    """A cell at the front and at the patient's right is drawn at the upper left."""
    image = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    attention = torch.zeros(16, 16)
    attention[:, [3, 7, 11, 15]] = 16 / 4
    path = draw_overlay(
        tmp_path / "a.png", (image, image), ("CT", "MR"), (attention, attention), (4, 2, 2), (1.0, 1.0, 1.0), "t"
    )
    picture = matplotlib.image.imread(path)[..., :3]
    coloured = (picture.max(-1) - picture.min(-1)) > 0.12
    # The picture of all queries, in the third of six columns and the upper row.
    height, width = coloured.shape
    part = coloured[int(0.1 * height) : int(0.55 * height), int(0.32 * width) : int(0.47 * width)]
    rows, columns = np.nonzero(part)
    assert len(rows) > 100
    assert rows.mean() / part.shape[0] < 0.45
    assert columns.mean() / part.shape[1] < 0.5


def test_differences_of_all_arms_are_drawn(tmp_path):
    summary = Summary(0.2, (0.1, 0.3), (0.15, 0.25))
    measures = dict.fromkeys((*DIFFERENCES, *RELATIVE), summary)
    path = draw_differences(tmp_path / "d.png", {"random": measures, "ours": measures}, "random")
    assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 4, 8, 8)])
def test_images_without_tissue_can_be_drawn(tmp_path, image):
    attention = torch.ones(16, 16)
    path = draw_overlay(
        tmp_path / "a.png", (image, image), ("CT", "MR"), (attention, attention), (4, 2, 2), (1.0, 1.0, 1.0), "t"
    )
    assert path.is_file()
