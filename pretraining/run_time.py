"""How long a run will take on the device at hand, before it starts: counted operations over measured speed."""

from __future__ import annotations

import math
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from pretraining.collections.collection import DOMAINS
from pretraining.configuration import Configuration, load_preset, preset_names
from pretraining.model import PretrainingModel

# Of the speed of a plain convolution, what a whole training step reaches: on 2 CPU cores the 25 GFLOP of a tiny step
# took 1.4 s where a convolution ran at 57 GFLOP/s.
EFFICIENCY = 0.3


def step_operations(configuration: Configuration) -> float:
    """Floating point operations of one step: two views of each modality, forward and backward."""
    with torch.device("meta"):
        model = PretrainingModel(configuration)
        crops = torch.empty(1, 1, *configuration.crop_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*(crops if domain in configuration.modalities else None for domain in DOMAINS))
    return counter.get_total_flops() * 2 * configuration.batch_size * 3


def device_speed(device: torch.device) -> float:
    """Operations per second of a 3D convolution on this device."""
    convolution = torch.nn.Conv3d(32, 32, 3, padding=1, device=device)
    volume = torch.randn(1, 32, 32, 32, 32, device=device)
    operations = 2 * 32 * 32 * 27 * 32**3
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    best = math.inf
    with torch.no_grad(), autocast:
        for _ in range(5):
            _synchronize(device)
            start = time.perf_counter()
            convolution(volume)
            _synchronize(device)
            best = min(best, time.perf_counter() - start)
    return operations / best


def expected_seconds(configuration: Configuration, device: torch.device) -> float:
    """A rough forecast of all steps; good enough to tell minutes from days."""
    return step_operations(configuration) * configuration.steps / (device_speed(device) * EFFICIENCY)


def advice(configuration: Configuration, device: torch.device) -> str | None:
    """A warning, if the run would take days here, that names the presets that would not."""
    seconds = expected_seconds(configuration, device)
    if seconds < 24 * 3600:
        return None
    fitting = []
    for name in preset_names():
        preset = Configuration.from_dict(load_preset(name, configuration.recipe))
        expected = expected_seconds(preset, device)
        if expected < 24 * 3600:
            fitting.append(f"-p {name} (about {in_words(expected)})")
    remedy = f"Presets that fit: {', '.join(fitting)}" if fitting else "No preset fits this device; use a GPU"
    return (
        f"WARNING: {configuration.steps} steps of preset {configuration.preset} would take about {in_words(seconds)} "
        f"on {device}. {remedy}. Ctrl-C at any moment keeps what was done."
    )


def in_words(seconds: float) -> str:
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
