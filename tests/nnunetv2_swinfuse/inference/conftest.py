"""Models for the tests of this folder."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes the permission to read files of a name, also from root."""

    def take(name: str) -> None:
        opened = io.open

        def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
            if Path(str(file)).name == name:
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return opened(file, *arguments, **options)

        monkeypatch.setattr(io, "open", refuse)

    return take
