import json
import math

from pretraining.analysis.contrast_shift import Similarity
from pretraining.analysis.record import plain, write_record
from pretraining.voxel_probe.results import Summary

from . import synthetic_analysis as synthetic


def test_named_tuples_and_dataclasses_become_objects_and_nan_becomes_null():
    value = {"a": [Similarity(None, math.nan)], "b": Summary(0.5, (0.25, 0.75), (0.5,)), 3: (1, "x")}
    expected = {
        "a": [{"cka": None, "cosine": None}],
        "b": {"mean": 0.5, "interval": [0.25, 0.75], "seeds": [0.5], "difference": None, "difference_interval": None},
        "3": [1, "x"],
    }
    assert plain(value) == expected


def test_a_record_says_what_was_measured_on_what(tmp_path):
    arms = [synthetic.arm("ours", floor="random")]
    path = write_record(tmp_path / "r.json", ["features", "ours"], arms, {"split": "all"}, {"x": 0.5}, ["a note"], 1.23)
    record = json.loads(path.read_text())
    assert record["command"] == "swinfuse_analyze features ours"
    assert record["encoders"] == [{"name": "ours", "seed": 0, "weights": "weights", "floor": "random"}]
    assert record["images"] == {"split": "all"}
    assert record["results"] == {"x": 0.5}
    assert record["notes"] == ["a note"]
