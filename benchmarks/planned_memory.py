"""Estimated and measured peak memory of a training step, and weights for `planning/memory.py` fitted to it.

    python benchmarks/planned_memory.py --output FOLDER            # without a GPU: meta tensors, no memory needed
    python benchmarks/planned_memory.py --output FOLDER --plans nnUNetSwinFUSEPlans.json    # plans against their target

With a GPU the steps are real and `torch.cuda.max_memory_allocated` is read; cases that do not fit are marked.
`--compiled` adds torch.compile, nnU-Net's default on CUDA. Writes planned_memory.json and planned_memory.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from scipy.optimize import nnls
from tqdm import tqdm

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.registry import plans_architecture
from nnunetv2_swinfuse.planning.measured_memory import cuda_step_memory, meta_step_memory
from nnunetv2_swinfuse.planning.memory import (
    GIBIBYTE,
    StepSizes,
    bias_gradient_memory,
    estimate_step_memory,
    step_sizes,
)

SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {"feature_size": 24},
    "wide": {"feature_size": 96, "num_heads": (6, 12, 24, 48)},
    "deep": {"depths": (2, 2, 6, 2), "window_size": 5},
    "shallow": {"feature_size": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4},
    "thin": {"mlp_ratio": 2.0},
    "no DIM": {"domain_invariance": None},
    "windows of 10": {"window_size": 10},
    "windows of 14": {"window_size": 14},
}
# Encoder, patch (z, y, x), spacing (z, y, x) from which nnU-Net derives the strides, batch, channels, classes.
CASES = [
    ("base", (32, 32, 32), (1, 1, 1), 2, 1, 3),
    ("base", (64, 64, 64), (1, 1, 1), 2, 1, 3),
    ("base", (96, 96, 96), (1, 1, 1), 2, 1, 3),
    ("base", (96, 96, 96), (1, 1, 1), 4, 1, 3),
    ("base", (128, 128, 128), (1, 1, 1), 2, 1, 3),
    ("base", (128, 128, 128), (1, 1, 1), 2, 4, 4),
    ("base", (192, 160, 160), (1, 1, 1), 2, 1, 3),
    ("base", (192, 224, 192), (1, 1, 1), 2, 1, 3),
    ("base", (224, 256, 224), (1, 1, 1), 2, 1, 3),
    ("base", (160, 192, 160), (1, 1, 1), 5, 4, 3),
    ("base", (160, 160, 160), (1, 1, 1), 4, 1, 15),
    ("base", (40, 56, 40), (1, 1, 1), 9, 1, 3),
    ("base", (20, 320, 256), (5, 0.8, 0.8), 2, 1, 3),
    ("base", (20, 320, 320), (3.6, 0.6, 0.6), 7, 2, 2),
    ("base", (32, 192, 192), (3, 1, 1), 2, 1, 3),
    ("base", (16, 160, 160), (6, 1, 1), 6, 1, 3),
    ("base", (96, 96, 96), (1, 1, 1), 2, 1, 30),
    ("base", (128, 112, 128), (1, 1, 1), 3, 1, 105),
    ("small", (64, 64, 64), (1, 1, 1), 2, 1, 3),
    ("small", (96, 160, 96), (1, 1, 1), 4, 1, 3),
    ("small", (128, 128, 128), (1, 1, 1), 2, 1, 3),
    ("shallow", (96, 96, 96), (1, 1, 1), 2, 1, 3),
    ("thin", (112, 112, 128), (1, 1, 1), 2, 1, 3),
    ("thin", (96, 96, 96), (1, 1, 1), 4, 1, 3),
    ("deep", (112, 112, 128), (1, 1, 1), 2, 1, 3),
    ("no DIM", (112, 112, 128), (1, 1, 1), 2, 1, 3),
    ("windows of 10", (96, 96, 96), (1, 1, 1), 2, 1, 3),
    ("windows of 10", (128, 128, 128), (1, 1, 1), 2, 1, 3),
    ("windows of 14", (64, 64, 64), (1, 1, 1), 2, 1, 3),
    ("windows of 14", (96, 96, 96), (1, 1, 1), 2, 1, 3),
    ("wide", (96, 96, 96), (1, 1, 1), 2, 1, 3),
    ("wide", (128, 128, 128), (1, 1, 1), 2, 1, 3),
]


def calibration_cases() -> list[dict[str, Any]]:
    """The table above with strides and kernels as nnU-Net plans them."""
    cases = []
    for name, patch, spacing, batch, channels, classes in CASES:
        _, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
        architecture = plans_architecture(
            strides, EncoderSettings(**SIZES[name]), kernel_sizes=kernels, drop_path_rate=0.1
        )
        cases.append(
            {
                "case": name,
                "arch_kwargs": architecture["arch_kwargs"],
                "patch_size": [int(size) for size in padded],
                "batch_size": batch,
                "input_channels": channels,
                "classes": classes,
            }
        )
    return cases


def planned_cases(plans_file: Path) -> list[dict[str, Any]]:
    """The 3d configurations of a plans file, with the target that they were planned for."""
    plans = json.loads(plans_file.read_text())
    dataset = json.loads((plans_file.parent / "dataset.json").read_text())
    return [
        {
            "case": f"{plans['dataset_name']} {name}",
            "arch_kwargs": block["architecture"]["arch_kwargs"],
            "patch_size": block["patch_size"],
            "batch_size": block["batch_size"],
            "input_channels": len(dataset.get("channel_names", dataset.get("modality"))),
            "classes": len(dataset["labels"]),
            "target": block["swinfuse"]["planned"]["gpu_memory_target_in_gb"] * GIBIBYTE,
        }
        for name, block in plans["configurations"].items()
        if "planned" in block.get("swinfuse", {})
    ]


def step_arguments(case: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(case[name] for name in ("arch_kwargs", "patch_size", "batch_size", "input_channels", "classes"))


def measure(case: dict[str, Any], compiled: bool) -> int | None:
    """Peak bytes; None when the GPU has too little memory."""
    if not torch.cuda.is_available():
        return meta_step_memory(*step_arguments(case))
    try:
        return cuda_step_memory(*step_arguments(case), compiled=compiled)
    except torch.cuda.OutOfMemoryError:
        return None


def fit(cases: list[dict[str, Any]]) -> StepSizes:
    """Weights that minimise the relative error, none negative, of steps that peak when all activations are alive."""
    measured = [
        case
        for case in cases
        if case["measured"] is not None and bias_gradient_memory(*step_arguments(case)) < 0.9 * case["measured"]
    ]
    sizes = np.array([astuple(step_sizes(*step_arguments(case))) for case in measured], dtype=float)
    peaks = np.array([case["measured"] for case in measured], dtype=float)
    weights, _ = nnls(sizes / peaks[:, None], np.ones(len(peaks)))
    return StepSizes(*(round(float(weight), 2) for weight in weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--plans", type=Path, nargs="+", help="plans files to measure instead of the calibration cases")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile (GPU only)")
    options = parser.parse_args()
    cases = calibration_cases()
    if options.plans:
        cases = [case for file in options.plans for case in planned_cases(file)]
    for case in tqdm(cases, desc="training steps"):
        case["measured"] = measure(case, options.compiled)
        case["estimated"] = estimate_step_memory(*step_arguments(case))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: meta tensors"
    report = {
        "device": device,
        "compiled": options.compiled,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cases": cases,
    }
    if not options.plans:
        report["bytes_per_element"] = {f.name: getattr(fit(cases), f.name) for f in fields(StepSizes)}
    lines = [
        f"Measured: {device}, torch {torch.__version__}{', compiled' if options.compiled else ''}. GB are GiB.",
        "",
        "| case | patch | batch | channels | classes | target GB | measured GB | estimated GB | estimated / measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        measured, estimated = case["measured"], case["estimated"] / GIBIBYTE
        figures = ("does not fit", f"{estimated:.2f}", "")
        if measured is not None:
            figures = (f"{measured / GIBIBYTE:.2f}", f"{estimated:.2f}", f"{case['estimated'] / measured:.2f}")
        target = f"{case['target'] / GIBIBYTE:g}" if "target" in case else ""
        patch = " x ".join(map(str, case["patch_size"]))
        numbers = [case["batch_size"], case["input_channels"], case["classes"], target, *figures]
        lines.append(f"| {case['case']} | {patch} | " + " | ".join(map(str, numbers)) + " |")
    if "bytes_per_element" in report:
        lines += ["", f"Fitted now: {report['bytes_per_element']}"]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "planned_memory.json").write_text(json.dumps(report, indent=1))
    (options.output / "planned_memory.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
