import json
import os

import pytest

from nnunetv2_swinfuse.discovery.register import external_trainers_folder
from nnunetv2_swinfuse.training.train import TrainingInputError, complete, main, make_trainers_visible

SWINFUSE, STOCK = "nnUNetSwinFUSEPlans", "nnUNetPlans"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A preprocessed dataset with both plans."""
    folder = tmp_path / "Dataset904_Synthetic"
    folder.mkdir()
    for name in (SWINFUSE, STOCK):
        (folder / f"{name}.json").write_text(json.dumps({"configurations": {"2d": {}, "3d_fullres": {}}}))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    return folder


def test_trainer_and_plans_are_filled_in_and_named(dataset, capsys):
    words = ["904", "3d_fullres", "0"]
    assert complete(words) == ["-tr", "nnUNetTrainerSwinFUSE", "-p", SWINFUSE, *words]
    assert capsys.readouterr().out == f"swinfuse_train: training with {SWINFUSE}; -p names others.\n"
    (dataset / f"{SWINFUSE}.json").unlink()
    assert complete(words) == ["-tr", "nnUNetTrainerSwinFUSE", "-p", STOCK, *words]
    assert f"training with {STOCK};" in capsys.readouterr().out
    complete([*words, "-p", STOCK])
    assert not capsys.readouterr().out


@pytest.fixture
def train_fold(dataset):
    """Leaves a checkpoint of fold 0; the folder of results is also that of the preprocessed data here."""

    def leave(plans, trainer="nnUNetTrainerSwinFUSE", configuration="3d_fullres"):
        fold = dataset / f"{trainer}__{plans}__{configuration}" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_best.pth").touch()

    return leave


@pytest.mark.parametrize(("used", "default"), [(STOCK, SWINFUSE), (SWINFUSE, STOCK)])
def test_a_model_of_the_other_plans_is_not_left_without_being_asked(dataset, train_fold, used, default):
    train_fold(used)
    if default == STOCK:
        (dataset / f"{SWINFUSE}.json").unlink()
    words = ["904", "3d_fullres", "0", "--c"]
    with pytest.raises(TrainingInputError, match=f"trained with {used}.* -p {used} for that model, -p {default} for a"):
        complete(words)
    assert complete([*words, "-p", default])[3] == default
    train_fold(default)
    assert complete(words)[3] == default


def test_models_of_other_trainers_and_configurations_do_not_count(train_fold):
    train_fold(STOCK, trainer="nnUNetTrainer")
    train_fold(STOCK, configuration="3d_lowres")
    assert complete(["904", "3d_fullres", "0"])[3] == SWINFUSE
    with pytest.raises(TrainingInputError, match=r"nnUNetTrainer__nnUNetPlans__3d_fullres: its folds .fold_0. were"):
        complete(["904", "3d_fullres", "0", "-tr", "nnUNetTrainer"])


@pytest.mark.parametrize(
    "words",
    [
        ["904", "3d_fullres", "all", "-tr", "nnUNetTrainer", "-p", STOCK, "--npz", "--c", "-num_gpus", "2"],
        ["--val", "-device", "cpu", "Dataset904_Synthetic", "3d_fullres", "0", "--disable_checkpointing"],
        ["-pretrained_weights", "file.pth", "904", "2d", "3", "--val_best"],
    ],
)
def test_what_is_given_comes_last_and_unchanged(dataset, words):
    filled = complete(words)
    assert filled[-len(words) :] == words
    assert filled[: -len(words)] == ["-tr", "nnUNetTrainerSwinFUSE", "-p", STOCK if STOCK in words else SWINFUSE]


def test_incomplete_commands_are_left_to_nnunet(dataset):
    assert complete(["904", "3d_fullres"])[-2:] == ["904", "3d_fullres"]


def test_damaged_plans_are_named(dataset):
    (dataset / f"{SWINFUSE}.json").write_text("{")
    with pytest.raises(TrainingInputError, match=r"nnUNetSwinFUSEPlans.json: damaged.*swinfuse_plan_and_preprocess -d"):
        complete(["904", "3d_fullres", "0"])


def test_an_existing_variable_is_kept_and_nothing_is_added_twice(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    make_trainers_visible()
    make_trainers_visible()
    assert os.environ["nnUNet_extTrainer"] == os.pathsep.join(["/mine", str(external_trainers_folder())])


@pytest.mark.parametrize(
    ("configuration", "variable", "message"),
    [
        ("2d", None, "SwinFUSE is for 3d configurations"),
        ("3d_fullres", "SWINFUSE_LEARNING_RATE", "SWINFUSE_LEARNING_RATE is no setting"),
        ("3d_fullres", "SWINFUSE_INITIAL_LR", "'fast'; expected a float"),
        ("3d_fullres", "SWINFUSE_CHECKPOINT", "fast"),
    ],
)
def test_what_a_user_can_put_right_is_said_without_a_traceback(
    published, configuration, variable, message, monkeypatch, capsys
):
    if variable:
        monkeypatch.setenv(variable, "fast")
    monkeypatch.setattr("sys.argv", ["swinfuse_train"])
    # nnU-Net takes all cores for a training on the CPU.
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    with pytest.raises(SystemExit) as stopped:
        main(["901", configuration, "0", "-device", "cpu"])
    assert stopped.value.code == 2
    error_output = capsys.readouterr().err
    assert error_output.startswith("swinfuse_train: ")
    assert message in error_output
    assert len(error_output.splitlines()) == 1
