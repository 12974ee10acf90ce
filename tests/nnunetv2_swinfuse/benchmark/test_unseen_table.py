import shutil

import numpy as np
import pandas as pd
import pytest

from nnunetv2_swinfuse.benchmark.unseen_table import TABLE, add_rows, both_datasets, read_rows, rows_of_experiment

from .runners import make_runner
from .tables import DATASET, rows_of

OTHER = "Dataset902_Other"


def rows(runner, value, rescaled=False, names=("a", "b")):
    """The same Dice in all cells of the first dataset, tested on the second."""
    cells = [cell for cell in runner.cells if cell.dataset == DATASET]
    tables = [rows_of(cell, {"Dice": np.full(len(names), value)}, list(names)) for cell in cells]
    return pd.concat(tables).assign(dataset=both_datasets(DATASET, OTHER, rescaled))


@pytest.fixture
def two_datasets(raw):
    shutil.copytree(raw, raw.parent / OTHER)


def test_rows_replace_those_of_the_same_cell_and_case_only(raw, tmp_path):
    runner = make_runner(tmp_path, seeds=[0])
    path = tmp_path / TABLE
    assert read_rows(path).empty
    add_rows(path, rows(runner, 0.5))
    add_rows(path, rows(runner, 0.25, names=("b",)))
    add_rows(path, rows(runner, 0.75, rescaled=True))
    means = read_rows(path).groupby(["dataset", "case"])["value"].mean()
    plain, rescaled = (both_datasets(DATASET, OTHER, rescale) for rescale in (False, True))
    expected = {(plain, "a"): 0.5, (plain, "b"): 0.25, (rescaled, "a"): 0.75, (rescaled, "b"): 0.75}
    assert means.to_dict() == expected


def test_rows_of_what_the_experiment_does_not_have_any_more_do_not_count(two_datasets, tmp_path):
    more = make_runner(tmp_path, datasets=[901, 902], seeds=[0, 1, 2])
    runner = make_runner(tmp_path, datasets=[901, 902], seeds=[0, 1])
    table = rows(more, 0.5)
    assert set(rows_of_experiment(table, runner, rescale=False)["seed"]) == {0, 1}
    assert rows_of_experiment(table, runner, rescale=True).empty
    assert rows_of_experiment(table, make_runner(tmp_path), rescale=False).empty
