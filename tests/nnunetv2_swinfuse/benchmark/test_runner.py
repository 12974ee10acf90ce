import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark import runner as module
from nnunetv2_swinfuse.benchmark.cells import RESULT, Workspace
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.table import read_kept, write_table

from .runners import make_runner
from .tables import result_of, rows_of

pytestmark = pytest.mark.slow


def test_a_failed_cell_is_reported_and_the_others_go_on(raw, cells_run, tmp_path, capsys):
    runner = make_runner(tmp_path)
    cells_run["fails"] = (runner.cells[1].name,)
    outcome = runner.run(runner.cells)
    assert [cell.name for cell in outcome.failed] == [runner.cells[1].name]
    assert len(outcome.done) == 5
    assert f"FAILED {runner.cells[1].name}: nnUNetv2_train ended" in capsys.readouterr().out
    cells_run.update(names=[], fails=())
    assert len(Runner(runner.experiment, runner.workspace).run(runner.cells).done) == 1
    assert cells_run["names"] == [runner.cells[1].name]


def test_a_budget_ends_between_cells_by_what_a_kind_took_before(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    # The first of either kind is not known; then each takes 100 s of 60.
    outcome = runner.run(runner.cells, minutes=1)
    assert (len(outcome.done), len(outcome.left)) == (2, 4)
    assert len(runner.run(runner.cells, minutes=2).done) == 4


def test_workers_share_the_cores_and_run_together(raw, cells_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runner = make_runner(tmp_path, workers=2)
    assert len(runner.run(runner.cells).done) == 6
    assert cells_run["most"] == 2
    assert {(place.threads, place.cores) for place in cells_run["places"]} == {(2, (0, 1)), (2, (2, 3))}


def test_workers_get_a_gpu_each(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    places = make_runner(tmp_path, workers=4, device="cuda").places()
    assert [place.gpu for place in places] == ["3", "5", "3", "5"]


def test_what_a_killed_runner_finished_but_did_not_keep_is_kept(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    outcome = runner.run(runner.cells)
    first, second = outcome.done[:2]
    result, table = result_of(first), rows_of(first, {"Dice": np.ones(4)}, list(runner.splits_of(first)[0].test))
    other = Runner(runner.experiment, Workspace(tmp_path / "other", tmp_path / "other" / "results"))
    module.store_splits(other.workspace.results, other.splits)
    folder = other.workspace.cell(first)
    write_table(table, folder / "cases.csv")
    write_json(folder / RESULT, result)
    cells_run["names"] = []
    other.run([first, second])
    assert cells_run["names"] == [second.name]
    assert set(read_kept(other.workspace.results)) == {first.name, second.name}
