"""The losses of a tiny pretraining run, recorded so that a change of what is computed is noticed.

    python -m tests.behaviour.loss_curve

records them again, after a change that is meant to alter them; say why in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from pretraining.loop import train
from pretraining.monitoring.log import read_records
from tests.pretraining.synthetic import CPU, synthetic_collection, tiny

RECORDED = Path(__file__).with_name("loss_curve.json")
STEPS = 16
LOSSES = (
    "total", "inpainting", "contrastive", "cross_modal", "rotation", "density", "variance", "covariance",
    "gradient_norm",
)  # fmt: skip
# Rounding differs between processors and versions of PyTorch, and grows from step to step; whatever changes a loss,
# a view or a draw changes the curve by more.
TOLERANCE = 0.01


def run_curve(**changes) -> list[dict[str, float]]:
    """The losses of each step of a fixed configuration on synthetic heads, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {"steps": STEPS, "validate_every": STEPS, "checkpoint_every": STEPS, "learning_rate": 1e-3}
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            collection = synthetic_collection(root)
            train(root, collection, tiny(**{**settings, **changes}), CPU)
            records = [record for record in read_records(root) if record["kind"] == "train"]
    finally:
        torch.set_num_threads(threads)
    return [{name: round(record[name], 6) for name in LOSSES if name in record} for record in records]


def main() -> None:
    """Records the curve."""
    rows = ",\n".join(f"  {json.dumps(values)}" for values in run_curve())
    RECORDED.write_text(f"[\n{rows}\n]\n")
    print(f"{RECORDED}: {STEPS} steps recorded with torch {torch.__version__}")


if __name__ == "__main__":
    main()
