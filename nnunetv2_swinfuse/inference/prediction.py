"""From checked images to masks and report.json: what `swinfuse_predict` does once its command line is read."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunetv2_swinfuse.compatibility import nnunet_warning
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import read_grid
from nnunetv2_swinfuse.inference.case_runner import CaseResult, CaseTask, run_cases
from nnunetv2_swinfuse.inference.cases import find_cases
from nnunetv2_swinfuse.inference.check import check_cases, print_findings, write_text
from nnunetv2_swinfuse.inference.estimate import CaseEstimate, available_memory, estimate_case, seconds_a_pass
from nnunetv2_swinfuse.inference.export import PACKAGES
from nnunetv2_swinfuse.inference.findings import EXIT_CODES, CaseFindings, Severity
from nnunetv2_swinfuse.inference.loading import LoadedModel, file_hash, load_model
from nnunetv2_swinfuse.inference.mask_summary import label_volumes, write_overlay
from nnunetv2_swinfuse.inference.model_description import ModelDescription, describe_model
from nnunetv2_swinfuse.inference.output_folder import OutputFolder

# Options that decide what a mask is: a mask made with others is not kept for one of these.
DECISIVE = ("step_size", "disable_tta", "chk")
# From this many forward passes on, one is timed to say how long the run will take.
TIMED_FROM = 100


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
    cases = find_cases(options.i, described.file_ending, len(described.channels))[options.part_id :: options.num_parts]
    device = _device(options.device)
    part = f"_part{options.part_id}of{options.num_parts}" if options.num_parts > 1 else ""
    with OutputFolder(options.o, described.file_ending, part, options.save_probabilities) as output:
        checked = check_cases(cases, described, options.accept, not options.disable_progress_bar)
        print_findings(checked)
        model = _load(folder, options, device)
        report = _header(options, arguments, model, described, device, started)
        entries = {result.case: _entry(result) for result in checked}
        report["cases"] = list(entries.values())
        origin = {**model.hashes, **{name: getattr(options, name) for name in DECISIVE}}
        tasks, passes = [], 0
        for result in checked:
            task = _plan_case(result, entries[result.case], output, origin, options, model)
            if task is not None:
                estimate = _estimate(task, model)
                if _fits(estimate, entries[result.case], options.accept):
                    tasks.append(task)
                    passes += estimate.passes
        report["estimate"] = _announce(len(tasks), passes, model, described, options.o)
        report_path = options.o / f"report{part}.json"
        for name in ("dataset.json", "plans.json"):
            # What nnU-Net's postprocessing and ensembling look for beside masks.
            content = model.predictor.dataset_json if name == "dataset.json" else model.predictor.plans_manager.plans
            write_text(options.o / name, json.dumps(content, indent=4))
        results = run_cases(tasks, model.predictor, options.save_probabilities, options.npp, options.nps)
        for result in tqdm(
            _quiet(results, options.verbose), "predicting", len(tasks), disable=options.disable_progress_bar
        ):
            _finish_case(result, entries[result.task.case], output, origin, described, options)
            _write_report(report, report_path, clock, finished=False)
        _write_report(report, report_path, clock, finished=True)
    _print_result(entries, report_path)
    return EXIT_CODES[max((_severity(entry) for entry in entries.values()), default=Severity.PASSED)]


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


def _header(
    options: argparse.Namespace,
    arguments: Sequence[str],
    model: LoadedModel,
    described: ModelDescription,
    device: torch.device,
    started: datetime,
) -> dict[str, Any]:
    warnings = [warning] if (warning := nnunet_warning()) else []
    return {
        "format": "swinfuse-report",
        "format_version": 1,
        "finished": False,
        "arguments": list(arguments),
        "accepted": list(options.accept),
        "started": started.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        "model": {
            "folder": str(described.folder.resolve()),
            "dataset": described.dataset,
            "configuration": model.configuration,
            "folds": list(model.folds),
            "sha256": model.hashes,
        },
        "warnings": warnings,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed as a package"


def _entry(result: CaseFindings) -> dict[str, Any]:
    status = "refused" if result.severity is Severity.REFUSED else "pending"
    return {"status": status, "warnings": [], **result.to_dict()}


def _plan_case(
    result: CaseFindings,
    entry: dict[str, Any],
    output: OutputFolder,
    origin: Mapping[str, Any],
    options: argparse.Namespace,
    model: LoadedModel,
) -> CaseTask | None:
    """What to predict; None for a refused case and for one whose mask is kept, which the entry then says."""
    if entry["status"] == "refused":
        if output.mask(result.case).is_file():
            entry["warnings"].append(f"{output.mask(result.case)} of an earlier run is still there")
        return None
    entry["input_sha256"] = [file_hash(path) for path in result.files]
    previous = None
    if model.predictor.configuration_manager.previous_stage_name is not None:
        previous = options.prev_stage_predictions / f"{result.case}{output.ending}"
        if not previous.is_file():
            _refuse(entry, "channels", f"no mask of the first stage, {previous}", "Predict the first stage first.")
            return None
    exists, record = output.earlier(result.case)
    if exists and not options.overwrite:
        if record is None:
            entry["status"] = "kept"
            entry["warnings"].append("an existing mask of unknown origin, or changed since, was kept; see --overwrite")
        elif record.get("input_sha256") == entry["input_sha256"] and record.get("origin") == dict(origin):
            kept = ("mask", "mask_sha256", "volumes_ml", "seconds", "device")
            entry.update({name: record[name] for name in kept if name in record})
            entry["status"] = "kept"
            entry["warnings"] += record.get("warnings", [])
        else:
            _refuse(
                entry, "output",
                f"{output.mask(result.case)} is the mask of another image, model or setting",
                "Choose another folder with -o, or replace it with --overwrite.",
            )  # fmt: skip
        return None
    return CaseTask(result.case, result.files, output.draft(result.case), previous)


def _refuse(entry: dict[str, Any], check: str, reason: str, remedy: str) -> None:
    entry["status"] = "refused"
    finding = {"check": check, "severity": "refused", "reason": reason, "remedy": remedy, "accepted": False}
    entry["findings"].append({**finding, "file": None})
    entry["verdict"] = "refused"


def _estimate(task: CaseTask, model: LoadedModel) -> CaseEstimate:
    grid = read_grid(task.files[0])
    return estimate_case(grid.size[::-1], grid.spacing[::-1], len(task.files), model.predictor)


def _fits(estimate: CaseEstimate, entry: dict[str, Any], accepted: Sequence[str]) -> bool:
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
    _refuse(entry, "memory", reason, "Crop it to the region of the training images, or use a machine with more memory.")
    return False


def _announce(count: int, passes: int, model: LoadedModel, described: ModelDescription, folder: Path) -> dict[str, Any]:
    estimate: dict[str, Any] = {"cases": count, "forward_passes": passes}
    text = f"{count} case(s) to predict with {passes} forward passes"
    if passes >= TIMED_FROM:
        seconds = passes * seconds_a_pass(model.predictor, _input_channels(model, described))
        estimate["seconds"] = round(seconds, 1)
        text += f", about {seconds / 60:.0f} min" if seconds > 120 else f", about {seconds:.0f} s"
    print(f"{text}, into {folder}")
    return estimate


def _input_channels(model: LoadedModel, described: ModelDescription) -> int:
    cascaded = model.predictor.configuration_manager.previous_stage_name is not None
    return len(described.channels) + (len(model.predictor.label_manager.foreground_labels) if cascaded else 0)


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
            entry["volumes_ml"] = label_volumes(draft, described.labels)
            if not any(entry["volumes_ml"].values()):
                entry["warnings"].append("the mask is empty: no structure was found")
            entry["mask"] = str(output.mask(case))
            kept = ("mask", "volumes_ml", "seconds", "device", "warnings", "input_sha256")
            record = {"case": case, "origin": dict(origin), **{name: entry[name] for name in kept}}
            entry["mask_sha256"] = output.publish(case, record)
            entry["status"] = "predicted"
        except (InputError, OSError, RuntimeError) as error:
            result.error = f"the mask could not be written ({error})"
    if result.error is not None:
        entry["status"], entry["error"], entry["traceback"] = "failed", result.error, result.details
        entry.pop("mask", None)
    elif options.overlays:
        try:
            write_overlay(result.task.files[0], output.mask(case), output.folder / "overlays" / f"{case}.png")
        except (OSError, RuntimeError, ValueError) as error:
            entry["warnings"].append(f"no overlay picture ({type(error).__name__}: {error})")


def _write_report(report: dict[str, Any], path: Path, clock: float, finished: bool) -> None:
    report["finished"], report["seconds"] = finished, round(time.perf_counter() - clock, 2)
    write_text(path, json.dumps(report, indent=2) + "\n")


def _severity(entry: Mapping[str, Any]) -> Severity:
    if entry["status"] in ("refused", "failed"):
        return Severity.REFUSED
    return Severity.WARNING if entry["warnings"] or entry["verdict"] == "warning" else Severity.PASSED


def _print_result(entries: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    for case, entry in entries.items():
        for warning in entry["warnings"]:
            print(f"{case}: {warning}")
        if entry["status"] in ("refused", "failed"):
            reason = entry.get("error") or "; ".join(
                f["reason"] for f in entry["findings"] if f["severity"] == "refused"
            )
            print(f"{case}: {entry['status'].upper()}, no mask: {reason}", file=sys.stderr)
    statuses = [entry["status"] for entry in entries.values()]
    print(", ".join(f"{statuses.count(s)} {s}" for s in ("predicted", "kept", "refused", "failed")) + f"; see {path}")


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
