"""What a crop shows of its quarter turn apart from its anatomy: padding, and spacings that differ along y and x.

    python benchmarks/crops_leak.py $nnUNet_preprocessed/CTMR/swinfuse --crops 64 --sides 32 64 96

Counts the drawn crops whose padding changes with a quarter turn, so that the parity of the turn can be read off it, and
those whose volume was resampled from a plane that is not isotropic; then how many of either are turned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pretraining.collections.collection import DOMAINS
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.turnable import is_isotropic_plane, turnable_volumes


def padding_shows_parity(shape: np.ndarray, side: int) -> bool:
    """Whether the padding of crops with equal y and x differs after a quarter turn; shape of the volume (z, y, x)."""
    inside = np.zeros((side, side), bool)
    sizes = np.minimum(shape[1:], side)
    first = (side - sizes) // 2
    inside[first[0] : first[0] + sizes[0], first[1] : first[1] + sizes[1]] = True
    return not np.array_equal(inside, np.rot90(inside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", type=Path, help="preprocessed volumes")
    parser.add_argument("--crops", type=int, default=64, help="number of crops of each modality")
    parser.add_argument("--sides", type=int, nargs="+", default=(32, 64, 96), help="of the crops, voxels")
    arguments = parser.parse_args()
    collection = PreprocessedCollection.open(arguments.volumes)
    table, split = collection.table, collection.split("train")
    isotropic = is_isotropic_plane(table.native_spacing[:, 1], table.native_spacing[:, 2])
    print("| modality, crop | parity in the padding | native plane not isotropic | turned | either of these, turned |")
    print("| --- | --- | --- | --- | --- |")
    for domain, volumes in zip(DOMAINS, (split.ct, split.mr), strict=True):
        for side in arguments.sides if len(volumes) else ():
            turnable = turnable_volumes(collection, (side, side, side))
            drawn = np.random.default_rng(0).choice(volumes, arguments.crops)
            padded = np.array([padding_shows_parity(table.shape[volume], side) for volume in drawn])
            leaks = padded | ~isotropic[drawn]
            counts = (padded, ~isotropic[drawn], turnable[drawn], leaks & turnable[drawn])
            print(f"| {domain}, {side}³ | " + " | ".join(f"{int(c.sum())} of {len(drawn)}" for c in counts) + " |")


if __name__ == "__main__":
    main()
