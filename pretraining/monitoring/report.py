"""`report.html`: all results of a run in one file that can be kept, sent and printed.

    python -m pretraining.monitoring.report RUN_FOLDER [--without_pictures]

writes it again, also during the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.encoder_file import ENCODER_FILE
from nnunetv2_swinfuse.architecture.torch_file import map_torch_file
from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT
from pretraining.configuration import Configuration
from pretraining.monitoring import page
from pretraining.monitoring.curves import measured, panel_picture, panels
from pretraining.monitoring.environment import describe_environment
from pretraining.monitoring.health import health_warnings
from pretraining.monitoring.log import read_records
from pretraining.monitoring.panels import PANELS_FOLDER
from pretraining.next_commands import planning_command, training_command
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing
from pretraining.run_time import format_duration

REPORT = "report.html"
FACTS = "run.json"
CONFIGURATION = "configuration.json"


def write_facts(folder: Path, command: str, collection: PreprocessedCollection, device: torch.device) -> None:
    """Writes `run.json`: what the report shows besides the settings and records."""
    header = collection.header
    data = {
        "collection": collection.name,
        "layout": header.get("layout", "unknown"),
        "volumes": ", ".join(f"{count} {domain}" for domain, count in header.get("volumes", {}).items()),
        "modalities": ", ".join(collection.modalities),
        "patients": header.get("patients", len(collection.table.patients)),
        "registered pairs": header.get("pairs", "unknown"),
        "spacing": f"{format_spacing(collection.spacing)} (z, y, x)",
        "hash": collection.hash,
    }
    for name in ("train", "validation"):
        split = collection.split(name)
        data[f"volumes for {name}"] = f"{len(split.ct)} CT, {len(split.mr)} MR, {len(split.pairs)} pairs"
    content = {"command": command, "data": data, "surroundings": describe_environment(device)}
    with atomic_write(folder / FACTS) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


def write_report(folder: Path, note: str = "", pictures: bool = True) -> Path:
    """Writes `report.html` from the files in the run's folder.

    Args:
        folder: folder of the run.
        note: why the run ended, if it ended before its last step.
        pictures: whether to include reconstructions, which are pictures of patients.

    Raises:
        InputError: when the folder holds no run.
    """
    records = read_records(folder)
    try:
        settings = json.loads((folder / CONFIGURATION).read_text())
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no run to report on ({error}); give the folder of a run") from error
    configuration = Configuration.of_run(settings, str(folder / CONFIGURATION))
    validations = [record for record in records if record["kind"] == "validation"]
    step = max((record["step"] for record in records), default=0)
    title = f"SwinFUSE pretraining: {facts['data']['collection']}, preset {configuration.preset}"
    sections = [
        _summary(configuration, step, _seconds(folder), note),
        _warnings(validations, configuration.steps),
        _health(validations),
        _curves(records),
        _pictures(folder) if pictures else "",
        page.section(
            "Fine-tune it",
            page.paragraph("For a dataset that nnU-Net has planned and preprocessed. Once before: swinfuse_register."),
            page.code(_fine_tuning(folder, configuration.backbone)),
        ),
        page.section("Data", page.facts(facts["data"])),
        page.section("Machine and versions", page.facts(facts["surroundings"])),
        page.section("Configuration", page.paragraph("Command:"), page.code(facts["command"]), _settings(settings)),
    ]
    path = folder / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(page.page(title, filter(None, sections)), encoding="utf-8")
    return path


def _summary(configuration: Configuration, step: int, seconds: float | None, note: str) -> str:
    finished = "Finished" if step >= configuration.steps else "Not finished"
    time = f", {format_duration(seconds)} of training" if seconds is not None else ""
    lines = [page.paragraph(f"{finished}: {step} of {configuration.steps} steps{time}.", "lead")]
    if note:
        lines.append(page.paragraph(note, "lead"))
    return "\n".join(lines)


def _warnings(validations: Sequence[dict[str, Any]], steps: int) -> str:
    if not validations:
        return page.box("No validation has run yet, so the run's health cannot be assessed.", warning=True)
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
    for panel in panels(validations):
        if not measured(panel, validations):
            continue
        for name in panel.names:
            title = panel.title if len(panel.names) == 1 else f"{panel.title} ({name.replace('_', ' ')})"
            rows.append((title, *(record.get(name) for record in shown), panel.hint or "falls"))
    steps = (f"step {record['step']}" for record in shown)
    return page.section("Health", page.table(("on validation crops", *steps, "how to read it"), rows))


def _curves(records: Sequence[dict[str, Any]]) -> str:
    every_panel = panels(records)
    shown = [panel for panel in every_panel if measured(panel, records)]
    if not shown:
        return ""
    pictures = [page.picture(panel_picture(panel, records), f"Curve over the steps: {panel.title}") for panel in shown]
    missing = [f"{panel.title} ({panel.empty})" for panel in every_panel if panel not in shown]
    content = [page.group("curves", pictures)]
    if missing:
        content.append(page.paragraph(f"Not measured: {'; '.join(missing)}."))
    return page.section("Curves", *content)


def _pictures(folder: Path) -> str:
    files = sorted((folder / PANELS_FOLDER).glob("step_*.png"))
    if not files:
        return ""
    pictures = [
        page.picture(file.read_bytes(), f"Reconstructions of a CT and an MR crop, {file.stem}", _caption(file))
        for file in dict.fromkeys((files[-1], files[0]))
    ]
    return page.section(
        "Reconstructions",
        page.paragraph("Pictures of volumes of the collection: share this page only with those who may see them."),
        page.group("pictures", pictures),
    )


def _caption(file: Path) -> str:
    return f"Step {int(file.stem.removeprefix('step_'))}: the same validation crops each time."


def _fine_tuning(folder: Path, backbone: Backbone) -> str:
    encoder = folder / ENCODER_FILE
    planning, command = planning_command(backbone), training_command(backbone)
    planning_line = f"{planning}\n" if planning else ""
    return (
        f"{planning_line}{command}\n\n# With the encoder of this run, also after later runs:\n"
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
    """Time spent in steps over all interruptions, from the checkpoint."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    return float(map_torch_file(path)["seconds"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m pretraining.monitoring.report`."""
    parser = argparse.ArgumentParser(description="Write report.html of a pretraining run from the files in its folder.")
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--without_pictures", action="store_true", help="leave out pictures of patients")
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.folder, pictures=not options.without_pictures))
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
