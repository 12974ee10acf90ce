import pytest

from nnunetv2_swinfuse.benchmark.cells import (
    FAILURE,
    RESULT,
    Cell,
    Workspace,
    all_cells,
    measured_seconds,
    read_results,
)
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.table import read_kept

from .tables import DATASET, fill, make_experiment, noisy


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, tmp_path / "results")


def test_a_seed_of_all_arms_comes_before_the_next():
    cells = all_cells(make_experiment(), [DATASET])
    assert [(cell.seed, cell.arm) for cell in cells] == [
        (seed, arm) for seed in (0, 1, 2) for arm in ("nnunet", "resenc_m")
    ]
    first = all_cells(make_experiment(labels=[3, "all"]), [DATASET])[:6]
    assert {cell.labels for cell in first} == {3}


def test_all_combinations_exist_once():
    experiment = make_experiment(labels=[3, "all"], folds=[1, 4], test_cases=None)
    cells = all_cells(experiment, [DATASET, "Dataset902_Other"])
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells}) == 2 * 2 * 2 * 3 * 2
    assert {cell.fold for cell in cells} == {1, 4}
    assert all_cells(make_experiment(), [DATASET])[0].fold == 0


def test_names_and_folders(workspace):
    cell = Cell("swinfuse", DATASET, "all", 2, 4)
    assert cell.name == f"swinfuse__{DATASET}__all_labels__seed_2__fold_4"
    assert cell.kind == ("swinfuse", DATASET)
    assert workspace.cell(cell) == workspace.root / "cells" / cell.name


def test_states(workspace):
    cell = Cell("nnunet", DATASET, 3, 0, 0)
    assert workspace.state(cell, {}) == "waiting"
    workspace.cell(cell).mkdir(parents=True)
    assert workspace.state(cell, {}) == "begun"
    write_json(workspace.cell(cell) / FAILURE, {})
    assert workspace.state(cell, {}) == "failed"
    assert workspace.state(cell, {cell.name: {}}) == "done"
    write_json(workspace.cell(cell) / RESULT, {})
    assert workspace.state(cell, {}) == "done"


def test_durations_are_medians_of_their_kind():
    cells = [Cell("nnunet", DATASET, labels, seed, 0) for labels in (3, "all") for seed in (0, 1)]
    results = {cell.name: {"seconds": seconds} for cell, seconds in zip(cells, (1, 10, 4), strict=False)}
    other = Cell("resenc_m", DATASET, 3, 0, 0)
    assert measured_seconds([*cells, other], results) == {("nnunet", DATASET): 4.0}


def test_results_are_of_earlier_sittings_and_of_the_folders(tmp_path):
    late = f"nnunet__{DATASET}__3_labels__seed_1__fold_0"
    workspace, cells = fill(make_experiment(), tmp_path, noisy, skip=(late,))
    assert set(read_results(workspace, cells)) == {cell.name for cell in cells} - {late}
    write_json(workspace.root / "cells" / late / RESULT, {"seconds": 5})
    assert read_results(workspace, cells)[late] == {"seconds": 5}
    # That of a kept cell stays with its rows.
    write_json(workspace.root / "cells" / cells[0].name / RESULT, {"seconds": 5})
    assert read_results(workspace, cells)[cells[0].name] == read_kept(workspace.results)[cells[0].name]
