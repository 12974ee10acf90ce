import numpy as np
import pytest
from matplotlib.image import imread

from pretraining.monitoring.curves import COLUMNS, PANELS, draw_progress, measured, panel_picture
from pretraining.monitoring.log import RunLog, read_records

pytestmark = pytest.mark.slow


def test_progress_is_drawn_from_few_and_from_many_records(tmp_path):
    log = RunLog(tmp_path)
    log.record(1, "train", {"total": 3.0})
    log.record(1, "validation", {"organ_dice_501_2": 0.5})
    few = imread(draw_progress(tmp_path)).copy()
    for step in range(2, 300):
        log.record(step, "train", {"total": 3.0 / step, "rotation_accuracy": 0.5})
        log.record(step, "validation", {"total": float("nan")})
    many = imread(draw_progress(tmp_path))
    assert few.shape == many.shape
    assert not np.array_equal(few, many)
    # With that of the organs, 16 panels in 18 places: nothing is drawn in the last two.
    assert (len(PANELS) + 1) % COLUMNS == 1
    height, width = few.shape[:2]
    assert (many[-height // 7 :, -width // 2 :, :3] == 1).all()
    assert not list(tmp_path.glob("*.tmp*"))


def test_each_panel_can_be_drawn_by_itself_and_knows_whether_it_was_measured(tmp_path):
    log = RunLog(tmp_path)
    log.record(1, "validation", {"cka": 0.5, "probe_accuracy": float("nan")})
    records = read_records(tmp_path)
    by_title = {panel.title: panel for panel in PANELS}
    assert measured(by_title["CKA of CT and MR"], records)
    assert not measured(by_title["modality probe: accuracy"], records)
    for panel in PANELS:
        assert panel_picture(panel, records).startswith(b"\x89PNG")
