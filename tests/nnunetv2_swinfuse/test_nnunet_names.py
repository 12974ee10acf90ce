"""The names are nnU-Net's own: read from the installed nnunetv2, not repeated here."""

import inspect

import nnunetv2.paths
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_swinfuse import nnunet_names
from nnunetv2_swinfuse.planning.planner import nnUNetPlannerSwinFUSE
from nnunetv2_swinfuse.training.trainer import nnUNetTrainerSwinFUSE


def test_variables_are_those_that_nnunet_reads():
    variables = {value.env_var_name for value in vars(nnunetv2.paths).values() if hasattr(value, "env_var_name")}
    assert {*nnunet_names.PATHS, nnunet_names.EXTERNAL_TRAINERS} <= variables


def test_stock_plans_and_trainer_are_nnunets_defaults():
    defaults = {name: parameter.default for name, parameter in inspect.signature(run_training).parameters.items()}
    assert defaults["plans_identifier"] == nnunet_names.STOCK_PLANS
    assert defaults["trainer_class_name"] == nnunet_names.STOCK_TRAINER == nnUNetTrainer.__name__


def test_our_names_are_those_of_our_classes():
    assert nnUNetTrainerSwinFUSE.__name__ == nnunet_names.TRAINER
    planner = inspect.signature(nnUNetPlannerSwinFUSE.__init__).parameters["plans_name"].default
    assert planner == nnunet_names.SWINFUSE_PLANS
