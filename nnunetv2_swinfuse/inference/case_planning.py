"""Which cases are predicted: not refused ones, nor those whose mask exists or that would not fit into memory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.inference.case_runner import CaseTask, is_out_of_memory
from nnunetv2_swinfuse.inference.estimate import CaseEstimate, available_memory, estimate_case, seconds_per_pass
from nnunetv2_swinfuse.inference.findings import CaseFindings
from nnunetv2_swinfuse.inference.first_stage_mask import check_first_stage_mask
from nnunetv2_swinfuse.inference.loading import LoadedModel
from nnunetv2_swinfuse.inference.model_description import ModelDescription, grid_as_read
from nnunetv2_swinfuse.inference.model_files import file_hash
from nnunetv2_swinfuse.inference.output_folder import OutputFolder
from nnunetv2_swinfuse.inference.prediction_report import note_earlier_mask, refuse_case

# From this many forward passes on, one is timed to say how long the run will take.
TIMED_FROM = 100


def plan_cases(
    checked: Sequence[CaseFindings],
    entries: Mapping[str, dict[str, Any]],
    output: OutputFolder,
    origin: Mapping[str, Any],
    options: argparse.Namespace,
    model: LoadedModel,
) -> tuple[list[CaseTask], int]:
    """The cases to predict and the sum of their forward passes; the entries of the others say why not.

    Args:
        checked: all cases.
        entries: theirs in the report, by name.
        output: the folder of the masks.
        origin: what masks are predicted with: hashes of the model and settings.
        options: of the command line.
        model: the model.
    """
    tasks, passes = [], 0
    for result in checked:
        entry = entries[result.case]
        try:
            task = plan_case(result, entry, output, origin, options, model)
            estimate = None if task is None else estimate_task(task, model)
        except InputError as error:
            # A file of this case; the others can be predicted.
            refuse_case(entry, "readable", str(error), "Export it again, or leave it out.")
            continue
        if task is not None and estimate is not None and fits_into_memory(estimate, entry, options.accept):
            tasks.append(task)
            passes += estimate.passes
    for case, entry in entries.items():
        note_earlier_mask(entry, output.mask(case))
    return tasks, passes


def plan_case(
    result: CaseFindings,
    entry: dict[str, Any],
    output: OutputFolder,
    origin: Mapping[str, Any],
    options: argparse.Namespace,
    model: LoadedModel,
) -> CaseTask | None:
    """What to predict; None for a refused case and for one whose mask is kept, which the entry then says."""
    if entry["status"] == "refused":
        return None
    entry["input_sha256"] = [file_hash(path) for path in result.files]
    previous = None
    if model.predictor.configuration_manager.previous_stage_name is not None:
        previous = options.prev_stage_predictions / f"{result.case}{output.ending}"
        if not previous.is_file():
            refuse_case(entry, "channels", f"no mask of the first stage, {previous}", "Predict the first stage first.")
            return None
        try:
            entry["previous_stage_sha256"] = check_first_stage_mask(
                previous, result.case, result.files[0], model.predictor.dataset_json["labels"], entry["input_sha256"]
            )
        except InputError as error:
            refuse_case(entry, "channels", f"the mask of the first stage: {error}", "Predict the first stage again.")
            return None
    exists, record = output.earlier(result.case)
    if exists and not options.overwrite:
        if record is None:
            entry["status"] = "kept"
            entry["warnings"].append("an existing mask of unknown origin, or changed since, was kept; see --overwrite")
            return None
        used = ("input_sha256", "previous_stage_sha256")
        if record.get("origin") != dict(origin) or any(record.get(name) != entry.get(name) for name in used):
            refuse_case(
                entry, "output",
                f"{output.mask(result.case)} is the mask of another image, first-stage mask, model or setting",
                "Choose another folder with -o, or replace it with --overwrite.",
            )  # fmt: skip
            return None
        # Without its probabilities, the same mask is predicted again.
        if output.is_complete(result.case, record):
            kept = ("mask", "mask_sha256", "volumes_ml", "seconds", "device")
            entry.update({name: record[name] for name in kept if name in record})
            entry["status"] = "kept"
            entry["warnings"] += record.get("warnings", [])
            return None
    return CaseTask(result.case, result.files, output.draft(result.case), previous)


def estimate_task(task: CaseTask, model: LoadedModel) -> CaseEstimate:
    """Memory and forward passes of a case, by the header of its first channel."""
    grid = grid_as_read(read_grid(task.files[0]), model.predictor.plans_manager.plans)
    return estimate_case(grid.size[::-1], grid.spacing[::-1], len(task.files), model.predictor)


def fits_into_memory(estimate: CaseEstimate, entry: dict[str, Any], accepted: Sequence[str]) -> bool:
    """Whether a case can start; notes its estimate and, if it cannot, the refusal in its entry."""
    free = available_memory()
    entry["memory_bytes_estimated"] = estimate.memory
    if free is None or estimate.memory <= free:
        return True
    reason = (
        f"needs about {estimate.memory / 1e9:.1f} GB of memory at {estimate.shape} voxels after resampling, "
        f"{free / 1e9:.1f} GB are free"
    )
    if "memory" in accepted:
        entry["warnings"].append(f"{reason} (accepted by --accept)")
        return True
    refuse_case(entry, "memory", reason, "Crop it to the region of the training images, or use more memory.")
    return False


def announce(count: int, passes: int, model: LoadedModel, described: ModelDescription, folder: Path) -> dict[str, Any]:
    """Prints how much is to be predicted and about how long it will take; returns the same for the report.

    Where not even one patch fits into the memory of the GPU, the time is left out.
    """
    estimate: dict[str, Any] = {"cases": count, "forward_passes": passes}
    text = f"{count} case(s) to predict with {passes} forward passes"
    if passes >= TIMED_FROM:
        try:
            seconds = passes * seconds_per_pass(model.predictor, _input_channels(model, described))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            text += " (how long it takes is not known: no memory is left on the GPU)"
        else:
            estimate["seconds"] = round(seconds, 1)
            text += f", about {seconds / 60:.0f} min" if seconds > 120 else f", about {seconds:.0f} s"
    print(f"{text}, into {folder}")
    return estimate


def _input_channels(model: LoadedModel, described: ModelDescription) -> int:
    cascaded = model.predictor.configuration_manager.previous_stage_name is not None
    return len(described.channels) + (len(model.predictor.label_manager.foreground_labels) if cascaded else 0)
