import pytest

from nnunetv2_swinfuse.benchmark.cells import all_cells, read_results
from nnunetv2_swinfuse.benchmark.comparability import check_records, check_rows, reasons_against
from nnunetv2_swinfuse.benchmark.table import read_rows
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, LENGTH, fill, make_experiment, noisy, result_of

COMMAND = ["swinfuse_benchmark", "made.json"]
SAW = {"sha256": "e" * 64, "saw": ["Dataset901_Made/case_001"], "recipe": "swinfuse", "seconds": 1.0}


def reasons(tmp_path, changes=None, skip=(), **entries):
    experiment = make_experiment(**entries)
    workspace, cells = fill(experiment, tmp_path, noisy, changes, skip)
    arms = [[cell for cell in cells if cell.arm == arm] for arm in ("resenc_m", "nnunet")]
    return reasons_against(*arms, read_results(workspace, cells), experiment, COMMAND)


def test_what_is_the_same_may_be_compared(tmp_path):
    assert reasons(tmp_path) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_sha256": "x"}, "different training or test cases"),
        ({"training_sha256": "x"}, "different training images or labels"),
        ({"labels_sha256": "x"}, "different reference labels"),
        ({"images_sha256": "x"}, "different test images"),
        ({"mirroring": False}, "different test-time augmentation (false, true)"),
        ({"mirrored_training": False}, "different augmentation (false, true)"),
        ({"orientation": "RAS"}, "different orientations of the images (RAS, as_stored)"),
        ({"tolerance_mm": 2.0}, "different tolerances"),
        ({"length": {"epochs": 2}}, "different lengths of training"),
        ({"settings": {"initial_lr": 1}}, "different settings"),
        (
            {"checkpoint": "checkpoint_best.pth"},
            "resenc_m: evaluated checkpoint_best.pth, expected checkpoint_final.pth",
        ),
        ({"versions": {"torch": "2.4"}}, "different versions"),
    ],
)
def test_refusals(tmp_path, change, message):
    found = reasons(tmp_path, lambda cell: change if cell.arm == "resenc_m" else {})
    assert any(message in reason for reason in found), found


def test_records_of_before_an_entry_existed_are_compared_by_what_it_was(tmp_path):
    before = {"mirrored_training": True, "orientation": "as_stored"}
    assert reasons(tmp_path, lambda cell: before if cell.arm == "resenc_m" else {}) == ()
    unknown = {"training_sha256": None}
    assert reasons(tmp_path / "other", lambda cell: unknown if cell.arm == "resenc_m" else {}) == ()


@pytest.mark.parametrize(
    ("trainers", "widths", "message"),
    [
        # Before plans named the width it was half the feature size, and records do not tell it.
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEScratch"), (16, "-"), "different widths at full resolution"),
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEScratch"), (16, 6), "different widths at full resolution"),
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEScratch"), (16, 16), None),
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainer"), (16, "-"), None),
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainer"), (16, None), None),
        # A residual backbone, whose network has no such argument.
        (("nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSE"), (16, None), None),
    ],
)
def test_swinfuse_networks_of_different_widths_are_not_compared(tmp_path, trainers, widths, message):
    def changes(cell):
        second = cell.arm == "nnunet"
        width = {} if widths[second] == "-" else {"stem_features": widths[second]}
        return {"arm": {"name": cell.arm, "trainer": trainers[second]}, **width}

    found = reasons(tmp_path, changes)
    assert (found == ()) == (message is None)
    assert all(message in reason for reason in found)


def test_runs_of_different_widths_are_no_arm(tmp_path):
    def changes(cell):
        return {"stem_features": 16} if (cell.arm, cell.seed) == ("resenc_m", 2) else {}

    assert any("its runs have different widths at full resolution" in reason for reason in reasons(tmp_path, changes))


def test_two_machines_with_different_plans(tmp_path):
    def changes(cell):
        return {"plans_sha256": "q" * 64, "machine": "there"} if (cell.arm, cell.seed) == ("resenc_m", 2) else {}

    (reason,) = reasons(tmp_path, changes)
    assert reason == "resenc_m: its runs have different plans (pppppppp..., qqqqqqqq...; run on here and there)"


def test_two_machines_with_different_versions(tmp_path):
    found = reasons(tmp_path, lambda cell: {"versions": {"torch": "2.4"}} if cell.seed == 2 else {})
    assert {reason.split(":")[0] for reason in found} == {"resenc_m", "nnunet"}
    assert all("different versions" in reason for reason in found)


def test_runs_with_different_encoders(tmp_path):
    found = reasons(tmp_path, lambda cell: {"encoder": {**SAW, "saw": [], "sha256": str(cell.seed)}})
    assert "resenc_m: its runs started from different encoders" in found


def test_random_weights_do_not_depend_on_the_encoder_that_gave_the_sizes(tmp_path):
    scratch = {"name": "resenc_m", "trainer": "nnUNetTrainerSwinFUSEScratch"}

    def of_seed(cell):
        return {"encoder": {**SAW, "sha256": str(cell.seed)}, "arm": scratch} if cell.arm == "resenc_m" else {}

    assert reasons(tmp_path, of_seed, arms=[scratch, "nnunet"]) == ()


def test_runs_with_an_encoder_of_each_seed(tmp_path):
    def of_seed(cell):
        return {"encoder": {**SAW, "saw": [], "sha256": str(cell.seed), "seed": cell.seed}}

    def of_fold(cell):
        encoder = of_seed(cell)["encoder"]
        return {"encoder": {**encoder, "sha256": f"{cell.seed}{cell.fold}"}}

    per_seed = {"pretraining": {"collections": ["CTMR"], "steps": 1, "per_seed": True}}
    assert reasons(tmp_path / "seeds", of_seed, **per_seed) == ()
    folds = {"folds": [0, 1], "test_cases": None}
    found = reasons(tmp_path / "folds", of_fold, **folds, **per_seed)
    assert "resenc_m: its runs started from different encoders" in found


@pytest.mark.parametrize("settings", [["a", "b", "a"], ["a", "a", "a"], [None, "a", "a"]])
def test_encoders_of_a_recipe_that_changed_between_two_seeds(tmp_path, settings):
    def of_seed(cell):
        encoder = {**SAW, "saw": [], "sha256": str(cell.seed), "seed": cell.seed}
        return {"encoder": {**encoder, "learning_settings_sha256": settings[cell.seed] and settings[cell.seed] * 64}}

    per_seed = {"pretraining": {"collections": ["CTMR"], "steps": 1, "per_seed": True}}
    found = reasons(tmp_path, of_seed, **per_seed)
    different = "resenc_m: its encoders were pretrained with different settings (aaaaaaaa..., bbbbbbbb...)"
    assert [reason.startswith(different) for reason in found if "resenc_m" in reason] == [True] * ("b" in settings)


def test_test_cases_that_pretraining_saw(tmp_path):
    changes = lambda cell: {"encoder": SAW if cell.arm == "resenc_m" else None}  # noqa: E731
    (reason,) = reasons(tmp_path / "inductive", changes)
    assert "its pretraining saw 1 test cases (Dataset901_Made/case_001...)" in reason
    assert '"transductive": true' in reason
    assert reasons(tmp_path / "transductive", changes, transductive=True) == ()


def test_the_twin_from_scratch_saw_nothing(tmp_path):
    assert reasons(tmp_path, lambda cell: {"encoder": SAW, "arm": {"trainer": "nnUNetTrainerSwinFUSEScratch"}}) == ()


def test_an_unfinished_cell_comes_with_the_command_that_finishes_it(tmp_path):
    name = "nnunet__Dataset901_Made__3_labels__seed_1__fold_0"
    (reason,) = reasons(tmp_path, skip=(name,))
    assert reason == f"{name} is not finished; run: swinfuse_benchmark made.json --cell {name}"


def test_missing_folds(tmp_path):
    name = "resenc_m__Dataset901_Made__3_labels__seed_0__fold_4"
    (reason,) = reasons(tmp_path, skip=(name,), folds=[0, 1, 2, 3, 4], test_cases=None, seeds=[0])
    assert name in reason


def test_rows_of_other_cases_than_the_splits(tmp_path):
    experiment = make_experiment()
    workspace, cells = fill(experiment, tmp_path, noisy)
    rows = read_rows(workspace.results)
    check_rows(rows, cells, workspace.results)
    gone = rows["case"].iloc[0]
    less = rows[(rows["case"] != gone) | (rows["cell"] != cells[0].name)]
    with pytest.raises(
        BenchmarkError, match=f"{cells[0].name}: the table has 9 cases, its split .* 10; differing: {gone}"
    ):
        check_rows(less, cells, workspace.results)
    (workspace.results / "splits.json").unlink()
    with pytest.raises(BenchmarkError, match="kept and committed with the per-case table"):
        check_rows(rows, cells, workspace.results)


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({}, ""),
        ({"length": {**LENGTH, "epochs": 2}}, "length"),
        ({"plans": {"batch_size": 4}, "spacing": [1.0, 1.0, 1.0]}, "spacing, plans"),
        ({"arm": {"name": "nnunet", "trainer": "nnUNetTrainerDA5"}}, "trainer of the arm"),
        ({"arm": {"name": "nnunet", "pretraining": {"dim": "none"}}}, "pretraining of the arm"),
    ],
)
def test_finished_cells_must_be_those_of_the_experiment(recorded, message):
    experiment = make_experiment(arms=["nnunet"], length=LENGTH)
    cells = all_cells(experiment, [DATASET])
    results = {cells[1].name: result_of(cells[1], **recorded)}
    if not message:
        check_records(experiment, cells, results)
        return
    with pytest.raises(
        BenchmarkError, match=f"{cells[1].name} is done, but of an experiment that differs in {message}. Use"
    ):
        check_records(experiment, cells, results)
