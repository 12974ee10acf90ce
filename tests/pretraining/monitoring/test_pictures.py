import numpy as np
import torch
from matplotlib.image import imread

from pretraining.monitoring.curves import draw_progress
from pretraining.monitoring.log import RunLog
from pretraining.monitoring.panels import COLUMNS, draw_reconstruction


def test_progress_is_drawn_from_few_and_from_many_records(tmp_path):
    log = RunLog(tmp_path)
    log.record(1, "train", {"total": 3.0})
    few = imread(draw_progress(tmp_path)).copy()
    for step in range(2, 300):
        log.record(step, "train", {"total": 3.0 / step, "rotation_accuracy": 0.5})
        log.record(step, "validation", {"total": float("nan")})
    many = imread(draw_progress(tmp_path))
    assert few.shape == many.shape
    assert not np.array_equal(few, many)
    assert not list(tmp_path.glob("*.tmp*"))


def test_reconstructions_show_each_modality_in_three_planes(tmp_path):
    def panel(value):
        target = torch.randn(12, 16, 16)
        mask = torch.zeros(12, 16, 16, dtype=torch.bool)
        mask[4:8, 4:9, 5:10] = True
        return target, torch.where(mask, 0.0, target), torch.full_like(target, value), mask

    one = imread(draw_reconstruction(tmp_path / "a" / "one.png", {"CT": panel(0.0)}))
    two = imread(draw_reconstruction(tmp_path / "two.png", {"CT": panel(0.0), "MR": panel(1.0)}))
    assert two.shape[0] > 1.8 * one.shape[0]
    assert len(COLUMNS) == 5


def test_flat_volumes_are_drawn_too(tmp_path):
    flat = torch.zeros(8, 8, 8)
    assert draw_reconstruction(tmp_path / "flat.png", {"CT": (flat, flat, flat, flat.bool())}).is_file()
