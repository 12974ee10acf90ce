import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.voxel_probe.results import Key, Results, Row, case_means, format_table, summarise


def rows(arm="a", seed=0, values=(0.4, 0.6), tested_on="501", metric="dice", inputs="x"):
    key = Key(arm, seed, "501", tested_on, 4, 0)
    return [Row(key, f"c{n}", "liver", metric, value, inputs) for n, value in enumerate(values)]


def test_rows_survive_the_file_and_are_not_computed_again(tmp_path):
    path = tmp_path / "probe.csv"
    Results(path).add(rows())
    again = Results(path)
    assert again.rows == rows()
    assert again.done(rows()[0].key, "x")
    assert not again.done(Key("b", 0, "501", "501", 4, 0), "x")
    with pytest.raises(InputError, match="--overwrite"):
        again.done(rows()[0].key, "other weights")
    again.add(rows(values=(0.1, 0.2)))
    assert [row.value for row in Results(path).rows] == [0.1, 0.2]


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "probe.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"probe\.csv: columns"):
        Results(path)


def test_means_and_intervals_by_hand():
    values = case_means([*rows(seed=0, values=(0.4, 0.6)), *rows(seed=1, values=(0.6, 0.8))], "dice")
    floor = case_means(rows("random", values=(0.4, 0.5)), "dice")
    summary = summarise(values, floor)
    assert summary.mean == pytest.approx(0.6)
    assert summary.seeds == pytest.approx((0.5, 0.7))
    assert summary.difference == pytest.approx(0.15)
    # Two cases: differences 0.1 and 0.2, standard error 0.05, t quantile of one degree 12.706.
    assert summary.difference_interval == pytest.approx((0.15 - 0.6353, 0.15 + 0.6353), abs=1e-3)


def test_the_table_shows_the_difference_to_the_floor_and_separates_zero_shot():
    table = format_table([*rows("random"), *rows("a", values=(0.5, 0.7)), *rows("a", tested_on="510", metric="auc")],
                         {"a": "random"}, zero_shot=False)  # fmt: skip
    assert "+0.100" in table
    assert "510" not in table
    zero = format_table([*rows("a", tested_on="510", metric="auc")], {}, zero_shot=True)
    assert "501 -> 510" in zero
    assert format_table([], {}, False) == ""
