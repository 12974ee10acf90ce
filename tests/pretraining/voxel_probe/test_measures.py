import math

import pytest
import torch

from pretraining.voxel_probe.measures import area, measure_case


def test_area_of_known_orders():
    positive = torch.tensor([True, True, False, False])
    assert area(torch.tensor([4.0, 3, 2, 1]), positive) == 1
    assert area(torch.tensor([1.0, 2, 3, 4]), positive) == 0
    assert area(torch.tensor([4.0, 1, 2, 3]), positive) == 0.5
    assert area(torch.zeros(4), positive) == 0.5


def measures(logits, classes, used=None, body=None):
    used = torch.ones_like(classes, dtype=torch.bool) if used is None else used
    result = measure_case(logits, classes, used, used if body is None else body, ("liver", "spleen"))
    return {(label, metric): value for label, metric, value in result}


def test_measures_of_a_table_computed_by_hand():
    classes = torch.tensor([0, 0, 1, 1]).reshape(1, 1, 4)
    logits = torch.zeros(3, 1, 1, 4)
    logits[1, 0, 0, 1:3] = math.log(2)  # one right, one wrong
    result = measures(logits, classes)
    assert result["liver", "dice"] == pytest.approx(0.5)
    assert result["liver", "nll"] == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert result["liver", "auc"] == pytest.approx(0.5)
    assert result["all", "nll"] == pytest.approx((2 * math.log(3) + math.log(4) + math.log(2)) / 4)
    assert not any(label == "spleen" for label, _ in result)


def test_unused_voxels_do_not_count_and_auc_is_of_the_body():
    classes = torch.tensor([0, 0, 1, 0]).reshape(1, 1, 4)
    logits = torch.zeros(3, 1, 1, 4)
    logits[1] = torch.tensor([9.0, 3.0, 2.0, 1.0])
    used = torch.tensor([False, True, True, True]).reshape(1, 1, 4)
    result = measures(logits, classes, used, used & torch.tensor([True, False, True, True]))
    assert result["liver", "dice"] == pytest.approx(2 * 1 / (3 + 1))
    assert result["liver", "auc"] == 1
    assert measures(logits, classes, used)["liver", "auc"] == 0.5
