import math
import re

import pytest
import torch

from pretraining.losses.density import MIN_BANDWIDTH
from pretraining.model import PretrainingModel
from pretraining.monitoring.health import attention_difference, attention_entropy, health_warnings
from pretraining.objective import evaluate

from ..synthetic import synthetic_batch, tiny


def test_entropy_of_attention_runs_from_zero_to_one():
    uniform = torch.full((1, 1, 3, 8), 1 / 8)
    certain = torch.eye(8)[None, None]
    assert attention_entropy([uniform]).item() == pytest.approx(1.0)
    assert attention_entropy([certain]).item() == pytest.approx(0.0, abs=1e-6)


def test_attention_differs_from_not_at_all_to_entirely():
    certain = torch.eye(6)[None, None].expand(2, 3, 6, 6)
    shifted = certain.roll(1, dims=-1)
    uniform = torch.full((2, 3, 6, 6), 1 / 6)
    both = torch.tensor([True, True])
    assert attention_difference([certain], [certain], both).item() == pytest.approx(0.0, abs=1e-6)
    assert attention_difference([certain], [shifted], both).item() == pytest.approx(1.0, abs=1e-6)
    # H((1 + 1/6) / 2, five times 1/12) - H(uniform) / 2, in bits.
    mixed = -(7 / 12 * math.log2(7 / 12) + 5 / 12 * math.log2(1 / 12)) - math.log2(6) / 2
    assert attention_difference([certain], [uniform], both).item() == pytest.approx(mixed, abs=1e-5)


def test_only_colocated_crops_count_and_heads_have_no_order():
    certain = torch.eye(6)[None, None].expand(2, 1, 6, 6)
    other = torch.cat([certain[:1], certain[1:].roll(1, dims=-1)])
    assert attention_difference([certain], [other], torch.tensor([True, False])).item() == pytest.approx(0, abs=1e-6)
    assert attention_difference([certain], [other], torch.tensor([False, False])) is None
    assert attention_difference([], [], torch.tensor([True])) is None
    heads = torch.softmax(torch.randn(2, 4, 6, 6), -1)
    assert attention_difference([heads], [heads.flip(1)], torch.tensor([True, True])).item() < 1e-6


def test_a_validation_measures_it_where_crops_are_colocated():
    configuration = tiny()
    model = PretrainingModel(configuration).eval()
    with torch.no_grad():
        paired = evaluate(model, synthetic_batch(), configuration, 0, None, validation=True)
        apart = evaluate(
            model,
            {**synthetic_batch(), "registered": torch.zeros(2, dtype=torch.bool)},
            configuration,
            0,
            None,
            validation=True,
        )
    assert 0 < paired.health["attention_difference"].item() < 1
    assert "attention_difference" not in apart.health


HEALTHY = {
    "dim_change": 0.1, "attention_entropy": 0.8, "attention_difference": 0.1, "feature_variance": 1.0,
    "rank_stage_1": 0.4, "bandwidth": 0.7, "divergence_single_image": 0.1, "masked_error": 0.4,
    "masked_error_of_mean": 0.7,
    "rotation": 0.5, "rotation_accuracy": 0.8, "probe_accuracy": 0.6, "cka": 0.5, "contrastive_icc": 0.6,
    "cross_modal_icc": 0.2, "contrastive_icc_adjusted": 0.5, "cross_modal_icc_adjusted": 0.3,
}  # fmt: skip
UNHEALTHY = {
    "identity": ({"dim_change": 1e-5}, "does not change its input: its relative change is 1.0e-05"),
    "uniform": ({"attention_entropy": 1.0}, "uniform"),
    "alike": ({"attention_difference": 0.0}, "attend alike"),
    "variance": ({"feature_variance": 0.0}, "collapsed"),
    "rank": ({"rank_stage_1": 0.1}, "features of stage 1 use 10%"),
    "floor": ({"bandwidth": MIN_BANDWIDTH}, "at its floor"),
    "saturated": ({"divergence_single_image": 1.0}, "saturated"),
    "inpainting": ({"masked_error": 0.8}, "no better than the mean.*0.800 against 0.700"),
    "rotation": ({"rotation_accuracy": 0.26}, "rotation is at chance: 26%"),
    "views": ({"contrastive_icc": 0.04}, "same place of two views .*correlation 0.04.. If contrastive falls"),
    "place": (
        {"cross_modal_icc": 0.96, "cross_modal_icc_adjusted": 0.2},
        "registered CT and MR agree for a large part because they say where .* 0.96, and 0.20 relative to other crops",
    ),
    "registered": ({"cross_modal_icc": -0.2}, "in registered CT and MR .*correlation -0.20.. If cross_modal falls"),
    "modality": ({"probe_accuracy": 1.0}, "tells CT from MR in 100%"),
}


def test_nothing_is_said_of_a_healthy_run_nor_of_what_was_not_measured():
    assert health_warnings(HEALTHY) == []
    assert health_warnings({}) == []


@pytest.mark.parametrize("case", UNHEALTHY)
def test_warnings_name_what_went_wrong(case):
    changes, words = UNHEALTHY[case]
    (warning,) = health_warnings({**HEALTHY, **changes})
    assert re.search(words, warning)


def test_tasks_at_chance_are_told_of_each_modality():
    parts = {
        "masked_error_CT": 0.3,
        "masked_error_MR": 0.8,
        "masked_error_of_mean_CT": 0.7,
        "masked_error_of_mean_MR": 0.7,
    }
    turns = {"rotation_accuracy_CT": 0.26, "rotation_accuracy_MR": 0.9}
    ct, mr = health_warnings({**HEALTHY, **parts, **turns})
    assert ct.startswith("rotation of CT is at chance: 26%")
    assert mr.startswith("inpainting of MR is no better than the mean of the visible voxels: 0.800 against 0.700")


def test_tasks_may_be_at_chance_in_the_beginning_and_rotation_where_it_is_no_task():
    at_chance = {**HEALTHY, "rotation_accuracy": 0.25, "masked_error": 0.9}
    assert health_warnings(at_chance, progress=0.1) == []
    assert len(health_warnings(at_chance, progress=0.5)) == 2
    del at_chance["rotation"]
    assert len(health_warnings(at_chance)) == 1
