"""`python -m tests.interruption`: kills pretraining, fine-tuning, prediction and export at random moments.

After every SIGKILL all files that have their final names must be complete; the next command must resume; in the end
everything must be as without kills. What that means for each is said in the modules of this folder.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.interruption import fine_tuning, inference, pretraining
from tests.interruption.killing import LostError

RUNS: dict[str, tuple[Callable[[Path, int, random.Random], None], int]] = {
    "pretraining": (pretraining.run, 20),
    "fine_tuning": (fine_tuning.run, 20),
    "prediction": (inference.run_prediction, 20),
    "export": (inference.run_export, 20),
}


def main() -> None:
    """Entry point; exits with 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.interruption", description=__doc__.split("`: ")[1])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--kills", type=int, help="of each; default: 20")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.what) - set(RUNS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(RUNS)}")
    lost = False
    for name in options.what or RUNS:
        run, kills = RUNS[name]
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="interruption_") as root:
            try:
                run(Path(root), options.kills or kills, random.Random(options.seed))
            except LostError as error:
                print(f"LOST in {name}: {error}", flush=True)
                lost = True
        print(f"{name}: {time.monotonic() - begin:.0f} s, seed {options.seed}", flush=True)
    raise SystemExit(int(lost))


if __name__ == "__main__":
    main()
