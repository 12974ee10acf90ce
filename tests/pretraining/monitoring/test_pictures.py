import numpy as np
import torch
from matplotlib.image import imread

from pretraining.monitoring.curves import PANELS, draw_progress, measured, panel_picture
from pretraining.monitoring.log import RunLog, read_records
from pretraining.monitoring.panels import COLUMNS, busiest_slice, draw_reconstruction


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


def test_each_panel_can_be_drawn_alone_and_says_whether_it_was_measured(tmp_path):
    log = RunLog(tmp_path)
    log.record(1, "validation", {"cka": 0.5, "probe_accuracy": float("nan")})
    records = read_records(tmp_path)
    by_title = {panel.title: panel for panel in PANELS}
    assert measured(by_title["CKA of CT and MR"], records)
    assert not measured(by_title["modality probe: accuracy"], records)
    for panel in PANELS:
        assert panel_picture(panel, records).startswith(b"\x89PNG")


def test_the_slice_shown_is_the_one_with_most_structure_behind_the_mask():
    target, mask = np.zeros((8, 8, 8)), np.zeros((8, 8, 8), dtype=bool)
    target[6, 2:5, 3] = 5.0
    target[1] = np.random.default_rng(0).normal(size=(8, 8))
    mask[3:8, 1:6, 1:6] = True
    assert [busiest_slice(target, mask, axis) for axis in (0, 2)] == [6, 3]
    assert busiest_slice(target, np.zeros_like(mask), 1) == 4
