import pytest

from pretraining.cli import main
from pretraining.next_commands import make_resume_command, planning_command, training_command

from .command_line import command


def test_a_swin_encoder_needs_no_plans_of_its_own():
    assert planning_command("swin") is None
    assert training_command("swin") == "nnUNetv2_train DATASET_ID 3d_fullres 0 -tr nnUNetTrainerSwinFUSE"


def test_a_residual_encoder_is_trained_with_the_plans_that_its_planner_writes():
    assert planning_command("resenc") == "nnUNetv2_plan_and_preprocess -d DATASET_ID -pl nnUNetPlannerResEncM"
    assert training_command("resenc").endswith("-tr nnUNetTrainerSwinFUSE -p nnUNetResEncUNetMPlans")


def test_the_resume_command_is_the_typed_one_with_c():
    typed = ["-d", "My Data", "--unpaired", "--overwrite", "--steps", "9"]
    assert make_resume_command(typed) == "swinfuse_pretrain -d 'My Data' --unpaired --steps 9 --c"


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_the_next_command_is_printed(root, capsys):
    main(command("--c"))
    out = capsys.readouterr().out
    assert "nnUNetv2_train DATASET_ID 3d_fullres 0 -tr nnUNetTrainerSwinFUSE" in out
    assert "4 patients, 4 paired, 4 CT and 4 MR volumes" in out
