"""What swinfuse_predict costs beyond stock prediction: `python -m benchmarks.prediction_overhead -m MODEL -i IMAGES`.

nnUNetv2_predict and swinfuse_predict predict the same images on the CPU with the same flags. Their masks are compared
first, voxel by voxel; nothing is timed if they differ. Then both run in turn, in an order that changes from round to
round, so that a busy machine slows both:

- "command": a new Python with one image, start included;
- "run": all images, in a forked process that has imported both programs; what is left of a command without the start of
  Python and its imports. It loads the model, and ours checks images and writes its report.

Measured are the time on the clock and the processor time of the process and of all that it starts. Written to
FILE after every round: all numbers. Printed: medians over the rounds, their quotient, and the median of the quotients
of each round with their range.
The exit code is 1 when masks differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from tqdm import tqdm

# Imported lazily by its command: part of its start, not of its run.
from nnunetv2_swinfuse.inference import prediction  # noqa: F401
from nnunetv2_swinfuse.inference.predict import main as swinfuse_predict

PROGRAMS = ("nnUNetv2_predict", "swinfuse_predict")
ENTRY_POINTS = dict(zip(PROGRAMS, (predict_entry_point, swinfuse_predict), strict=True))
CODE = {name: f"from {f.__module__} import {f.__name__} as f; f()" for name, f in ENTRY_POINTS.items()}
PARTS = {"command": "command, one image", "run": "run, all images"}
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")
# Exit codes of masks for all images; 3 is with warnings.
DONE = (0, 3)


def words(program: str, model: Path, images: Path, masks: Path, flags: Sequence[str]) -> list[str]:
    """The arguments of a program; both get the same flags."""
    where = ["-i", str(images), "-o", str(masks), "-f", "0", "-device", "cpu", "--disable_progress_bar", *flags]
    if program == "swinfuse_predict":
        return ["-m", str(model), *where]
    trainer, plans, configuration = model.name.split("__")
    return ["-d", model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration, *where]


def timed(start: Callable[[Path], int], program: str) -> dict[str, float]:
    """Seconds on the clock and of processors (user and system, with all processes that it started).

    Args:
        start: starts the program with a log file; returns its process.
        program: for the message.

    Raises:
        SystemExit: with the end of its output, when it did not predict all images.
    """
    with tempfile.NamedTemporaryFile() as log:
        begin = time.perf_counter()
        _, status, used = os.wait4(start(Path(log.name)), 0)
        clock = time.perf_counter() - begin
        if os.waitstatus_to_exitcode(status) not in DONE:
            text = Path(log.name).read_text(errors="replace")
            raise SystemExit(f"{program} ended with {os.waitstatus_to_exitcode(status)}:\n{text[-3000:]}")
    return {"clock": clock, "processor": used.ru_utime + used.ru_stime}


def command(program: str, model: Path, images: Path, masks: Path, flags: Sequence[str]) -> dict[str, float]:
    """Runs a program as a command."""
    arguments = [sys.executable, "-c", CODE[program], *words(program, model, images, masks, flags)]
    variables = {**os.environ, "nnUNet_results": str(model.parents[1])}

    def start(log: Path) -> int:
        with log.open("w") as output:
            return os.posix_spawn(
                sys.executable, arguments, variables,
                file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)],
            )  # fmt: skip

    return timed(start, program)


def run(program: str, model: Path, images: Path, masks: Path, flags: Sequence[str]) -> dict[str, float]:
    """Runs a program in a forked process, with its imports done."""

    def start(log: Path) -> int:
        child = os.fork()
        if child == 0:
            descriptor, code = os.open(log, os.O_WRONLY), 1
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            try:
                os.environ["nnUNet_results"] = str(model.parents[1])
                sys.argv = [program, *words(program, model, images, masks, flags)]
                ENTRY_POINTS[program]()
                code = 0
            except SystemExit as exit_:
                code = int(exit_.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return child

    return timed(start, program)


def masks_of(folder: Path) -> dict[str, tuple[bytes, tuple[Any, ...]]]:
    """Voxels and grid of every mask, by its name."""
    masks = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(ENDINGS):
            image = sitk.ReadImage(str(path))
            grid = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
            masks[path.name] = (np.ascontiguousarray(sitk.GetArrayFromImage(image)).tobytes(), grid)
    return masks


def measure(
    model: Path, images: Path, flags: Sequence[str], rounds: int, parts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields one entry a round: program -> part -> seconds.

    Raises:
        SystemExit: when masks differ or a program fails.
    """
    with tempfile.TemporaryDirectory() as root:
        files = sorted(path for path in images.iterdir() if path.name.endswith(ENDINGS))
        one = Path(root, "one")
        one.mkdir()
        case = files[0].name.rsplit("_", 1)[0]
        for path in files:
            if path.name.rsplit("_", 1)[0] == case:
                (one / path.name).symlink_to(path.resolve())
        for program in PROGRAMS:
            run(program, model, images, Path(root, program), flags)
        stock, ours = (masks_of(Path(root, program)) for program in PROGRAMS)
        if stock != ours or not ours:
            raise SystemExit(f"{images}: {len(stock)} and {len(ours)} masks, not the same; nothing was timed")
        functions = {"command": (command, one), "run": (run, images)}
        for number in tqdm(range(rounds), "rounds"):
            seconds: dict[str, Any] = {program: {} for program in PROGRAMS}
            for part in parts:
                function, folder = functions[part]
                for program in PROGRAMS if number % 2 else PROGRAMS[::-1]:
                    with tempfile.TemporaryDirectory(dir=root) as masks:
                        seconds[program][part] = function(program, model, folder, Path(masks, "out"), flags)
            yield seconds


def summarise(measured: Sequence[dict[str, Any]], part: str, kind: str) -> dict[str, Any]:
    """Medians of both programs, and the quotients of the rounds, ours by stock."""
    stock, ours = ([seconds[program][part][kind] for seconds in measured] for program in PROGRAMS)
    quotients = [b / a for a, b in zip(stock, ours, strict=True)]
    return {
        "stock": statistics.median(stock),
        "ours": statistics.median(ours),
        "of medians": statistics.median(ours) / statistics.median(stock),
        "of rounds": statistics.median(quotients),
        "least": min(quotients),
        "most": max(quotients),
    }


def table(measured: Sequence[dict[str, Any]]) -> list[str]:
    """The table, in Markdown."""
    lines = [
        "| | seconds | stock | swinfuse_predict | quotient of medians | median quotient of a round (range) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part, name in PARTS.items():
        if part not in measured[0][PROGRAMS[0]]:
            continue
        for kind in ("processor", "clock"):
            row = summarise(measured, part, kind)
            lines.append(
                f"| {name} | {kind} | {row['stock']:.2f} | {row['ours']:.2f} | {row['of medians']:.3f} | "
                f"{row['of rounds']:.3f} ({row['least']:.3f} to {row['most']:.3f}) |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, required=True, metavar="MODEL", help="DATASET/TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-i", type=Path, required=True, metavar="IMAGES", help="a folder of images for it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default="-npp 0 -nps 0", help="for both programs; default: '%(default)s'")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    options = parser.parse_args()
    flags = shlex.split(options.flags)
    # No thread may be running when a process is forked.
    tqdm.monitor_interval = 0
    count = sum(path.name.endswith(ENDINGS) for path in options.i.iterdir())
    measured: list[dict[str, Any]] = []
    for seconds in measure(options.m.resolve(), options.i.resolve(), flags, options.rounds, options.parts):
        measured.append(seconds)
        machine = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(),
            **{name: version(name) for name in ("nnunetv2", "torch", "SimpleITK", "numpy")},
        }
        if options.json is not None:
            content = {"files": count, "flags": flags, "machine": machine, "rounds": measured}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{count} files, {len(measured)} rounds, flags {options.flags!r}; masks identical. {machine}", end="\n\n")
    print("\n".join(table(measured)))


if __name__ == "__main__":
    main()
