"""Estimates how long a run will take on a device before it starts: counted operations over measured speed."""

from __future__ import annotations

import math
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.preset_files import load_preset, preset_names

# Speed of a whole training step relative to that of a single convolution: on 2 CPU cores the 25 GFLOP of a tiny step,
# then with the inpainting head `pyramid`, took 1.4 s, while a convolution reached 57 GFLOP/s.
EFFICIENCY = 0.3


def step_operations(configuration: Configuration) -> float:
    """Floating point operations of one training step: two views of each modality, forward and backward."""
    with torch.device("meta"):
        model = PretrainingModel(configuration)
        crops = torch.empty(1, 1, *configuration.crop_size)
        images = dict.fromkeys(configuration.modalities, crops.repeat(2, 1, 1, 1, 1))
    views = 1 + (configuration.second_view == "paired") if configuration.pairs_views else 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images, views)
    return counter.get_total_flops() * configuration.batch_size * 3


def device_speed(device: torch.device) -> float:
    """Floating point operations per second of a 3D convolution on this device, measured."""
    convolution = torch.nn.Conv3d(32, 32, 3, padding=1, device=device)
    volume = torch.randn(1, 32, 32, 32, 32, device=device)
    operations = 2 * 32 * 32 * 27 * 32**3
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    shortest = math.inf
    with torch.no_grad(), autocast:
        for _ in range(5):
            _synchronize(device)
            start = time.perf_counter()
            convolution(volume)
            _synchronize(device)
            shortest = min(shortest, time.perf_counter() - start)
    return operations / shortest


def expected_seconds(configuration: Configuration, device: torch.device) -> float:
    """Rough estimate for all steps of a run; good enough to tell minutes from days."""
    return step_operations(configuration) * configuration.steps / (device_speed(device) * EFFICIENCY)


def duration_warning(configuration: Configuration, device: torch.device) -> str | None:
    """A warning if the run would take more than a day on this device, with the presets that would not."""
    seconds = expected_seconds(configuration, device)
    if seconds < 24 * 3600:
        return None
    fitting = []
    for name in preset_names():
        preset = Configuration.from_dict(load_preset(name, configuration.recipe))
        expected = expected_seconds(preset, device)
        if expected < 24 * 3600:
            fitting.append(f"-p {name} (about {format_duration(expected)})")
    remedy = f"Presets that fit: {', '.join(fitting)}" if fitting else "No preset fits this device; use a GPU"
    return (
        f"WARNING: {configuration.steps} steps of preset {configuration.preset} would take about "
        f"{format_duration(seconds)} on {device}. {remedy}. Interrupting with Ctrl-C loses no work."
    )


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h` or `70 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
