"""report.json of a prediction: what was done with what, case by case; and its summary on the screen."""

from __future__ import annotations

import argparse
import json
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunetv2_swinfuse.architecture.atomic_write import write_text
from nnunetv2_swinfuse.compatibility import nnunet_warning
from nnunetv2_swinfuse.inference.export import PACKAGES
from nnunetv2_swinfuse.inference.findings import CaseFindings, Finding, Severity
from nnunetv2_swinfuse.inference.loading import LoadedModel
from nnunetv2_swinfuse.inference.model_description import ModelDescription

# A case that ends so has no mask of this run.
WITHOUT_MASK = ("refused", "failed")


def report_header(
    options: argparse.Namespace,
    arguments: Sequence[str],
    model: LoadedModel,
    described: ModelDescription,
    device: torch.device,
    started: datetime,
) -> dict[str, Any]:
    """Everything but the cases: command, versions, machine, and the model with its hashes."""
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


def case_entry(result: CaseFindings) -> dict[str, Any]:
    """A case as its checks left it: refused, or pending."""
    status = "refused" if result.severity is Severity.REFUSED else "pending"
    return {"status": status, "warnings": [], **result.to_dict()}


def refuse_case(entry: dict[str, Any], check: str, reason: str, remedy: str) -> None:
    """Makes the entry of a case that of a refused one."""
    entry["status"] = entry["verdict"] = "refused"
    entry["findings"].append(Finding(check, Severity.REFUSED, reason, remedy).to_dict())


def note_earlier_mask(entry: dict[str, Any], mask: Path) -> None:
    """Warns of the mask that an earlier run left for a case that has none of this run."""
    if entry["status"] in WITHOUT_MASK and mask.is_file():
        entry["earlier_mask"] = str(mask)
        entry["warnings"].append(f"{mask} of an earlier run is still there")


def write_report(report: dict[str, Any], path: Path, clock: float, finished: bool) -> None:
    """Writes the report as it stands; `clock` is when the command began."""
    report["finished"], report["seconds"] = finished, round(time.perf_counter() - clock, 2)
    write_text(path, json.dumps(report, indent=2) + "\n")


def case_severity(entry: Mapping[str, Any]) -> Severity:
    """What a case contributes to the exit code."""
    if entry["status"] in WITHOUT_MASK:
        return Severity.REFUSED
    return Severity.WARNING if entry["warnings"] or entry["verdict"] == "warning" else Severity.PASSED


def print_summary(entries: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Warnings, cases without a mask, and how many cases there were of each kind."""
    for case, entry in entries.items():
        for warning in entry["warnings"]:
            print(f"{case}: {warning}")
        if entry["status"] in WITHOUT_MASK:
            reason = entry.get("error") or "; ".join(
                f["reason"] for f in entry["findings"] if f["severity"] == "refused"
            )
            mask = "no new mask" if "earlier_mask" in entry else "no mask"
            print(f"{case}: {entry['status'].upper()}, {mask}: {reason}", file=sys.stderr)
    statuses = [entry["status"] for entry in entries.values()]
    print(", ".join(f"{statuses.count(s)} {s}" for s in ("predicted", "kept", "refused", "failed")) + f"; see {path}")


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed as a package"
