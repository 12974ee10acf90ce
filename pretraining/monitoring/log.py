"""The output of a run: a text log with times, and one JSON line per step and per validation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from pretraining.monitoring.tensorboard import TensorBoardScalars

RECORDS = "losses.jsonl"
TEXT = "log.txt"


class RunLog:
    """Writes `log.txt` and `losses.jsonl` of a run folder.

    When a run is resumed, records of steps after the checkpoint are removed, since those steps are repeated.

    Args:
        folder: the run's folder.
        step: steps taken so far; records of later steps are removed.
        tensorboard: write every record for TensorBoard as well.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False):
        self._scalars = TensorBoardScalars(folder, step) if tensorboard else None
        self._text = folder / TEXT
        self._records = folder / RECORDS
        kept = [record for record in read_records(folder) if record["step"] <= step] if step else []
        with atomic_write(self._records) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def info(self, text: str) -> None:
        """Writes a line to the screen, above the progress bar, and to the log."""
        tqdm.write(text)
        with self._text.open("a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one JSON line: the number of steps taken, `train` or `validation`, and the values."""
        with self._records.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **_finite_or_none(values)}) + "\n")
        if self._scalars is not None:
            self._scalars.record(step, kind, values)

    def close(self) -> None:
        """Closes what is open; records are on disk before."""
        if self._scalars is not None:
            self._scalars.close()


class SilentLog(RunLog):
    """The log of all processes but the first, in which nothing is written."""

    def __init__(self) -> None:
        pass

    def info(self, text: str) -> None:
        pass

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All complete records of a run, without a last line that a crash has truncated."""
    path = folder / RECORDS
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    # Text after the last line break is an incomplete record.
    return [json.loads(line) for line in lines[:-1]]


def _finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(float(value)) else None for name, value in values.items()}
