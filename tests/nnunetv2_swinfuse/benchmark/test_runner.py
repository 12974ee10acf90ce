import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark import places
from nnunetv2_swinfuse.benchmark.cells import RESULT, Workspace
from nnunetv2_swinfuse.benchmark.commands import CommandError
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.preparation import Preparation
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.splits import store_splits
from nnunetv2_swinfuse.benchmark.table import read_kept, write_table
from nnunetv2_swinfuse.errors import BenchmarkError

from .runners import make_runner
from .tables import read_json, result_of, rows_of

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


def test_workers_run_together_each_in_its_place(raw, cells_run, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runner = make_runner(tmp_path, workers=2)
    assert len(runner.run(runner.cells).done) == 6
    assert cells_run["most"] == 2
    assert {(place.threads, place.cores) for place in cells_run["places"]} == {(2, (0, 1)), (2, (2, 3))}


@pytest.fixture
def pretrained(monkeypatch):
    """Pretrainings write their record in place of an encoder, or fail; their names and places are returned."""
    runs = {"names": [], "places": [], "fails": ()}

    def pretrain(self, run, place):
        runs["names"].append(run.name)
        runs["places"].append(place)
        if run.name in runs["fails"]:
            raise CommandError("swinfuse_pretrain ended with status 1")
        record = {"recipe": run.recipe, "settings": dict(run.settings), "seconds": 90.0}
        write_json(self.workspace.pretraining(run) / "encoder.json", record)

    monkeypatch.setattr(Preparation, "pretrain", pretrain)
    return runs


PRETRAINING = {"collections": ["Pairs"], "steps": 1, "per_seed": True}


def test_an_encoder_is_pretrained_just_before_the_first_cell_that_needs_it(raw, cells_run, pretrained, tmp_path):
    runner = make_runner(tmp_path, arms=["nnunet", "swinfuse", "ct"], seeds=[0, 1], pretraining=PRETRAINING)
    log = []
    pretrained["names"] = cells_run["names"] = log
    assert len(runner.run(runner.cells).done) == 6
    assert [name.split("__Dataset")[0] for name in log] == [
        "nnunet", "swinfuse__seed_0", "swinfuse", "ct__seed_0", "ct",
        "nnunet", "swinfuse__seed_1", "swinfuse", "ct__seed_1", "ct",
    ]  # fmt: skip
    # Nothing is left, so nothing is pretrained.
    Runner(runner.experiment, runner.workspace).run(runner.cells)
    assert len(log) == 10


def test_cells_go_on_while_an_encoder_is_pretrained_and_it_gets_a_place(raw, cells_run, pretrained, tmp_path):
    runner = make_runner(tmp_path, workers=2, arms=["swinfuse", "nnunet"], seeds=[0], pretraining=PRETRAINING)
    assert len(runner.run(runner.cells).done) == 2
    assert cells_run["names"][0].startswith("nnunet")
    assert pretrained["places"][0].cores


def test_a_failed_pretraining_fails_the_cells_that_need_it(raw, cells_run, pretrained, tmp_path, capsys):
    runner = make_runner(tmp_path, arms=["swinfuse", "ct", "nnunet"], seeds=[0, 1], pretraining=PRETRAINING)
    pretrained["fails"] = ("swinfuse__seed_1",)
    outcome = runner.run(runner.cells)
    assert [(cell.arm, cell.seed) for cell in outcome.failed] == [("swinfuse", 1)]
    assert len(outcome.done) == 5
    said = "FAILED pretraining swinfuse__seed_1, needed by 1 cell: swinfuse_pretrain ended with status 1"
    assert said in capsys.readouterr().out


def test_no_pretraining_begins_that_would_exceed_the_budget_but_every_session_begins_one_job(
    raw, cells_run, pretrained, tmp_path
):
    runner = make_runner(tmp_path, arms=["swinfuse"], seeds=[0, 1], pretraining=PRETRAINING)
    # Nothing is known of the first pretraining and the first cell; the second pretraining would take 90 s of 60.
    outcome = runner.run(runner.cells, minutes=1)
    assert (pretrained["names"], len(outcome.done), len(outcome.left)) == (["swinfuse__seed_0"], 1, 1)
    assert len(runner.run(runner.cells, minutes=1).left) == 1
    assert pretrained["names"] == ["swinfuse__seed_0", "swinfuse__seed_1"]
    assert not runner.run(runner.cells, minutes=1).left


def test_a_pretraining_that_fails_after_the_budget_has_ended_is_not_lost(raw, cells_run, pretrained, tmp_path, capsys):
    runner = make_runner(tmp_path, workers=2, arms=["nnunet", "swinfuse"], seeds=[0, 1], pretraining=PRETRAINING)
    pretrained["fails"] = ("swinfuse__seed_0",)
    # The second cell of nnU-Net and the second pretraining do not fit.
    outcome = runner.run(runner.cells, minutes=1)
    assert [(cell.arm, cell.seed) for cell in outcome.failed] == [("swinfuse", 0)]
    failure = runner.workspace.cell(runner.cells[1]) / "failure.json"
    assert read_json(failure)["message"] == "swinfuse_pretrain ended with status 1"
    assert runner.workspace.state(runner.cells[1], {}) == "failed"
    assert not {*outcome.failed} & {*outcome.left}


def test_encoders_alone_are_pretrained_and_failures_told_at_the_end(raw, pretrained, tmp_path):
    runner = make_runner(tmp_path, arms=["swinfuse", "nnunet"], seeds=[0, 1], pretraining=PRETRAINING)
    runner.pretrain([cell for cell in runner.cells if cell.seed == 1])
    assert pretrained["names"] == ["swinfuse__seed_1"]
    pretrained["fails"] = ("swinfuse__seed_0",)
    with pytest.raises(BenchmarkError, match="swinfuse_pretrain ended"):
        runner.pretrain(runner.cells)
    assert pretrained["names"][1:] == ["swinfuse__seed_0", "swinfuse__seed_1"]


def test_without_encoders_no_gpu_is_looked_for(raw, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    make_runner(tmp_path, arms=["nnunet"], device="cuda").pretrain([])


def test_what_a_killed_runner_finished_but_did_not_keep_is_kept(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    outcome = runner.run(runner.cells)
    first, second = outcome.done[:2]
    result, table = result_of(first), rows_of(first, {"Dice": np.ones(4)}, list(runner.splits_of(first)[0].test))
    other = Runner(runner.experiment, Workspace(tmp_path / "other", tmp_path / "other" / "results"))
    store_splits(other.workspace.results, other.splits)
    folder = other.workspace.cell(first)
    write_table(table, folder / "cases.csv")
    write_json(folder / RESULT, result)
    cells_run["names"] = []
    other.run([first, second])
    assert cells_run["names"] == [second.name]
    assert set(read_kept(other.workspace.results)) == {first.name, second.name}


def test_plans_that_do_not_fit_are_refused_before_any_pretraining(raw, pretrained, tmp_path, monkeypatch):
    arguments = {"strides": [[1, 1, 1], [2, 2, 2]], "features_per_stage": [32, 64]}
    plans = {"configurations": {"3d_fullres": {"architecture": {"arch_kwargs": arguments}}}}

    def preprocess(self, dataset, planner, place):
        write_json(self.workspace.preprocessed / dataset.name / "nnUNetPlans.json", plans)

    monkeypatch.setattr(Preparation, "preprocess", preprocess)
    changes = {"features_per_stage": [4, 8, 16]}
    runner = make_runner(tmp_path, arms=["nnunet", "swinfuse"], pretraining=PRETRAINING, plans=changes)
    with pytest.raises(BenchmarkError, match=r"lists 3 stages, .* has 2"):
        runner.prepare(runner.cells)
