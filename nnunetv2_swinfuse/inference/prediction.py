"""From checked images to masks and report.json: what `swinfuse_predict` does once its command line is read."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.atomic_write import write_text
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.nifti import check_nifti
from nnunetv2_swinfuse.inference.case_planning import announce, plan_cases
from nnunetv2_swinfuse.inference.case_runner import CaseResult, run_cases
from nnunetv2_swinfuse.inference.cases import InputCase, find_cases
from nnunetv2_swinfuse.inference.check import check_cases, print_findings
from nnunetv2_swinfuse.inference.findings import EXIT_CODES, Severity
from nnunetv2_swinfuse.inference.loading import LoadedModel, load_model
from nnunetv2_swinfuse.inference.mask_summary import summarise_mask
from nnunetv2_swinfuse.inference.model_description import ModelDescription, describe_model
from nnunetv2_swinfuse.inference.output_folder import OutputFolder
from nnunetv2_swinfuse.inference.overlay import write_overlay
from nnunetv2_swinfuse.inference.prediction_report import (
    case_entry,
    case_severity,
    note_earlier_mask,
    print_summary,
    report_header,
    write_report,
)
from nnunetv2_swinfuse.nnunet_names import DATASET_FILE, PLANS_FILE

# Options that decide what a mask is: a mask predicted with other values is not kept.
DECISIVE = ("step_size", "disable_tta", "chk")


def predict(options: argparse.Namespace, folder: Path, arguments: Sequence[str]) -> int:
    """Checks, predicts and reports all cases.

    Args:
        options: of the command line.
        folder: the model's.
        arguments: the command line, for the report.

    Returns:
        the exit code: 0, 3 with warnings, 4 when a case has no mask.

    Raises:
        InputError: when nothing can be predicted: no model, no images, no place for the masks.
    """
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    described = describe_model(folder)
    cases = find_cases(options.i, described.file_ending, len(described.channels))
    output = OutputFolder(
        options.o, described.file_ending, options.save_probabilities, options.part_id, options.num_parts
    )
    output.protect(_inputs(options, described, cases), [case.name for case in cases], options.i)
    device = _device(options.device)
    with output:
        checked = check_cases(
            cases[options.part_id :: options.num_parts], described, options.accept, not options.disable_progress_bar
        )
        print_findings(checked)
        model = _load(folder, options, device)
        report = report_header(options, arguments, model, described, device, started)
        entries = {result.case: case_entry(result) for result in checked}
        report["cases"] = list(entries.values())
        origin = {**model.hashes, **{name: getattr(options, name) for name in DECISIVE}}
        tasks, passes = plan_cases(checked, entries, output, origin, options, model)
        if options.overlays:
            for result in checked:
                if entries[result.case]["status"] == "kept":
                    _draw_overlay(result.case, result.files[0], entries[result.case], output)
        report["estimate"] = announce(len(tasks), passes, model, described, options.o)
        # Before the first case, so that a kill does not leave the finished report of an earlier run.
        write_report(report, output.report, clock, finished=False)
        for name in (DATASET_FILE, PLANS_FILE):
            # What nnU-Net's postprocessing and ensembling look for beside masks.
            content = model.predictor.dataset_json if name == DATASET_FILE else model.predictor.plans_manager.plans
            write_text(options.o / name, json.dumps(content, indent=4))
        results = run_cases(tasks, model.predictor, options.save_probabilities, options.npp, options.nps)
        for result in tqdm(
            _quiet(results, options.verbose), "predicting", len(tasks), disable=options.disable_progress_bar
        ):
            _finish_case(result, entries[result.task.case], output, origin, described, options)
            write_report(report, output.report, clock, finished=False)
        write_report(report, output.report, clock, finished=True)
    print_summary(entries, output.report)
    return EXIT_CODES[max((case_severity(entry) for entry in entries.values()), default=Severity.PASSED)]


def _inputs(options: argparse.Namespace, described: ModelDescription, cases: Sequence[InputCase]) -> list[Path]:
    """The files that no output may replace."""
    files = [path for case in cases for path in case.files.values()]
    if options.prev_stage_predictions is not None:
        files += [options.prev_stage_predictions / f"{case.name}{described.file_ending}" for case in cases]
    return [*files, described.folder / DATASET_FILE, described.folder / PLANS_FILE]


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("-device cuda: PyTorch finds no GPU here. Use -device cpu, or repair the driver")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("-device mps: PyTorch finds no Apple GPU here. Use -device cpu")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    # As nnUNetv2_predict does: the number of threads can decide the last bit.
    torch.set_num_threads(os.cpu_count() or 1 if device.type == "cpu" else 1)
    return device


def _load(folder: Path, options: argparse.Namespace, device: torch.device) -> LoadedModel:
    with _silent():
        predictor = nnUNetPredictor(
            tile_step_size=options.step_size,
            use_mirroring=not options.disable_tta,
            perform_everything_on_device=not options.not_on_device,
            device=device,
            verbose=options.verbose,
            verbose_preprocessing=options.verbose,
            allow_tqdm=not options.disable_progress_bar,
        )
        model = load_model(folder, options.f, options.chk, predictor)
    if predictor.configuration_manager.previous_stage_name is not None and options.prev_stage_predictions is None:
        raise InputError(
            f"{folder}: the second stage of a cascade; name the masks of its first stage "
            f"({predictor.configuration_manager.previous_stage_name}) with -prev_stage_predictions"
        )
    return model


def _finish_case(
    result: CaseResult,
    entry: dict[str, Any],
    output: OutputFolder,
    origin: Mapping[str, Any],
    described: ModelDescription,
    options: argparse.Namespace,
) -> None:
    entry["seconds"], entry["device"] = result.seconds, result.device
    entry["warnings"] += result.warnings
    case = result.task.case
    if result.error is None:
        try:
            draft = Path(f"{result.task.draft}{output.ending}")
            # ITK does not notice everything that goes wrong on a full disk.
            check_nifti(draft)
            summary = summarise_mask(draft, described.labels)
            entry["volumes_ml"] = summary.volumes_ml
            if summary.empty:
                entry["warnings"].append("the mask is empty: no structure was found")
            entry["mask"] = str(output.mask(case))
            kept = (
                "mask", "volumes_ml", "seconds", "device", "warnings", "input_sha256", "previous_stage_sha256"
            )  # fmt: skip
            record = {"case": case, "origin": dict(origin), **{name: entry[name] for name in kept if name in entry}}
            entry["mask_sha256"] = output.publish(case, record)
            entry["status"] = "predicted"
        except (InputError, OSError, RuntimeError) as error:
            result.error = f"the mask could not be written ({error})"
    if result.error is not None:
        entry["status"], entry["error"], entry["traceback"] = "failed", result.error, result.details
        entry.pop("mask", None)
        note_earlier_mask(entry, output.mask(case))
    elif options.overlays:
        _draw_overlay(case, result.task.files[0], entry, output)


def _draw_overlay(case: str, image: Path, entry: dict[str, Any], output: OutputFolder) -> None:
    """Draws the picture of a mask unless there is one that is not older than it."""
    picture, mask = output.overlay(case), output.mask(case)
    try:
        if not picture.is_file() or picture.stat().st_mtime < mask.stat().st_mtime:
            write_overlay(image, mask, picture)
    except (OSError, RuntimeError, ValueError) as error:
        entry["warnings"].append(f"no overlay picture ({type(error).__name__}: {error})")


class _Nowhere(io.TextIOBase):
    """Never closed: a thread may still be printing into it."""

    def write(self, text: str) -> int:
        return len(text)


def _silent() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(_Nowhere())


def _quiet(results: Iterator[CaseResult], verbose: bool) -> Iterator[CaseResult]:
    """nnU-Net's own messages only with --verbose; ours are printed between cases."""
    while True:
        with contextlib.nullcontext() if verbose else _silent():
            result = next(results, None)
        if result is None:
            return
        yield result
