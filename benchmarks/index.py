"""Time and memory to open an index of a million synthetic volumes, and to draw a step's volumes from it.

    python benchmarks/index.py [--volumes 1000000]

Half the patients are registered pairs, half have one volume; identifiers and paths are as long as those of a joint
collection. Opening runs in a separate process, so that its peak memory is measured by itself. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pretraining.preprocessed.collection import INDEX, INDEX_VERSION, TABLE, IndexTable, PreprocessedCollection, Strings


def write(folder: Path, volumes: int) -> None:
    """An index without its volumes: as many patients with a pair as with a single volume, which is CT or MR in turn."""
    pairs = singles = volumes // 3
    patients = [f"Dataset501_TestVolumes/subject-{number:07d}_session-01" for number in range(pairs + singles)]
    paired = np.arange(len(patients)) < pairs
    patient = np.repeat(np.arange(len(patients)), np.where(paired, 2, 1))
    domain = np.concatenate([np.tile([0, 1], pairs), np.arange(singles) % 2]).astype(np.uint8)
    files = [f"{patients[p]}_{'T1w' if d else 'CT'}.b2nd" for p, d in zip(patient, domain, strict=True)]
    table = IndexTable(
        patients=Strings.of(patients),
        paired=paired,
        validation=np.arange(len(patients)) % 10 == 0,
        files=Strings.of(files),
        patient=patient,
        domain=domain,
        modality=domain.astype(np.uint16),
        shape=np.full((len(files), 3), 128, np.int32),
        native_spacing=np.ones((len(files), 3), np.float32),
    )
    table.write(folder / TABLE)
    header = {
        "version": INDEX_VERSION, "name": "synthetic", "hash": "synthetic", "spacing": [1.0] * 3, "orientation": "RAS",
        "crop_size": [96] * 3, "validation_share": 0.1, "modalities": ["CT", "T1w"],
    }  # fmt: skip
    (folder / INDEX).write_text(json.dumps(header))


def peak() -> float:
    """Largest resident memory so far, MiB. getrusage would report the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure(folder: Path) -> dict[str, float]:
    """Seconds to open and to split, microseconds to draw one volume, MiB at the peak and before."""
    before = peak()
    start = time.perf_counter()
    collection = PreprocessedCollection.open(folder)
    opened = time.perf_counter()
    split = collection.split("train")
    split_done = time.perf_counter()
    random = np.random.default_rng(0)
    for _ in range(10_000):
        volume = split.ct[random.integers(len(split.ct))]
        collection.file(volume)
        collection.patient(volume)
    drawn = time.perf_counter()
    return {
        "volumes": len(collection.table.files),
        "MiB on disk": (folder / TABLE).stat().st_size / 2**20,
        "open, s": opened - start,
        "split, s": split_done - opened,
        "draw a volume, us": (drawn - split_done) * 100,
        "peak, MiB": peak(),
        "peak before opening, MiB": before,
    }


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--volumes", type=int, nargs="+", default=[1_000, 1_000_000])
parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
options = parser.parse_args()
if options.measure:
    print(json.dumps(measure(options.measure)))
    raise SystemExit
rows = []
for count in options.volumes:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), count)
        command = [sys.executable, __file__, "--measure", name]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
for row in rows:
    print("| " + " | ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in row.values()) + " |")
