from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnunetv2_swinfuse.demo.volumes import write_synthrad
from pretraining.cli import main

from .command_line import command, set_paths


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's three folders after a run of two steps."""
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
    write_synthrad(root / "raw" / "SynthRAD", 4)
    with pytest.MonkeyPatch.context() as patch:
        set_paths(patch, root)
        main(command())
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "nnunet"
    shutil.copytree(finished, copy)
    set_paths(monkeypatch, copy)
    return copy


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing, which would take longer than their few steps; `monitoring` has the tests of pictures."""
    for drawing in ("loop.draw_progress", "validation.draw_reconstruction", "run.write_report"):
        monkeypatch.setattr(f"pretraining.{drawing}", lambda *_arguments: None)
