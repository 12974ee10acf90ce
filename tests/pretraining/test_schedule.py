import pytest

from pretraining.schedule import density_weight, learning_rate

from .synthetic import tiny


def test_rate_warms_up_to_its_peak_and_ends_near_zero():
    configuration = tiny(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, configuration) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_runs_shorter_than_their_warmup_still_learn():
    rates = [learning_rate(step, tiny(steps=1, warmup_steps=500)) for step in range(1)]
    assert rates[0] > 0


def test_density_weight_rises():
    configuration = tiny(density_weight=2.0, density_warmup_steps=4)
    assert [density_weight(s, configuration) for s in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert density_weight(0, tiny(density_weight=2.0, density_warmup_steps=0)) == 2.0
