import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pretraining.monitoring.panels import COLUMNS, ReconstructedView, busiest_slice, draw_reconstruction

pytestmark = pytest.mark.slow


def test_reconstructions_show_each_modality_in_three_planes(tmp_path):
    def panel(value):
        target = torch.randn(12, 16, 16)
        mask = torch.zeros(12, 16, 16, dtype=torch.bool)
        mask[4:8, 4:9, 5:10] = True
        return ReconstructedView(
            target, torch.where(mask, 0.0, target), torch.full_like(target, value), mask, torch.ones_like(mask)
        )

    one = imread(draw_reconstruction(tmp_path / "a" / "one.png", {"CT": panel(0.0)}))
    two = imread(draw_reconstruction(tmp_path / "two.png", {"CT": panel(0.0), "MR": panel(1.0)}))
    assert two.shape[0] > 1.8 * one.shape[0]
    assert len(COLUMNS) == 5


def test_flat_volumes_are_drawn_too(tmp_path):
    flat = torch.zeros(8, 8, 8)
    panel = ReconstructedView(flat, flat, flat, flat.bool(), ~flat.bool())
    assert draw_reconstruction(tmp_path / "flat.png", {"CT": panel}).is_file()


def test_the_errors_do_not_count_padding(monkeypatch, tmp_path):
    """The volume is 1 where it is cut out and 3 elsewhere; the padding is far from both."""
    target = torch.full((8, 8, 8), -9.0)
    mask, inside = torch.zeros(8, 8, 8, dtype=torch.bool), torch.zeros(8, 8, 8, dtype=torch.bool)
    inside[:, :, :4] = True
    mask[:4] = True
    target[inside & mask], target[inside & ~mask] = 1.0, 3.0
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axis, title, **_: titles.append(title))
    draw_reconstruction(
        tmp_path / "padded.png", {"CT": ReconstructedView(target, target, torch.full_like(target, 1.5), mask, inside)}
    )
    assert titles[-1] == "error: 0.50\n(of the mean: 2.00)"


def test_the_slice_with_most_structure_in_the_mask_is_shown():
    target, mask = np.zeros((8, 8, 8)), np.zeros((8, 8, 8), dtype=bool)
    target[6, 2:5, 3] = 5.0
    target[1] = np.random.default_rng(0).normal(size=(8, 8))
    mask[3:8, 1:6, 1:6] = True
    assert [busiest_slice(target, mask, axis) for axis in (0, 2)] == [6, 3]
    assert busiest_slice(target, np.zeros_like(mask), 1) == 4
