import signal

import numpy as np
import pytest

from nnunetv2_swinfuse.benchmark.cells import CASES, FAILURE, RESULT, Workspace
from nnunetv2_swinfuse.benchmark.cli import (
    find_cells,
    listing,
    main,
    warnings_before,
)
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.metrics import METRICS
from nnunetv2_swinfuse.benchmark.raw_dataset import find_dataset
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.splits import key
from nnunetv2_swinfuse.benchmark.table import write_table
from nnunetv2_swinfuse.errors import BenchmarkError

from .runners import make_runner
from .tables import DATASET, LENGTH, make_experiment, result_of, rows_of


@pytest.fixture(autouse=True)
def termination():
    """`main` takes SIGTERM; the tests after these get theirs back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_list_tells_what_is_left_and_what_it_costs(raw, cells_run, tmp_path):
    runner = make_runner(tmp_path)
    runner.run(runner.cells[:1])
    text = listing(runner, ["swinfuse_benchmark", "made.json"])
    assert text.splitlines()[0].split() == ["done", runner.cells[0].name, "2", "min"]
    assert text.count("waiting") == 5
    assert f"nnunet on {DATASET}: 2 cells, 2 min each (measured)" in text
    assert f"resenc_m on {DATASET}: 3 cells, unknown until the first has run (not planned yet: --prepare_only)" in text
    assert "Together 3 min, one after another, and what is unknown." in text


@pytest.mark.slow
def test_the_list_warns_where_no_difference_can_be_shown(raw, tmp_path):
    def lines(**changes):
        return warnings_before(make_runner(tmp_path / str(len(changes)), seeds=[0, 1], **changes))

    assert lines(test_cases=6) == []
    (line,) = lines(test_cases=6, labels=[3, "all"])
    assert line.startswith(DATASET)
    assert "With 6 test cases in a family of 2 comparisons the Wilcoxon test cannot reach p < 0.05" in line
    assert "no difference can be shown" in listing(make_runner(tmp_path / "few", test_cases=5), ["swinfuse_benchmark"])


@pytest.mark.slow
def test_the_list_warns_of_seeds_that_drew_the_same_cases(raw, tmp_path):
    # One of two cases each, so that five seeds draw two sets.
    runner = make_runner(tmp_path, test_cases=len(find_dataset(901).images) - 2, labels=[1, "all"], seeds=range(5))
    of_seed = {seed: runner.splits[DATASET][key(1, seed, 0)].train for seed in range(5)}
    groups = [[str(seed) for seed in of_seed if of_seed[seed] == train] for train in dict.fromkeys(of_seed.values())]
    assert len(groups) == 2
    lines = [line for line in warnings_before(runner) if "same labelled cases" in line]
    expected = [f"{DATASET}, 1 labels: seeds {', '.join(group)} drew" for group in groups if len(group) > 1]
    assert [line.split(" the same")[0] for line in lines] == expected


@pytest.mark.parametrize("test_cases", ["5", "6"])
def test_a_run_warns_first_where_no_difference_can_be_shown(raw, capsys, monkeypatch, test_cases):
    monkeypatch.setattr(Runner, "prepare", lambda self, cells: None)
    flags = ["-d", "901", "--arms", "nnunet", "resenc_m", "--labels", "3", "--test_cases", test_cases, "-device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--prepare_only"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert lines[-1].startswith("Prepared: ")
    assert ("no difference can be shown" in lines[0]) == (test_cases == "5")


def test_the_list_shows_why_a_cell_failed(raw, tmp_path):
    runner = make_runner(tmp_path)
    write_json(runner.workspace.cell(runner.cells[1]) / FAILURE, {"message": "out of memory\nmore"})
    line = listing(runner, ["swinfuse_benchmark"]).splitlines()[1]
    assert line == f"failed   {runner.cells[1].name}  out of memory"


def test_a_changed_experiment_does_not_mix_with_what_is_kept(raw, capsys, monkeypatch):
    monkeypatch.setattr(Runner, "prepare", lambda self, cells: None)
    flags = ["-d", "901", "--arms", "nnunet", "resenc_m", "--labels", "3", "--test_cases", "4", "-device", "cpu"]

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main([*flags, "--prepare_only", *options])
        return ended.value.code, capsys.readouterr().err

    assert run("--epochs", "2")[0] == 0
    # More seeds are another sitting of the same experiment; another length is not.
    assert run("--epochs", "2", "--seeds", "0", "1", "2", "3")[0] == 0
    status, message = run("--epochs", "3")
    assert status == 2
    assert "differs in length" in message


@pytest.mark.parametrize("option", [["--report_only"], []])
def test_a_report_has_the_cells_that_a_killed_run_finished_but_did_not_keep(raw, tmp_path, option):
    # Also with a results folder that is new, and has no splits.
    experiment = make_experiment(test_cases=4, seeds=[0], length=LENGTH)
    runner = Runner(experiment, Workspace(tmp_path / "work", tmp_path / "work" / "results"))
    for cell in runner.cells:
        cases = list(runner.splits_of(cell)[0].test)
        write_table(rows_of(cell, dict.fromkeys(METRICS, np.full(4, 0.5)), cases), runner.workspace.cell(cell) / CASES)
        write_json(runner.workspace.cell(cell) / RESULT, result_of(cell))
    write_json(tmp_path / "made.json", experiment.to_dict())
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "made.json"), "-o", str(runner.workspace.root), "--without_pictures", *option])
    assert ended.value.code == 0
    report = (runner.workspace.results / "report.md").read_text()
    assert "2 of 2 cells are done" in report
    assert "resenc_m against nnunet" in report


def test_a_changed_experiment_does_not_continue_the_cells_for_other_results(raw, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Runner, "prepare", lambda self, cells: None)
    flags = ["-d", "901", "--arms", "nnunet", "--labels", "3", "--test_cases", "4", "-device", "cpu", "--prepare_only"]
    for epochs, results, status in (("2", "one", 0), ("3", "two", 2), ("2", "two", 0)):
        with pytest.raises(SystemExit) as ended:
            main([*flags, "--epochs", epochs, "-o", str(tmp_path / "work"), "--results", str(tmp_path / results)])
        assert ended.value.code == status
        assert ("differs in length" in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name an experiment's file, or -d DATASETS and --arms ARMS"),
        (["-d", "777", "--arms", "nnunet"], f"0 folders are dataset 777, expected one; it has {DATASET}"),
        (["-d", "901", "--arms", "nnunet", "--labels", "9", "--test_cases", "4"], "9 labelled cases asked for, but 8"),
        (["-d", "901", "--arms", "nnunet", "resenc_m", "--test_cases", "4", "--cell", "x"], "--cell x: no such cell"),
        (["-d", "901", "--arms", "nnunet", "--test_cases", "4", "-num_workers", "0"], "-num_workers is 0"),
        (["none.json"], "none.json: cannot be read"),
        (["none.json", "--seeds", "1"], "change seeds there, not on the command line"),
    ],
)
def test_bad_command_lines(raw, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_cells_are_found_by_name_and_by_pattern(raw, tmp_path):
    cells = make_runner(tmp_path).cells
    assert find_cells(cells, cells[3].name) == [cells[3]]
    seed_0 = [cell for cell in cells if cell.seed == 0]
    assert 0 < len(seed_0) < len(cells)
    assert find_cells(cells, "*__seed_0__*") == seed_0
    assert find_cells(cells, "*") == cells
    with pytest.raises(BenchmarkError, match="no such cell"):
        find_cells(cells, "seed_0")


def test_jobs_of_a_cluster_leave_out_pictures_if_told_so(raw, tmp_path):
    write_json(tmp_path / "made.json", make_experiment(test_cases=4, seeds=[0]).to_dict())
    for options in ([], ["--without_pictures"]):
        with pytest.raises(SystemExit, match="0"):
            main([str(tmp_path / "made.json"), "-o", str(tmp_path / "work"), "--slurm", *options])
        script = (tmp_path / "work" / "submit.sh").read_text()
        assert ("--without_pictures --report_only" in script) == bool(options)


def test_an_interrupted_run_exits_with_130(raw, capsys, monkeypatch):
    def interrupted(self, cells):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "prepare", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["-d", "901", "--arms", "nnunet", "--test_cases", "4", "-device", "cpu"])
    assert ended.value.code == 130
    assert "run the same command again to resume" in capsys.readouterr().err
