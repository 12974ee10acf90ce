"""The foreground of CTs with and without the air inside the body: clipping percentile, constant air, time.

    python benchmarks/ct_foreground.py $nnUNet_raw/CTMR/ct --volumes 30

"Air" are voxels below -500 HU inside the filled body; those below the 0.5 percentile become constant.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from pretraining.collections.collection import Volume
from pretraining.preprocessing.foreground import CT_BODY_HU, body_mask, read_volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of CT volumes")
    parser.add_argument("--volumes", type=int, default=30, help="number of volumes, evenly spread over the folder")
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.glob("*.nii.gz"))
    paths = paths[:: max(1, len(paths) // arguments.volumes)][: arguments.volumes]
    random = np.random.default_rng(0)
    samples: dict[str, list[np.ndarray]] = {"threshold": [], "with air inside": []}
    air, seconds = [], []
    for path in paths:
        voxels, _ = read_volume(path)
        start = time.perf_counter()
        mask = body_mask(Volume("CT", "CT", path), voxels) > 0
        seconds.append(time.perf_counter() - start)
        inside = voxels[mask]
        dense = inside[inside > CT_BODY_HU]
        air.append(random.choice(inside[inside <= CT_BODY_HU], min(10_000, int((inside <= CT_BODY_HU).sum()))))
        samples["threshold"].append(random.choice(dense, 10_000))
        samples["with air inside"].append(random.choice(inside, 10_000))
    everything = np.concatenate(air)
    print(f"{len(paths)} volumes, {1000 * np.median(seconds):.0f} ms for a mask (median)\n")
    print("| foreground | 0.5 percentile, HU | air inside the body that becomes constant |\n| --- | --- | --- |")
    for name, values in samples.items():
        lowest = np.percentile(np.concatenate(values), 0.5)
        constant = f"{(everything < lowest).mean():.2f}" if len(everything) else "no air"
        print(f"| {name} | {lowest:.0f} | {constant} |")


if __name__ == "__main__":
    main()
