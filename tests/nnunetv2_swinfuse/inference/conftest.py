"""Models for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from .synthetic_models import write_model


@pytest.fixture(autouse=True)
def no_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the developer's own raw data."""
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)


@pytest.fixture
def ct_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "ct_model")


@pytest.fixture
def mr_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "mr_model", ("MR",))
