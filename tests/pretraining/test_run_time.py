import pytest

from pretraining import run_time
from pretraining.configuration import Configuration
from pretraining.preset_files import load_preset

from .synthetic import CPU, tiny


def test_operations_grow_with_batch_and_crop():
    one = run_time.step_operations(tiny(batch_size=1))
    assert run_time.step_operations(tiny(batch_size=3)) == pytest.approx(3 * one)
    assert run_time.step_operations(tiny(batch_size=1, crop_size=(32, 32, 32))) > 6 * one


@pytest.mark.slow
def test_only_runs_of_days_are_warned_of_and_fitting_presets_named(monkeypatch):
    monkeypatch.setattr(run_time, "device_speed", lambda _: 5e10)
    assert run_time.duration_warning(tiny(), CPU) is None
    warning = run_time.duration_warning(Configuration.from_dict(load_preset("base")), CPU)
    assert "days" in warning
    assert "-p tiny" in warning
    assert "-p base" not in warning


def test_presets_are_weighed_with_the_runs_recipe(monkeypatch):
    monkeypatch.setattr(
        run_time, "expected_seconds", lambda configuration, _: 1e6 if configuration.recipe == "resenc" else 60
    )
    assert "No preset fits" in run_time.duration_warning(Configuration.from_dict(load_preset("base", "resenc")), CPU)


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h"), (6e6, "69 days")])
def test_durations_in_words(seconds, words):
    assert run_time.format_duration(seconds) == words


def test_speed_is_measured():
    assert 1e8 < run_time.device_speed(CPU) < 1e13
