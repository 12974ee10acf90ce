import os
import platform
from importlib.metadata import version

from pretraining.monitoring import environment
from pretraining.monitoring.environment import describe_environment

from ..synthetic import CPU


def test_machine_and_versions_are_described():
    facts = describe_environment(CPU)
    assert facts["torch"] == version("torch")
    assert facts["Python"] == platform.python_version()
    assert facts["trained on"] == "cpu"
    assert facts["processor"].endswith(f"{os.cpu_count()} logical cores")
    assert "GPU" not in facts


def test_what_is_not_installed_or_not_known_is_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.delattr(os, "sysconf")
    facts = describe_environment(CPU)
    assert "no-such-package" not in facts
    assert "memory" not in facts
