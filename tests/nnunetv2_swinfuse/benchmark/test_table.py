import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark import table as module
from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.table import keep, read_kept, read_rows, read_table, write_table
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, fill, make_experiment, noisy, result_of, rows_of

CELL = Cell("nnunet", DATASET, 3, 0, 0)


def test_a_table_survives_its_file(tmp_path):
    values = {"Dice": np.array([0.125, 0.5]), "HD95": np.array([3.25, 1234567.0])}
    # A case may be named like a number, or like pandas' word for nothing.
    rows = rows_of(CELL, values, ["007", "NA"], {("007", "core"): "both"})
    write_table(rows, tmp_path / "cases.csv")
    found = read_table(tmp_path / "cases.csv")
    assert found.to_dict("list")["case"] == rows.to_dict("list")["case"]
    assert list(found["empty"]) == list(rows["empty"])
    np.testing.assert_array_equal(found["value"], rows["value"])
    assert found["value"].isna().sum() == 2


@pytest.mark.parametrize(("text", "message"), [("", "cannot be read"), ("cell,arm\n", "no columns dataset, labels")])
def test_files_that_are_no_table_are_named(tmp_path, text, message):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(BenchmarkError, match=f"cases.csv: {message}"):
        read_table(tmp_path / "cases.csv")


def test_a_cell_that_is_kept_stays(tmp_path):
    first = rows_of(CELL, {"Dice": np.array([0.5])}, ["a"])
    keep(tmp_path, {CELL.name: (result_of(CELL), first)})
    keep(tmp_path, {CELL.name: (result_of(CELL, seconds=1.0), rows_of(CELL, {"Dice": np.array([0.9])}, ["a"]))})
    assert read_kept(tmp_path)[CELL.name]["seconds"] == 60.0
    assert set(read_rows(tmp_path)["value"]) == {0.5}


def test_rows_that_a_killed_process_left_are_dropped(tmp_path, capsys):
    other = Cell("resenc_m", DATASET, 3, 0, 0)
    keep(tmp_path, {CELL.name: (result_of(CELL), rows_of(CELL, {"Dice": np.array([0.5])}, ["a"]))})
    (tmp_path / "cells.json").write_text("{}")
    assert read_rows(tmp_path).empty
    keep(tmp_path, {other.name: (result_of(other), rows_of(other, {"Dice": np.array([0.7])}, ["a"]))})
    assert f"dropped: {CELL.name}" in capsys.readouterr().out
    assert set(read_table(tmp_path / "cases.csv")["cell"]) == {other.name}


@pytest.mark.parametrize("written", [False, True])
def test_a_process_killed_in_the_first_keep_blocks_nothing(tmp_path, monkeypatch, capsys, written):
    rows = rows_of(CELL, {"Dice": np.array([0.5])}, ["a"])

    def killed(table, path):
        if written:
            write_table(table, path)
        # Another process reads, then the kill.
        assert read_rows(tmp_path).empty
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, {CELL.name: (result_of(CELL), rows)})
    monkeypatch.undo()
    assert read_kept(tmp_path) == {}
    keep(tmp_path, {CELL.name: (result_of(CELL), rows)})
    assert (f"dropped: {CELL.name}" in capsys.readouterr().out) == written
    assert set(read_rows(tmp_path)["value"]) == {0.5}


def test_a_table_without_its_list_is_refused(tmp_path):
    write_table(rows_of(CELL, {"Dice": np.array([0.5])}, ["a"]), tmp_path / "cases.csv")
    with pytest.raises(BenchmarkError, match=r"cells.json: cannot be read .* committed together"):
        read_kept(tmp_path)


def test_nothing_is_kept_in_an_empty_folder(tmp_path):
    assert read_kept(tmp_path) == {}
    assert read_rows(tmp_path).empty


def test_a_table_without_the_rows_of_a_listed_cell(tmp_path):
    workspace, _ = fill(make_experiment(), tmp_path, noisy)
    table = workspace.results / "cases.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:41]) + "\n")
    with pytest.raises(BenchmarkError, match=r"no rows of .* take both from one commit"):
        read_rows(workspace.results)


def test_results_of_the_next_sitting_are_added(tmp_path):
    experiment = make_experiment()
    late = "resenc_m__Dataset901_Made__3_labels__seed_2__fold_0"
    workspace, _ = fill(experiment, tmp_path, noisy, skip=(late,))
    before = read_rows(workspace.results)
    fill(experiment, tmp_path, noisy)
    after = read_rows(workspace.results)
    assert len(after) == len(before) * 6 // 5
    old = after[after["cell"] != late].reset_index(drop=True)
    np.testing.assert_array_equal(old["value"], before["value"])
