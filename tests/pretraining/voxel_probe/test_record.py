import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.command import build_parser, make_plan
from pretraining.voxel_probe.record import read_floors, read_labelled, write_record
from pretraining.voxel_probe.results import Key, Row

from . import synthetic_labelled as synthetic


def row(split, labelled=2):
    return Row(Key("a", split, "501", "501", labelled, split), "c", "liver", "dice", 0.5, "x")


@pytest.mark.slow
def test_the_record_has_the_splits_of_all_calls(tmp_path):
    synthetic.write_dataset(tmp_path / "raw", 501, cases=4)
    output = tmp_path / "probe.csv"
    drawn = {}
    for seed in (0, 1, 2):
        words = ["-d", "501", "--labelled", "1", "2", "--split_seed", str(seed), "--output", str(output)]
        options = build_parser().parse_args(words)
        plan = make_plan(options, tmp_path / "raw")
        drawn[seed] = [case.name for case in plan.splits["Dataset501_Tiny"].labelled]
        write_record(options, plan, [], {"ours": "random as ours"}, {})
    rows = [row(split, count) for split in drawn for count in (1, 2)]
    labelled = read_labelled(output, rows)
    assert labelled == {
        ("501", count): {seed: frozenset(cases[:count]) for seed, cases in drawn.items()} for count in (1, 2)
    }
    # Otherwise an order that is lost would not be seen.
    assert len(set(labelled["501", 1].values())) > 1
    assert read_floors(output, ["ours", "other"]) == {"ours": "random as ours", "other": "random"}


def test_records_of_earlier_versions_do_not_say_which_cases_are_labelled(tmp_path):
    assert read_labelled(tmp_path / "p.csv", [row(0)]) == {}
    (tmp_path / "p.json").write_text(json.dumps({"floors": {}, "cases": {"Dataset501_Tiny": {"labelled": ["a"]}}}))
    assert read_labelled(tmp_path / "p.csv", [row(0)]) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"floors": []}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"p.json: damaged"):
        read_floors(tmp_path / "p.csv", ["ours"])
