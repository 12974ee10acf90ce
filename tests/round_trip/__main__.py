"""`python -m tests.round_trip`: trains, exports, verifies, installs in a new environment, predicts, compares masks.

Small models of Dataset501 and Dataset511 are trained with this package's commands on some of their cases
(training.py) and exported by swinfuse_export. A new virtual environment gets a wheel of this checkout by `pip install`.
In it, with folders of its own and none of the variables or packages of the training environment, swinfuse_verify checks
each zip, nnUNetv2_install_pretrained_model_from_zip installs it, and cases that were not trained on are predicted by
nnUNetv2_predict and by swinfuse_predict. In the training environment, stock nnU-Net predicts them with the model before
its export. All masks must be the same, voxel by voxel.

Prints a table; writes FOLDER/round_trip.json with --keep. Exits with 1 when masks differ or are all empty. An
interrupted run with --folder goes on with the models that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.installation.environments import BuildError, Combination, Environment, Workshop, run
from tests.round_trip.comparison import Agreement, compare
from tests.round_trip.training import CONFIGURATION, FOLD, PLANS, TRAINER, Selection, TrainingRoot

# The MR is predicted with mirroring; the CT without, but is resampled to coarser voxels and back.
SELECTIONS = (
    Selection("Dataset501_Hippocampus", 40, 12),
    Selection("Dataset511_AbdomenCT", 10, 3, ("5", "5", "5"), ("--disable_tta",)),
)
STOCK, OURS, BEFORE = "nnUNetv2_predict", "swinfuse_predict", "nnUNetv2_predict before export"
WORDS = ("--intended_use", "Test of a round trip.", "--limits", "Trained for minutes.", "--weights_licence", "CC0")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.round_trip", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    raw = os.environ.get("nnUNet_raw")
    parser.add_argument("--raw", type=Path, default=raw, help="folder of both datasets; default: nnUNet_raw")
    parser.add_argument("--iterations", type=int, default=8, help="of each of the five epochs; default: 8")
    parser.add_argument("--linked", action="store_true", help="torch and other packages of this Python, linked, in "
                        "place of installing them (5 GB)")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when not given")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    options = parser.parse_args()
    if options.raw is None:
        parser.error("name the folder of the datasets with --raw, or set nnUNet_raw")
    with _folder(options.folder, options.keep) as folder:
        training = TrainingRoot(folder / "training", options.raw.resolve(), options.iterations)
        print("training", flush=True)
        training.train(SELECTIONS)
        print("building the environment", flush=True)
        environment = build(folder, options.linked)
        results = {s.dataset: examine(environment, training, s) for s in SELECTIONS}
        versions = _versions(environment)
        print("\n".join(table(results, versions)))
        content = {name: asdict(result) for name, result in results.items()}
        (folder / "round_trip.json").write_text(json.dumps({**versions, "datasets": content}, indent=1) + "\n")
    raise SystemExit(0 if all(result.identical for result in results.values()) else 1)


def build(folder: Path, linked: bool) -> Environment:
    """A new environment with a wheel of this checkout and what pip finds that it needs.

    One that an interrupted run has left gets the wheel again, and nothing else.

    Raises:
        BuildError: when a command fails.
    """
    workshop = Workshop(folder / "environment", full=not linked)
    environment = Environment(workshop.folder / "venv", Combination("wheel", "wheel", "pip", ""), None)
    for left in ("sources", "wheels", "clinic", "masks"):
        shutil.rmtree(workshop.folder / left, ignore_errors=True)
    if not environment.python.exists():
        environment.create()
        if linked:
            (environment.site / "dependencies.pth").write_text(f"{workshop.dependencies()}\n")
            environment.installer("install", "--quiet", "--no-deps", "nnunetv2")
    wheels = workshop.folder / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, workshop.package_source("wheel"))
    (wheel,) = wheels.glob("*.whl")
    if not linked:
        environment.installer("install", "--quiet", str(wheel))
    environment.installer("install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
    return environment


def examine(environment: Environment, training: TrainingRoot, selection: Selection) -> Agreement:
    """Exports, verifies, installs and predicts one model; compares the masks.

    Raises:
        BuildError: with the end of its output, when a command fails.
    """
    print(f"{selection.dataset}: exporting, installing, predicting", flush=True)
    model, images = training.model(selection), training.held_out(selection)
    archive = environment.folder.parent / f"{selection.number}.zip"
    training.run("swinfuse_export", "-m", model, "-o", archive, *WORDS)
    said = (training.root / "output.txt").read_text()
    digest = re.findall(r"--sha256 ([0-9a-f]{64})", said)[-1]
    results = environment.folder.parent / "clinic" / "results"
    results.mkdir(parents=True, exist_ok=True)
    # nnU-Net's import warns without the two others, which nothing here needs.
    variables = {f"nnUNet_{name}": str(results.parent / name) for name in ("raw", "preprocessed", "results")}
    _do(environment, "swinfuse_verify", archive, "--sha256", digest)
    _do(environment, "nnUNetv2_install_pretrained_model_from_zip", archive, **variables)
    installed = results / selection.dataset / model.name
    names = ("-d", selection.number, "-tr", TRAINER, "-p", PLANS, "-c", CONFIGURATION, "-f", FOLD)
    flags = ("-device", "cpu", "-npp", 1, "-nps", 1, *selection.flags)
    where = environment.folder.parent / "masks" / selection.dataset
    masks = {name: where / name.replace(" ", "_") for name in (STOCK, OURS, BEFORE)}
    _do(environment, "nnUNetv2_predict", "-i", images, "-o", masks[STOCK], *names, *flags, **variables)
    _do(environment, "swinfuse_predict", "-i", images, "-o", masks[OURS], "-m", installed, *flags)
    stock = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
    before = subprocess.run(
        [str(word) for word in (sys.executable, "-c", stock, "-i", images, "-o", masks[BEFORE], *names, *flags)],
        env={**os.environ, "nnUNet_results": str(training.root / "results")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if before.returncode:
        raise BuildError(f"nnUNetv2_predict before export:\n{(before.stdout + before.stderr)[-3000:]}")
    ending = json.loads((installed / "dataset.json").read_text())["file_ending"]
    cases = sorted(path.name[: -len(f"_0000{ending}")] for path in images.iterdir())
    return compare(masks, training.source / selection.dataset / "labelsTr", cases, ending)


def table(results: dict[str, Agreement], versions: dict[str, Any]) -> list[str]:
    """What was found, in Markdown."""
    others = (OURS, BEFORE)
    lines = [
        ", ".join(f"{name} {value}" for name, value in versions.items()),
        "",
        f"| dataset | cases | voxels, of them foreground | Dice | {' | '.join(f'differs in {o}' for o in others)} |",
        f"|{' --- |' * (4 + len(others))}",
    ]
    for name, found in results.items():
        differences = " | ".join(
            f"{found.different[o]} voxels, {found.grids[o]} grids, {found.bytes[o]} files" for o in others
        )
        share = f"{found.voxels}, {found.foreground}"
        lines.append(f"| {name} | {found.cases} | {share} | {found.dice:.3f} | {differences} |")
    return lines


def _do(environment: Environment, command: str, *arguments: object, **variables: str) -> str:
    result = environment.run(command, *arguments, **variables)
    if result.returncode not in (0, 3):
        raise BuildError(f"{command} ended with {result.returncode}:\n{(result.stdout + result.stderr)[-3000:]}")
    return result.stdout


def _versions(environment: Environment) -> dict[str, Any]:
    """Of the new environment, by a Python of its own."""
    packages = ("nnunetv2-swinfuse", "nnunetv2", "torch", "dynamic-network-architectures", "SimpleITK", "numpy")
    code = (
        f"import json; from importlib.metadata import version as v; print(json.dumps({{p: v(p) for p in {packages}}}))"
    )
    found = json.loads(_do(environment, "python", "-c", code))
    return {
        "machine": f"{platform.machine()} with {os.cpu_count()} cores",
        "python": platform.python_version(),
        **found,
    }


@contextmanager
def _folder(folder: Path | None, keep: bool) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    path = folder or Path(tempfile.mkdtemp(prefix="round_trip_"))
    try:
        yield path.resolve()
    finally:
        if keep or folder is not None:
            print(f"Kept: {path}")
        else:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
