from pretraining.next_commands import planning_command, training_command


def test_a_swin_encoder_needs_no_plans_of_its_own():
    assert planning_command("swin") is None
    assert training_command("swin") == "nnUNetv2_train DATASET_ID 3d_fullres 0 -tr nnUNetTrainerSwinFUSE"


def test_a_residual_encoder_is_trained_with_the_plans_that_its_planner_writes():
    assert planning_command("resenc") == "nnUNetv2_plan_and_preprocess -d DATASET_ID -pl nnUNetPlannerResEncM"
    assert training_command("resenc").endswith("-tr nnUNetTrainerSwinFUSE -p nnUNetResEncUNetMPlans")
