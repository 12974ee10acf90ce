"""`report.html`: all that a run shows, in one file to keep, to send and to print.

    python -m pretraining.monitoring.report RUN_FOLDER [--without_pictures]

writes it anew, also while the run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.plain_loading import load_plain
from pretraining.checkpoint import CHECKPOINT
from pretraining.configuration import Configuration
from pretraining.errors import InputError
from pretraining.monitoring import page
from pretraining.monitoring.curves import PANELS, measured, panel_picture
from pretraining.monitoring.environment import surroundings
from pretraining.monitoring.health import health_warnings
from pretraining.monitoring.log import read_records
from pretraining.next_commands import planning_command, training_command
from pretraining.preprocessed.collection import PreprocessedCollection, millimetres
from pretraining.run_time import in_words

REPORT = "report.html"
FACTS = "run.json"


def write_facts(folder: Path, command: str, collection: PreprocessedCollection, device: torch.device) -> None:
    """Writes `run.json`: what the report says of a run beyond its settings and records."""
    header = collection.header
    data = {
        "collection": collection.name,
        "layout": header.get("layout", "unknown"),
        "volumes": ", ".join(f"{count} {domain}" for domain, count in header.get("volumes", {}).items()),
        "modalities": ", ".join(collection.modalities),
        "patients": header.get("patients", len(collection.table.patients)),
        "registered pairs": header.get("pairs", "unknown"),
        "spacing": f"{millimetres(collection.spacing)} (z, y, x)",
        "hash": collection.hash,
    }
    for name in ("train", "validation"):
        split = collection.split(name)
        data[f"volumes for {name}"] = f"{len(split.ct)} CT, {len(split.mr)} MR, {len(split.pairs)} pairs"
    content = {"command": command, "data": data, "surroundings": surroundings(device)}
    (folder / FACTS).write_text(json.dumps(content, indent=4) + "\n")


def write_report(folder: Path, note: str = "", pictures: bool = True) -> Path:
    """Writes `report.html` from what lies in the run's folder.

    Args:
        folder: of the run.
        note: a sentence on how it ended, if not by its last step.
        pictures: whether to show reconstructions, which are pictures of patients.

    Raises:
        InputError: when the folder holds no run.
    """
    records = read_records(folder)
    try:
        settings = json.loads((folder / "configuration.json").read_text())
        about = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no run to report on ({error}); give the folder of a run") from error
    configuration = Configuration.from_dict(settings, str(folder / "configuration.json"))
    validations = [record for record in records if record["kind"] == "validation"]
    step = max((record["step"] for record in records), default=0)
    title = f"SwinFUSE pretraining: {about['data']['collection']}, preset {configuration.preset}"
    sections = [
        _summary(configuration, step, _seconds(folder), note),
        _warnings(validations, configuration.steps),
        _health(validations),
        _curves(records),
        _pictures(folder) if pictures else "",
        page.section(
            "Fine-tune it",
            page.paragraph("For a dataset that nnU-Net has planned and preprocessed; once before: swinfuse_register."),
            page.code(_fine_tuning(folder, configuration.backbone)),
        ),
        page.section("Data", page.facts(about["data"])),
        page.section("Machine and versions", page.facts(about["surroundings"])),
        page.section("Configuration", page.paragraph("Made by:"), page.code(about["command"]), _settings(settings)),
    ]
    path = folder / REPORT
    temporary = folder / f"{REPORT}.tmp"
    temporary.write_text(page.page(title, filter(None, sections)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _summary(configuration: Configuration, step: int, seconds: float | None, note: str) -> str:
    finished = "Finished" if step >= configuration.steps else "Not finished"
    time = f", {in_words(seconds)} of training" if seconds is not None else ""
    lines = [page.paragraph(f"{finished}: {step} of {configuration.steps} steps{time}.", "lead")]
    if note:
        lines.append(page.paragraph(note, "lead"))
    return "\n".join(lines)


def _warnings(validations: Sequence[dict[str, Any]], steps: int) -> str:
    if not validations:
        return page.box("There was no validation yet, so nothing can be said of the run's health.", warning=True)
    last = validations[-1]
    warnings = health_warnings(_numbers(last), last["step"] / max(steps, 1))
    if not warnings:
        return page.box(f"No warning at the last validation, step {last['step']}.")
    return page.box(f"Warnings at the last validation, step {last['step']}", warnings, warning=True)


def _health(validations: Sequence[dict[str, Any]]) -> str:
    if not validations:
        return ""
    shown = validations if len(validations) == 1 else (validations[0], validations[-1])
    rows = []
    for panel in PANELS:
        if not measured(panel, validations):
            continue
        for name in panel.names:
            title = panel.title if len(panel.names) == 1 else f"{panel.title} ({name.replace('_', ' ')})"
            rows.append((title, *(record.get(name) for record in shown), panel.hint or "falls"))
    steps = (f"step {record['step']}" for record in shown)
    return page.section("Health", page.table(("on validation crops", *steps, "how to read it"), rows))


def _curves(records: Sequence[dict[str, Any]]) -> str:
    shown = [panel for panel in PANELS if measured(panel, records)]
    if not shown:
        return ""
    drawn = [page.picture(panel_picture(panel, records), f"Curve over the steps: {panel.title}") for panel in shown]
    missing = [f"{panel.title} ({panel.empty})" for panel in PANELS if panel not in shown]
    content = [page.group("curves", drawn)]
    if missing:
        content.append(page.paragraph(f"Not measured: {'; '.join(missing)}."))
    return page.section("Curves", *content)


def _pictures(folder: Path) -> str:
    files = sorted((folder / "panels").glob("step_*.png"))
    if not files:
        return ""
    drawn = [
        page.picture(file.read_bytes(), f"Reconstructions of a CT and an MR crop, {file.stem}", _caption(file))
        for file in dict.fromkeys((files[-1], files[0]))
    ]
    return page.section(
        "Reconstructions",
        page.paragraph("Pictures of volumes of the collection: pass this page on only where those may go."),
        page.group("pictures", drawn),
    )


def _caption(file: Path) -> str:
    return f"Step {int(file.stem.removeprefix('step_'))}: the same validation crops each time."


def _fine_tuning(folder: Path, backbone: Backbone) -> str:
    encoder = folder / "encoder.pth"
    planning, command = planning_command(backbone), training_command(backbone)
    before = f"{planning}\n" if planning else ""
    return (
        f"{before}{command}\n\n# From exactly this run, whatever is pretrained later:\n"
        f"SWINFUSE_CHECKPOINT={encoder.absolute()} {command}"
    )


def _settings(settings: dict[str, Any]) -> str:
    names = list(settings)
    half = -(-len(names) // 2)
    columns = ({name: json.dumps(settings[name]) for name in part} for part in (names[:half], names[half:]))
    return page.group("tables", map(page.facts, columns))


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def _seconds(folder: Path) -> float | None:
    """Time spent in steps, as the checkpoint counts it over all interruptions."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    # Mapped: the tensors are not read.
    return float(load_plain(path, mmap=True)["seconds"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m pretraining.monitoring.report`."""
    parser = argparse.ArgumentParser(description="Write report.html of a pretraining run from what lies in its folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without_pictures", action="store_true", help="leave pictures of patients out")
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.folder, pictures=not options.without_pictures))
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
