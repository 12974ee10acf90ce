"""Writes the records of a run for TensorBoard as well, with `--tensorboard` and the extra `[tensorboard]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import InputError

FOLDER = "tensorboard"


def require_tensorboard() -> type[Any]:
    """torch's writer.

    Raises:
        InputError: saying what to install.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"--tensorboard: the package is not installed ({error}). "
            "Install it: pip install tensorboard, or leave the option out; progress.png and losses.jsonl have the same "
            "values"
        ) from error
    return SummaryWriter


class TensorBoardScalars:
    """Writes every value as `name/train` or `name/validation`.

    Args:
        folder: the run's folder; events are written to `tensorboard` in it.
        step: steps taken so far; events of later steps, from before an interruption, are hidden.
    """

    def __init__(self, folder: Path, step: int = 0):
        self._writer = require_tensorboard()(str(folder / FOLDER), purge_step=step + 1 if step else None)

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{name}/{kind}", value, step)
        if kind == "validation":
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()
