import json

import pytest

from .loss_curve import RECORDED, TOLERANCE, run_curve

pytestmark = pytest.mark.slow


def differences(curve, recorded):
    """Relative differences of all values."""
    assert [values.keys() for values in curve] == [values.keys() for values in recorded]
    return [
        abs(values[name] - expected[name]) / abs(expected[name])
        for values, expected in zip(curve, recorded, strict=True)
        for name in expected
    ]


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def test_losses_are_the_recorded_ones(recorded):
    curve = run_curve()
    assert max(differences(curve, recorded)) < TOLERANCE, "meant? python -m tests.behaviour.loss_curve"


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"corrupted_share": 0.35}, {"temperature": 0.45}, {"weight_decay": 3.0}]
)
def test_a_changed_computation_is_noticed(recorded, changes):
    curve = run_curve(**changes)
    same_names = [values.keys() for values in curve] == [values.keys() for values in recorded]
    assert not same_names or max(differences(curve, recorded)) > 2 * TOLERANCE
