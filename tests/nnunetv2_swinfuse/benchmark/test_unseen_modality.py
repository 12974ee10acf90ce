import json
import shlex
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from nnunetv2_swinfuse.benchmark import unseen_modality
from nnunetv2_swinfuse.benchmark.cell_run import FINAL
from nnunetv2_swinfuse.benchmark.cells import RESULT
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.table import rows_frame
from nnunetv2_swinfuse.benchmark.unseen_modality import format_comparisons, format_means, main, pairs_to_test
from nnunetv2_swinfuse.benchmark.unseen_table import SEPARATOR, TABLE, add_rows, read_rows

from .runners import make_runner
from .tables import COMMAND, DATASET, LENGTH, result_of

OTHER = "Dataset902_Other"
BOTH = f"{DATASET}{SEPARATOR}{OTHER}"


def rows(runner, arm, difference, cases=4, empty=None):
    """Dice of 0.5, more in every second case, and a known difference."""
    lines = []
    for cell in (cell for cell in runner.cells if cell.arm == arm and cell.dataset == DATASET):
        for case in range(cases):
            for name, shift in (("shell", 0.1), ("core", -0.1)):
                missing = (empty or {}).get((case, name), "")
                dice = 0.5 + 0.1 * (case % 2) + difference + shift
                value = {"": dice, "both": float("nan"), "invented": 0.0}[missing]
                of_case = {"case": f"case_{cell.fold}_{case}", "class": name, "metric": "Dice", "value": value}
                of_cell = {"cell": cell.name, "arm": arm, "dataset": BOTH, "labels": str(cell.labels)}
                lines.append({**of_cell, "seed": cell.seed, "fold": cell.fold, **of_case, "empty": missing})
    return rows_frame(lines)


@pytest.fixture
def two_datasets(raw):
    """The raw dataset, and one of the same cases with other names and numbers of classes."""
    other = raw.parent / OTHER
    shutil.copytree(raw, other)
    content = json.loads((other / "dataset.json").read_text())
    write_json(other / "dataset.json", {**content, "labels": {"background": 0, "Core": 1, "Shell": 2}})


def test_means_and_differences_are_those_of_a_table_with_a_known_answer(two_datasets, tmp_path):
    runner = make_runner(tmp_path, datasets=[901, 902])
    results = {cell.name: result_of(cell) for cell in runner.cells}
    path = tmp_path / TABLE
    add_rows(path, rows(runner, "nnunet", 0.0))
    pair = [("resenc_m", "nnunet")]
    assert "no model of resenc_m" in format_comparisons(read_rows(path), pair, runner, results, COMMAND)
    add_rows(path, rows(runner, "resenc_m", 0.05))
    table = read_rows(path)
    assert len(table) == 2 * 3 * 4 * 2
    means = format_means(table)
    assert "| nnunet   | 0.550 | 0.550, 0.550, 0.550 |" in means
    assert "| resenc_m | 0.600 |" in means
    compared = format_comparisons(table, pair, runner, results, COMMAND)
    assert "+0.050 [+0.050, +0.050] | +0.050, +0.050, +0.050 |" in compared
    # Rows of a cell that was tested again replace the old ones.
    add_rows(path, rows(runner, "resenc_m", 0.1))
    assert len(read_rows(path)) == len(table)
    assert "+0.100 [" in format_comparisons(read_rows(path), pair, runner, results, COMMAND)
    # What the benchmark does not compare is not compared here either.
    unlike = {name: {**r, "mirroring": r["arm"]["name"] == "nnunet"} for name, r in results.items()}
    assert "are not compared: seed 0" in format_comparisons(table, pair, runner, unlike, COMMAND)


def test_folds_have_other_cases_and_all_count(two_datasets, tmp_path):
    runner = make_runner(tmp_path, datasets=[901, 902], folds=[0, 1], test_cases=None)
    results = {cell.name: result_of(cell) for cell in runner.cells}
    for arm, difference in (("nnunet", 0.0), ("resenc_m", 0.05)):
        add_rows(tmp_path / TABLE, rows(runner, arm, difference))
    compared = format_comparisons(read_rows(tmp_path / TABLE), [("resenc_m", "nnunet")], runner, results, COMMAND)
    assert "+0.050 [+0.050, +0.050]" in compared
    # As long as a fold of a seed is not there, the seed has no mean and the arms are not compared.
    table = read_rows(tmp_path / TABLE)
    late = next(cell.name for cell in runner.cells if (cell.arm, cell.seed, cell.fold) == ("resenc_m", 2, 1))
    table = table[table["cell"] != late]
    assert "| resenc_m | 0.600 | 0.600, 0.600 " in format_means(table)
    assert f"no model of {late}" in format_comparisons(table, [("resenc_m", "nnunet")], runner, results, COMMAND)
    table = table[~((table["fold"] == 0) & (table["seed"] < 2))]
    assert "no seed has all folds" in format_means(table)


def test_comparisons_that_cannot_be_made_yet_belong_to_the_family(two_datasets, tmp_path):
    def verdict(**changes):
        runner = make_runner(tmp_path, datasets=[901, 902], **changes)
        results = {cell.name: result_of(cell) for cell in runner.cells}
        tables = [rows(runner, arm, shift, cases=7) for arm, shift in (("nnunet", 0.0), ("resenc_m", 0.05))]
        table = pd.concat(tables, ignore_index=True)
        if "labels" in changes:
            table = table[table["labels"] == "3"]
        return format_comparisons(table, [("resenc_m", "nnunet")], runner, results, COMMAND).splitlines()[2]

    # With 7 cases, p is 2 ** -6 by Wilcoxon. Trained on either dataset, that is a family of two, or with a second
    # number of labels of four.
    assert verdict().endswith("| better  |")
    assert "not shown" in verdict(labels=[3, 4])


def test_a_class_that_only_one_arm_invents_counts_for_the_other(two_datasets, tmp_path):
    runner = make_runner(tmp_path, datasets=[901, 902])
    results = {cell.name: result_of(cell) for cell in runner.cells}
    add_rows(tmp_path / TABLE, rows(runner, "nnunet", 0.0, cases=1, empty={(0, "core"): "invented"}))
    add_rows(tmp_path / TABLE, rows(runner, "resenc_m", 0.0, cases=1, empty={(0, "core"): "both"}))
    compared = format_comparisons(read_rows(tmp_path / TABLE), [("resenc_m", "nnunet")], runner, results, COMMAND)
    # Means of (0.6, 1) and of (0.6, 0).
    assert "+0.500" in compared


@pytest.fixture
def one_model(two_datasets, tmp_path):
    """A finished cell of each dataset; the model of the first is there."""
    runner = make_runner(tmp_path, datasets=[901, 902], arms=["nnunet"], seeds=[0], length=LENGTH)
    for cell in runner.cells:
        write_json(runner.workspace.cell(cell) / RESULT, result_of(cell))
    model = runner.cell_run(runner.cells[0]).model
    model.mkdir(parents=True)
    (model / FINAL).touch()
    write_json(runner.workspace.root / "experiment.json", runner.experiment.to_dict())
    return runner


def test_cells_are_tested_on_the_other_datasets_only(one_model):
    names = {cell.name for cell in one_model.cells}
    tested = [(cell.dataset, other.name) for cell, other in pairs_to_test(one_model, dict.fromkeys(names))]
    assert tested == [(DATASET, OTHER), (OTHER, DATASET)]
    assert pairs_to_test(one_model, {}) == []


def test_rows_are_added_once_and_missing_models_are_counted(one_model, monkeypatch, capsys):
    tested = []

    def dice(predictor, images, label, code, classes, ignored, rescale_from):
        tested.append(label.name)
        assert classes == {"shell": (1, 2), "core": (2, 1)}
        value = 0.25 if rescale_from is None else 0.75
        yield from ({"class": name, "value": value, "empty": ""} for name in classes)

    monkeypatch.setattr(unseen_modality, "dice_of_case", dice)
    manager = SimpleNamespace(plans={"image_reader_writer": "SimpleITKIO"})
    monkeypatch.setattr(unseen_modality, "load_model", lambda run, device: SimpleNamespace(plans_manager=manager))
    root = one_model.workspace.root
    words = [str(root / "experiment.json"), "-o", str(root)]
    main(words)
    output = capsys.readouterr().out
    assert "1 models of finished cells are not in" in output
    assert OTHER in output
    assert "0.250" in output
    (split,) = one_model.splits[OTHER].values()
    assert sorted(tested) == [f"{case}.nii.gz" for case in split.test]
    main(words)
    assert len(tested) == len(split.test)
    # With rescaled intensities it is another test, whose rows stand beside the others.
    capsys.readouterr()
    main([*words, "--rescale"])
    output = capsys.readouterr().out
    assert len(tested) == 2 * len(split.test)
    assert f"{OTHER} rescaled" in output
    assert "0.750" in output
    assert "0.250" not in output


@pytest.mark.parametrize(("arms", "expected"), [([], 2), (["resenc_m"], 1)])
def test_only_the_models_of_named_arms_are_tested(two_datasets, tmp_path, monkeypatch, arms, expected):
    runner = make_runner(tmp_path, datasets=[901, 902], arms=["nnunet", "resenc_m"], seeds=[0], length=LENGTH)
    for cell in runner.cells:
        if cell.dataset == DATASET:
            write_json(runner.workspace.cell(cell) / RESULT, result_of(cell))
            model = runner.cell_run(cell).model
            model.mkdir(parents=True)
            (model / FINAL).touch()
    loaded = []
    monkeypatch.setattr(unseen_modality, "load_model", lambda run, device: loaded.append(run.cell.arm))
    monkeypatch.setattr(unseen_modality, "model_orientation", lambda predictor, images: "")
    monkeypatch.setattr(unseen_modality, "dice_of_case", lambda *of_case: [])
    file = tmp_path / "made.json"
    write_json(file, runner.experiment.to_dict())
    main([str(file), "-o", str(runner.workspace.root), *(["--arms", *arms] if arms else [])])
    assert len(loaded) == expected
    assert set(arms) <= set(loaded)


def test_a_refusal_has_the_command_that_finishes_the_cell(two_datasets, tmp_path, capsys):
    runner = make_runner(tmp_path, datasets=[901, 902], seeds=[0], length=LENGTH)
    for cell in runner.cells:
        if cell.arm == "nnunet":
            write_json(runner.workspace.cell(cell) / RESULT, result_of(cell))
    add_rows(runner.workspace.results / TABLE, rows(runner, "nnunet", 0.0))
    file, root = tmp_path / "made.json", runner.workspace.root
    write_json(file, runner.experiment.to_dict())
    for more in ([], ["--results", str(runner.workspace.results)]):
        main([str(file), "-o", str(root), *more, "--compare", "resenc_m", "nnunet"])
        command = shlex.join(["swinfuse_benchmark", str(file), "-o", str(root), *more])
        assert f"not finished; run: {command} --cell resenc_m__" in capsys.readouterr().out


def test_an_experiment_without_models_and_unknown_arms_are_refused(raw, tmp_path, capsys):
    runner = make_runner(tmp_path, arms=["nnunet"])
    experiment = runner.workspace.root / "experiment.json"
    write_json(experiment, runner.experiment.to_dict())
    for more, words in (
        ((), "run swinfuse_benchmark first"),
        (("--compare", "nnunet", "ours"), "--compare: no arm is called ours"),
        (("--arms", "nnunet", "ours"), "--arms: no arm is called ours"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([str(experiment), "-o", str(runner.workspace.root), *more])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
