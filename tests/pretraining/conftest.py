from __future__ import annotations

import pytest


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing, which would take longer than their few steps; `monitoring` has the tests of pictures."""
    for drawing in ("loop.draw_progress", "validation.draw_reconstruction", "run.write_report"):
        monkeypatch.setattr(f"pretraining.{drawing}", lambda *_arguments: None)
