"""`python -m tests.installation`: builds environments, checks each, prints a table, and exits with 1 if any fails."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from subprocess import TimeoutExpired

from tests.installation.checks import CheckError, checks
from tests.installation.environments import BuildError, Combination, Workshop, combinations

# Both ends of the supported range (nnunetv2_swinfuse/compatibility.py); the newer is the newest on the index.
VERSIONS = ["2.8.0", "2.8.1"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.installation", description=__doc__.split("`: ")[1])
    names = [str(combination) for combination in combinations(VERSIONS)]
    parser.add_argument("names", nargs="*", metavar="COMBINATION", help=f"default: all; {', '.join(names)}")
    parser.add_argument("--full", action="store_true", help="all dependencies from the index (5 GB an environment)")
    parser.add_argument("--end_to_end", action="store_true", help="also train and predict a tiny model in each")
    parser.add_argument("--folder", type=Path, help="where to build; a temporary folder when not given")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such combination: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [c for c in combinations(VERSIONS) if not options.names or str(c) in options.names]
    folder = Path(tempfile.mkdtemp(prefix="installation_", dir=options.folder))
    workshop = Workshop(folder, options.full)
    try:
        passed = [examine(workshop, combination, options.end_to_end, options.keep) for combination in chosen]
    finally:
        if options.keep:
            print(f"Kept: {folder}")
        else:
            shutil.rmtree(folder)
    raise SystemExit(0 if all(passed) else 1)


def examine(workshop: Workshop, combination: Combination, end_to_end: bool, keep: bool) -> bool:
    """Builds and checks one environment; prints its line of the table as it goes. True when all is well or skipped."""
    print(f"{combination!s:<32}", end=" ", flush=True)
    if combination.installer == "uv" and workshop.uv() is None:
        print("SKIPPED: no uv")
        return True
    start = time.monotonic()
    try:
        environment = workshop.build(combination)
        print(f"built {time.monotonic() - start:.0f} s", end="", flush=True)
        for name, check in checks(environment, end_to_end):
            start = time.monotonic()
            print(f" | {name}", end=" ", flush=True)
            check()
            print(f"ok {time.monotonic() - start:.0f} s", end="", flush=True)
    except (BuildError, CheckError, TimeoutExpired) as error:
        print(f"FAILED\n{error}")
        return False
    print()
    if not keep:
        shutil.rmtree(environment.folder)
    return True


if __name__ == "__main__":
    main()
