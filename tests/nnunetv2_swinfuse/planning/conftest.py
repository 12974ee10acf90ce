from __future__ import annotations

import os
from pathlib import Path

import pytest

from .folders import Folders


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    root = Folders(*(tmp_path / part for part in ("raw", "preprocessed", "results")))
    for variable in [name for name in os.environ if name.startswith("SWINFUSE_")]:
        monkeypatch.delenv(variable)
    for folder in (root.raw, root.preprocessed, root.results):
        folder.mkdir()
        monkeypatch.setenv(f"nnUNet_{folder.name}", str(folder))
    return root
