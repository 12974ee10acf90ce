"""Memory and forward passes of a case, by its header and the plans, before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

# `python -m benchmarks.prediction_memory` compares the estimate without it with the measured peak (docs/clinical.md).
MARGIN = 1.1
# Bytes of readers, writers and threads that do not depend on the image.
BUFFERS = 16 * 2**20


@dataclass(frozen=True)
class CaseEstimate:
    """What one case needs.

    Attributes:
        passes: forward passes of one patch: windows x mirrorings x folds.
        memory: bytes of main memory in addition to the model.
        shape: voxels after resampling, axes as in the plans.
    """

    passes: int
    memory: int
    shape: tuple[int, ...]


def estimate_case(
    size: Sequence[int], spacing: Sequence[float], channels: int, predictor: nnUNetPredictor
) -> CaseEstimate:
    """An upper estimate: cropping to nonzero, which would need the voxels, is left out.

    Args:
        size: voxels, axes (z, y, x).
        spacing: mm, axes (z, y, x).
        channels: of the image.
        predictor: with its model.
    """
    plans, configured = predictor.plans_manager, predictor.configuration_manager
    order = plans.transpose_forward
    shape = np.array([size[axis] for axis in order])
    original = [float(spacing[axis]) for axis in order]
    target = list(configured.spacing)
    if len(target) < 3:
        target = [original[0], *target]
    resampled = tuple(int(side) for side in compute_new_shape(shape, original, target))
    patch = tuple(configured.patch_size)
    sides = resampled[-len(patch) :]
    padded = tuple(max(side, tile) for side, tile in zip(sides, patch, strict=True))
    steps = compute_steps_for_sliding_window(padded, patch, predictor.tile_step_size)
    windows = int(np.prod([len(step) for step in steps])) * (resampled[0] if len(patch) == 2 else 1)
    axes = predictor.allowed_mirroring_axes if predictor.use_mirroring else None
    mirrorings = 2 ** len(axes) if axes else 1
    heads = predictor.label_manager.num_segmentation_heads
    before, after = int(np.prod(shape)), int(np.prod(np.maximum(resampled, (1,) * (3 - len(patch)) + patch)))
    # Bytes a voxel. nnU-Net resamples in float64: image and logits as a whole, their results channel by channel.
    changed = resampled != tuple(shape)
    preprocessing = channels * (24 * before + (16 * after if changed else 0))
    prediction = after * (8 * channels + 4 * (heads + 1))
    export = heads * (2 * after + (8 * after + 2 * before if changed else 0)) + 8 * before
    # The next case is read and the last one written meanwhile, and freed memory is not always returned.
    memory = int(MARGIN * (BUFFERS + preprocessing + prediction + export))
    return CaseEstimate(windows * mirrorings * len(predictor.list_of_parameters), memory, resampled)


def available_memory() -> int | None:
    """Bytes of main memory that are free, for this container if it is in one; None where the system does not say."""
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            group = Path("/sys/fs/cgroup")
            left = int(limit) - int((group / "memory.current").read_text())
            # Cached files count as used, and give way to whatever needs memory.
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            left += int(statistics.get("inactive_file", 0))
            free = left if free is None else min(free, left)
    except (OSError, ValueError):
        pass
    return free


def seconds_per_pass(predictor: nnUNetPredictor, channels: int) -> float:
    """Times the forward pass of one patch of zeros."""
    network = predictor.network.to(predictor.device).eval()
    patch = torch.zeros((1, channels, *predictor.configuration_manager.patch_size), device=predictor.device)
    with torch.inference_mode(), torch.autocast(predictor.device.type, enabled=predictor.device.type == "cuda"):
        # The first pass on a GPU also chooses its algorithms.
        for _ in range(2 if predictor.device.type == "cuda" else 1):
            start = time.perf_counter()
            network(patch).sum().item()
            seconds = time.perf_counter() - start
    return seconds
