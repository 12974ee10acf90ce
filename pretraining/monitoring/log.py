"""What a run says: a text log with times, and one JSON line per step and per validation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretraining.monitoring.tensorboard import TensorBoardScalars

RECORDS = "losses.jsonl"
TEXT = "log.txt"


class RunLog:
    """Writes `log.txt` and `losses.jsonl` of a run folder.

    On a continuation the records behind the checkpoint's step are dropped: those steps are taken again.

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
        temporary = self._records.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(temporary, self._records)

    def say(self, text: str) -> None:
        """To the screen, above a progress bar if there is one, and to the log."""
        tqdm.write(text)
        with self._text.open("a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One JSON line: the number of steps taken, `train` or `validation`, and the values."""
        with self._records.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **_plain(values)}) + "\n")
        if self._scalars is not None:
            self._scalars.record(step, kind, values)

    def close(self) -> None:
        """Ends what is kept open; what was recorded lies on the disk before."""
        if self._scalars is not None:
            self._scalars.close()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All complete records of a run; a last line cut off by a crash is left out."""
    path = folder / RECORDS
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    # Whatever follows the last line break was never finished.
    return [json.loads(line) for line in lines[:-1]]


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(float(value)) else None for name, value in values.items()}
