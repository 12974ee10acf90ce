"""`python -m tests.fuzzing`: damages files of every format and reads them; counts what came of it.

Each file is damaged by a generator of its own, seeded by reader, seed and number: --reader and --number repeat one.
Files are read in a monitored process: a crash or a hang is counted, and the next process continues after that file.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from tests.fuzzing.damage import damage, damage_json, draw_steps
from tests.fuzzing.reader import Reader
from tests.fuzzing.readers import READERS

# Seconds for one file.
LIMIT = 20
READ, REFUSED, WRONG, CRASHED, HUNG = "read", "refused by name", "wrong or unnamed", "crashed", "hung"


def damaged(reader: Reader, seed: int, number: int) -> bytes:
    """The content of a damaged file."""
    chance = random.Random(f"{reader.name} {seed} {number}")
    return damage_json(reader.sound(), chance) if reader.text else damage(reader.sound(), draw_steps(chance))


def judge(reader: Reader, seed: int, number: int, folder: Path) -> tuple[str, str]:
    """The outcome for one file, and the traceback of a wrong one."""
    try:
        return (READ if reader.judge(damaged(reader, seed, number), folder / reader.file) else REFUSED), ""
    except Exception:
        return WRONG, traceback.format_exc()


def read_files(reader: Reader, seed: int, files: int, folder: Path, bar: tqdm) -> Counter[str]:  # type: ignore[type-arg]
    """Reads that many damaged files in watched processes."""
    outcomes: Counter[str] = Counter()
    reader.sound()
    number = 0
    while number < files:
        source, target = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(source)
            # ITK and libtorch print what they think of damaged files.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(target, "w", buffering=1) as pipe:
                for one in range(number, files):
                    signal.alarm(LIMIT)
                    outcome, details = judge(reader, seed, one, folder)
                    pipe.write(f"{outcome}\t{details!r}\n")
            os._exit(0)
        os.close(target)
        with os.fdopen(source) as pipe:
            for line in pipe:
                outcome, _, details = line.rstrip("\n").partition("\t")
                outcomes[outcome] += 1
                if outcome == WRONG:
                    report(reader, number, ast.literal_eval(details))
                number += 1
                bar.update()
        _, status = os.waitpid(child, 0)
        if number < files:
            outcome = HUNG if os.waitstatus_to_exitcode(status) == -signal.SIGALRM else CRASHED
            outcomes[outcome] += 1
            report(reader, number, f"{outcome}: {os.waitstatus_to_exitcode(status)}")
            number += 1
    return outcomes


def report(reader: Reader, number: int, text: str) -> None:
    tqdm.write(f"\n{reader.name}, file {number}: {text}", file=sys.stderr)


def main() -> None:
    """Entry point; exits with 1 when a file was read wrongly, crashed a process or provoked an unnamed error."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__.split("`: ")[1])
    parser.add_argument("--files", type=int, default=10_000, help="in all, evenly among the readers; default: 10000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="only this one")
    parser.add_argument("--number", type=int, help="repeat one file of --reader, and keep it")
    options = parser.parse_args()
    if options.number is not None and options.reader is None:
        parser.error("--number needs --reader")
    torch.set_num_threads(1)
    # No thread may be running when a process is forked.
    tqdm.monitor_interval = 0
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if options.number is not None:
        reader = READERS[options.reader]
        Path(reader.file).write_bytes(damaged(reader, options.seed, options.number))
        print(f"{reader.file} written")
        with TemporaryDirectory() as folder:
            print(*judge(reader, options.seed, options.number, Path(folder)), sep="\n")
        return
    readers = [READERS[options.reader]] if options.reader else list(READERS.values())
    share = -(-options.files // len(readers))
    rows, total = [], Counter[str]()
    with tqdm(total=share * len(readers), unit="file") as bar:
        for reader in readers:
            begin = time.monotonic()
            with TemporaryDirectory() as folder:
                outcomes = read_files(reader, options.seed, share, Path(folder), bar)
            total += outcomes
            rows.append((reader.name, outcomes, 1000 * (time.monotonic() - begin) / share))
    kinds = (READ, REFUSED, WRONG, CRASHED, HUNG)
    print(f"| file | damaged | {' | '.join(kinds)} | ms a file |\n|{' --- |' * (len(kinds) + 3)}")
    for name, outcomes, milliseconds in rows:
        counts = " | ".join(str(outcomes[kind]) for kind in kinds)
        print(f"| {name} | {outcomes.total()} | {counts} | {milliseconds:.1f} |")
    print(f"| all | {total.total()} | {' | '.join(str(total[kind]) for kind in kinds)} | |")
    raise SystemExit(int(total[WRONG] + total[CRASHED] + total[HUNG] > 0))


if __name__ == "__main__":
    main()
