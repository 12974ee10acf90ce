import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.cells import Workspace, all_cells
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.kept_experiment import EXPERIMENT, check_experiment
from nnunetv2_swinfuse.benchmark.table import keep
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, make_experiment, result_of, rows_of


def test_results_of_another_orientation_are_refused(tmp_path):
    workspace = Workspace(tmp_path, tmp_path / "results")
    before = make_experiment().to_dict()
    # Written before there was this field.
    assert before.pop("orientation") == "as_stored"
    write_json(workspace.results / EXPERIMENT, before)
    check_experiment(make_experiment(), workspace)
    with pytest.raises(BenchmarkError, match="of an experiment that differs in orientation"):
        check_experiment(make_experiment(orientation="RAS"), workspace)


def test_only_the_budget_of_a_pretraining_changes_and_only_before_its_first_cell(tmp_path):
    def experiment(**pretraining):
        values = {"collections": ["Pairs"], "preset": "tiny", **pretraining}
        return make_experiment(test_cases=4, arms=["swinfuse", "scratch", "frozen_random"], pretraining=values)

    workspace = Workspace(tmp_path, tmp_path / "results")
    first = experiment(steps=2)
    cells = {cell.arm: cell for cell in all_cells(first, [DATASET])}
    write_json(workspace.results / EXPERIMENT, first.to_dict())

    def kept(arm):
        record = result_of(cells[arm], encoder={"sha256": "e"}, arm=first.arm(arm).to_dict())
        keep(workspace.results, {cells[arm].name: (record, rows_of(cells[arm], {"Dice": np.ones(1)}, ["case"]))})

    kept("scratch")
    kept("frozen_random")
    check_experiment(experiment(minutes=20), workspace)
    for changed in (experiment(steps=2, preset="base"), experiment(steps=2, collections=["Other"])):
        with pytest.raises(BenchmarkError, match="differs in pretraining"):
            check_experiment(changed, workspace)
    kept("swinfuse")
    with pytest.raises(BenchmarkError, match="differs in pretraining"):
        check_experiment(experiment(minutes=20), workspace)
