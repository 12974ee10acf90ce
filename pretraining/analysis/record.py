"""The JSON file of a check: what was measured, on what, with what, and how to repeat it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from pretraining.analysis.arms import Arm


def write_record(
    path: Path,
    command: Sequence[str],
    arms: Sequence[Arm],
    source: Mapping[str, Any],
    results: Mapping[str, Any],
    notes: Sequence[str] = (),
    seconds: float = 0.0,
) -> Path:
    """Writes a record; values that are not finite become null.

    Args:
        path: of the JSON file.
        command: words of the command line.
        arms: the encoders.
        source: of the images.
        results: of the check: mappings, sequences, named tuples, dataclasses and plain values.
        notes: what a reader must know of the images.
        seconds: that it took.
    """
    content = {
        "command": " ".join(["swinfuse_analyze", *command]),
        "date": date.today().isoformat(),
        "encoders": [
            {"name": arm.name, "seed": arm.seed, "weights": arm.description, "floor": arm.floor} for arm in arms
        ],
        "images": plain(source),
        "notes": list(notes),
        "results": plain(results),
        "seconds": round(seconds, 1),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("nnunetv2-swinfuse", "torch")},
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def plain(value: Any) -> Any:
    """A value as JSON can hold it: named tuples and dataclasses as objects, numbers that are not finite as null."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
