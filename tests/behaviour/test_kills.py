"""SIGKILL at random moments, a few of the many that `python -m tests.interruption` makes: nothing is lost."""

import random

import pytest

from tests.interruption import fine_tuning, inference

pytestmark = pytest.mark.slow


def test_a_killed_prediction_leaves_whole_masks_and_goes_on(tmp_path):
    inference.run_prediction(tmp_path, 2, random.Random(1))


def test_a_killed_export_leaves_the_zip_before(tmp_path):
    inference.run_export(tmp_path, 2, random.Random(1))


def test_a_killed_training_resumes_and_ends_with_a_final_checkpoint(tmp_path):
    fine_tuning.run(tmp_path, 1, random.Random(1))
