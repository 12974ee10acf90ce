"""Whether the demo's training learns all structures, whatever the volumes: its Dice for several seeds.

    swinfuse_demo --folder DEMO                          # once: pretraining, and everything with seed 0
    python benchmarks/demo.py DEMO --seeds 0 1 2 3 4     # the same encoder, other labelled cases

Each seed writes 13 labelled cases and lets nnU-Net plan, train, predict and evaluate as the demo does, in a temporary
folder. Prints a table; exits with 1 where a structure stays below `--expected`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from nnunetv2_swinfuse.demo.run import demo_environment, fine_tune, write_labelled_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a finished swinfuse_demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--expected", type=float, default=0.6, help="smallest Dice of every structure")
    options = parser.parse_args()
    encoder = options.demo.absolute() / "nnUNet_results" / "swinfuse" / "encoder.pth"
    if not encoder.is_file():
        parser.error(f"{encoder}: no such file; run swinfuse_demo --folder {options.demo} first")
    rows, lowest = [], 1.0
    for seed in options.seeds:
        start = time.time()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            environment = demo_environment(folder) | {"SWINFUSE_CHECKPOINT": str(encoder)}
            write_labelled_cases(folder / "nnUNet_raw", seed)
            _, scores = fine_tune(folder, environment)
        if not rows:
            rows += [f"| seed | {' | '.join(scores)} | minutes |", "| --- " * (len(scores) + 2) + "|"]
        dice = " | ".join(f"{value:.3f}" for value in scores.values())
        rows.append(f"| {seed} | {dice} | {(time.time() - start) / 60:.1f} |")
        lowest = min(lowest, *scores.values())
        print("\n".join(rows), flush=True)
    raise SystemExit(0 if lowest >= options.expected else 1)


if __name__ == "__main__":
    main()
