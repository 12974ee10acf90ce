"""What swinfuse_predict costs beyond stock prediction: `python -m benchmarks.prediction_overhead -m MODEL -i IMAGES`.

`nnUNetv2_predict` and `swinfuse_predict` predict the same images on the CPU, as commands with the same flags. Their
masks are compared first, voxel by voxel; nothing is timed if they differ. Then both run in turn, with one image and
with all, in an order that changes from round to round, so that a busy machine slows both. Measured are the time on the
clock and the processor time of the command and of all processes that it started. All images less one image is what
remains of a command without its start, which loads Python, PyTorch and the model.

Printed, and written to FILE: medians over the rounds, and the median of the quotients of each round with their range.
The exit code is 1 when masks differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

STOCK = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
OURS = "from nnunetv2_swinfuse.inference.predict import main; main()"
PROGRAMS = ("nnUNetv2_predict", "swinfuse_predict")
PARTS = {"one": "one image", "all": "all images", "more": "all less one image"}
# Exit codes of masks for all images; 3 is with warnings.
DONE = (0, 3)


def command_of(program: str, model: Path, images: Path, masks: Path, flags: Sequence[str]) -> list[str]:
    """Python's arguments for a program; both get the same flags."""
    where = ("-i", str(images), "-o", str(masks), "-f", "0", "-device", "cpu")
    if program == "swinfuse_predict":
        return [sys.executable, "-c", OURS, "-m", str(model), *where, *flags]
    trainer, plans, configuration = model.name.split("__")
    names = ("-d", model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration)
    return [sys.executable, "-c", STOCK, *names, *where, *flags]


def run(program: str, model: Path, images: Path, masks: Path, flags: Sequence[str]) -> dict[str, float]:
    """Seconds on the clock and of processors (user and system, with all processes that it started).

    Raises:
        SystemExit: with the end of its output, when it did not predict all images.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(
        command_of(program, model, images, masks, flags), env={**os.environ, "nnUNet_results": str(model.parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    clock, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode not in DONE:
        raise SystemExit(f"{program} ended with {result.returncode}:\n{(result.stdout + result.stderr)[-3000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": clock, "processor": processor}


def masks_of(folder: Path) -> dict[str, tuple[bytes, tuple[Any, ...]]]:
    """Voxels and grid of every mask, by its name."""
    masks = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".nii.gz", ".nii", ".mha", ".nrrd")):
            image = sitk.ReadImage(str(path))
            grid = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
            masks[path.name] = (np.ascontiguousarray(sitk.GetArrayFromImage(image)).tobytes(), grid)
    return masks


def measure(model: Path, images: Path, flags: Sequence[str], rounds: int) -> tuple[int, list[dict[str, Any]]]:
    """The number of images, and one entry a round: program -> part -> seconds.

    Raises:
        SystemExit: when masks differ or a command fails.
    """
    with tempfile.TemporaryDirectory() as root:
        folders = {"one": Path(root, "one"), "all": images}
        folders["one"].mkdir()
        files = sorted(path for path in images.iterdir() if path.name.endswith((".nii.gz", ".nii", ".mha", ".nrrd")))
        case = files[0].name.rsplit("_", 1)[0]
        for path in files:
            if path.name.rsplit("_", 1)[0] == case:
                (folders["one"] / path.name).symlink_to(path.resolve())
        for program in PROGRAMS:
            run(program, model, images, Path(root, program), flags)
        stock, ours = (masks_of(Path(root, program)) for program in PROGRAMS)
        if stock != ours or len(ours) < 2:
            raise SystemExit(f"{images}: {len(stock)} and {len(ours)} masks, not two or more that are the same")
        measured = []
        for number in tqdm(range(rounds), "rounds"):
            seconds: dict[str, Any] = {program: {} for program in PROGRAMS}
            for part, folder in folders.items():
                for program in PROGRAMS if number % 2 else PROGRAMS[::-1]:
                    with tempfile.TemporaryDirectory(dir=root) as masks:
                        seconds[program][part] = run(program, model, folder, Path(masks, "out"), flags)
            for parts in seconds.values():
                parts["more"] = {kind: parts["all"][kind] - parts["one"][kind] for kind in parts["all"]}
            measured.append(seconds)
    return len(ours), measured


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    options = parser.parse_args()
    flags = [*shlex.split(options.flags), "--disable_progress_bar"]
    count, measured = measure(options.m.resolve(), options.i.resolve(), flags, options.rounds)
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "python": platform.python_version(),
        **{name: version(name) for name in ("nnunetv2", "torch", "SimpleITK", "numpy")},
    }
    print(f"{count} images, {options.rounds} rounds, flags {options.flags!r}; masks identical. {machine}", end="\n\n")
    print("\n".join(table(measured)))
    if options.json is not None:
        content = {"images": count, "flags": flags, "machine": machine, "rounds": measured}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
