import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.added_results import add_results
from nnunetv2_swinfuse.benchmark.cli import main
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.kept_experiment import EXPERIMENT
from nnunetv2_swinfuse.benchmark.splits import FILE
from nnunetv2_swinfuse.benchmark.table import keep, read_kept, read_rows
from nnunetv2_swinfuse.benchmark.unseen_table import TABLE, add_rows, both_datasets
from nnunetv2_swinfuse.benchmark.unseen_table import read_rows as read_unseen
from nnunetv2_swinfuse.errors import BenchmarkError

from .runners import make_runner
from .tables import LENGTH, read_json, result_of, rows_of

PRETRAINING = {"collections": ["Pairs"], "preset": "tiny"}


def finished(tmp_path, name, value, changes=None, **experiment):
    """A runner whose cells are all kept, each with the same Dice in all cases."""
    runner = make_runner(tmp_path / name, length=LENGTH, **experiment)
    results = runner.workspace.results
    write_json(results / EXPERIMENT, runner.experiment.to_dict())
    for cell in runner.cells:
        cases = list(runner.splits_of(cell)[0].test)
        arm = runner.experiment.arm(cell.arm).to_dict()
        record = result_of(cell, arm=arm, mirroring=True, **(changes or {}))
        keep(results, {cell.name: (record, rows_of(cell, {"Dice": np.full(len(cases), value)}, cases))})
    return runner


def test_cells_of_another_experiment_are_added_and_kept_ones_stay(raw, tmp_path):
    # Other arms and seeds: two cells of resenc_m in common, of which one is kept here already.
    here = finished(tmp_path, "here", 0.5, arms=["resenc_m"], seeds=[0])
    here = make_runner(tmp_path / "here", arms=["resenc_m", "resenc_l"], seeds=[0, 1, 5], length=LENGTH)
    there = finished(tmp_path, "there", 0.9, seeds=[0, 1])
    added = add_results(there.workspace.results, here, here.cells)
    assert [(cell.arm, cell.seed) for cell in added] == [("resenc_m", 1)]
    rows = read_rows(here.workspace.results)
    assert rows.groupby("seed")["value"].unique().map(list).to_dict() == {0: [0.5], 1: [0.9]}
    assert read_kept(here.workspace.results)[added[0].name] == read_kept(there.workspace.results)[added[0].name]
    assert add_results(there.workspace.results, here, here.cells) == []


def test_rows_on_the_other_modality_come_with_their_cells(raw, tmp_path):
    here = make_runner(tmp_path / "here", arms=["resenc_m"], seeds=[0], length=LENGTH)
    there = finished(tmp_path, "there", 0.9, seeds=[0, 1])
    for cell in there.cells:
        rows = rows_of(cell, {"Dice": np.array([0.25])}, ["ct_1"])
        add_rows(there.workspace.results / TABLE, rows.assign(dataset=both_datasets(cell.dataset, cell.dataset, False)))
    add_results(there.workspace.results, here, here.cells)
    assert set(read_unseen(here.workspace.results / TABLE)["cell"]) == {here.cells[0].name}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": {**LENGTH, "epochs": 7}}, "differs in length"),
        ({"test_cases": 5}, "differs in test_cases"),
        ({"arms": ["resenc_l"]}, "none of the 4 cells of made is in its cells.json"),
    ],
)
def test_results_that_would_be_others_here_are_refused(raw, tmp_path, changes, message):
    here = make_runner(tmp_path / "here", seeds=[0, 1], length=LENGTH)
    there = make_runner(tmp_path / "there", **{"length": LENGTH, "seeds": [0], **changes})
    write_json(there.workspace.results / EXPERIMENT, there.experiment.to_dict())
    for cell in there.cells:
        keep(there.workspace.results, {cell.name: (result_of(cell), rows_of(cell, {"Dice": np.ones(1)}, ["x"]))})
    with pytest.raises(BenchmarkError, match=message):
        add_results(there.workspace.results, here, here.cells)
    assert read_kept(here.workspace.results) == {}


def test_an_arm_with_other_settings_is_refused_and_one_that_is_not_added_is_not_looked_at(raw, tmp_path):
    there = finished(tmp_path, "there", 0.9, seeds=[0])
    changed = {"name": "resenc_m", "like": "resenc_m", "plans": {"batch_size": 4}}
    here = make_runner(tmp_path / "here", arms=["nnunet", changed], seeds=[0], length=LENGTH)
    with pytest.raises(BenchmarkError, match=r"resenc_m.* differs in plans of the arm"):
        add_results(there.workspace.results, here, here.cells)
    assert len(add_results(there.workspace.results, here, here.cells[:1])) == 1


def test_only_random_weights_are_added_from_another_budget_of_pretraining(raw, tmp_path):
    arms = ["scratch", "swinfuse"]
    there = finished(tmp_path, "there", 0.9, arms=arms, seeds=[0], pretraining={**PRETRAINING, "steps": 2})
    here = make_runner(tmp_path / "here", arms=arms, seeds=[0], length=LENGTH, pretraining={**PRETRAINING, "steps": 9})
    with pytest.raises(BenchmarkError, match=r"differs in pretraining; .*--cell"):
        add_results(there.workspace.results, here, here.cells)
    assert [cell.arm for cell in add_results(there.workspace.results, here, here.cells[:1])] == ["scratch"]


def test_other_labelled_cases_are_refused(raw, tmp_path):
    there = finished(tmp_path, "there", 0.9, seeds=[0])
    here = make_runner(tmp_path / "here", seeds=[0], length=LENGTH)
    path = there.workspace.results / FILE
    stored = read_json(path)
    for split in next(iter(stored.values())).values():
        split["train"] = split["train"][1:]
    write_json(path, stored)
    with pytest.raises(BenchmarkError, match=r"the split of nnunet__.* is another one than here"):
        add_results(there.workspace.results, here, here.cells)


def test_the_command_adds_several_folders(raw, tmp_path, capsys):
    folders = [finished(tmp_path, f"seed_{seed}", 0.5, seeds=[seed]).workspace.results for seed in (0, 1)]
    here = make_runner(tmp_path / "here", seeds=[0, 1, 2], length=LENGTH)
    write_json(tmp_path / "made.json", here.experiment.to_dict())
    words = [str(tmp_path / "made.json"), "-o", str(here.workspace.root), "--cell", "nnunet__*"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--add_results", *map(str, folders)])
    assert capsys.readouterr().out.count(": 1 cell added to ") == 2
    assert {(entry["cell"]["arm"], entry["cell"]["seed"]) for entry in read_kept(here.workspace.results).values()} == {
        ("nnunet", 0), ("nnunet", 1),
    }  # fmt: skip
