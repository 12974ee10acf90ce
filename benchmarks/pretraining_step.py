"""Time, peak memory and waits of a pretraining step, by preset and recipe.

    python benchmarks/pretraining_step.py                     # a GPU: bf16 autocast, as swinfuse_pretrain does
    python benchmarks/pretraining_step.py --presets tiny      # a CPU

First the losses of two steps on the GPU are compared with those on the CPU, at the same weights, batch and seed. Times
are medians of whole steps (views, forward and backward passes, optimiser) on random crops that are already on the
device, so they do not include loading. Waits are points where the host waits for the GPU, as CUDA's synchronisation
warnings count them; a step shall have none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import processor
from torch import Tensor
from tqdm import tqdm

from pretraining.configuration import Configuration
from pretraining.loop import Training
from pretraining.markdown import markdown_table
from pretraining.preset_files import load_preset
from pretraining.settings import LOSS_WEIGHTS
from pretraining.validation import to_device

RECIPES = ("swinfuse", "inpainting", "no_dim_no_density", "simmim")
ALLOWED = 3e-2  # relative difference between a loss in bf16 and the same in float32
WARM_UP = 5


class Steps:
    """Training steps of one configuration on random crops."""

    def __init__(self, configuration: Configuration, device: torch.device) -> None:
        self.configuration = configuration
        self.training = Training.start(configuration, device, None)
        self.batch = to_device(random_batch(configuration), device)

    def take(self) -> dict[str, Tensor]:
        """One step; returns its losses and measures without waiting for them."""
        return self.training.take_step(self.batch, self.configuration)


def random_batch(configuration: Configuration) -> dict[str, Any]:
    """Crops of blobs: smooth noise, half of the samples registered pairs."""
    generator = torch.Generator().manual_seed(1)
    size, batch = configuration.crop_size, configuration.batch_size
    coarse = [max(2, length // 8) for length in size]
    crops = {
        name.lower(): torch.nn.functional.interpolate(
            torch.randn(batch, 1, *coarse, generator=generator), size=size, mode="trilinear"
        )
        for name in configuration.modalities
    }
    turnable = {f"{name}_turnable": torch.ones(batch, dtype=torch.bool) for name in crops}
    whole = torch.tensor([[0, length] for length in size]).expand(batch, 3, 2)
    inside = {f"{name}_inside": whole for name in crops}
    return {**crops, **inside, **turnable, "registered": torch.arange(batch) % 2 == 0}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def largest_difference(configuration: Configuration) -> float:
    """Largest relative difference of the losses of two steps between GPU and CPU."""
    small = replace(configuration, batch_size=2)
    first, second = Steps(small, torch.device("cpu")), Steps(small, torch.device("cuda"))
    worst = 0.0
    for _ in range(2):
        on_cpu, on_gpu = first.take(), second.take()
        for name in set(LOSS_WEIGHTS).intersection(on_cpu):
            loss = float(on_cpu[name])
            # Losses near 0, such as an untrained density's, are compared absolutely.
            worst = max(worst, abs(float(on_gpu[name]) - loss) / max(abs(loss), 0.1))
    return worst


def measure(configuration: Configuration, device: torch.device, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    steps = Steps(configuration, device)
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(WARM_UP if device.type == "cuda" else 1):
        steps.take()
    waiting = waits_of(steps) if device.type == "cuda" else None
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        steps.take()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    row: dict[str, Any] = {"seconds": statistics.median(seconds), "waits": waiting}
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    row["parameters"] = sum(parameter.numel() for parameter in steps.training.model.parameters())
    return row


def waits_of(steps: Steps) -> int:
    """How often the host waits for the GPU in one step."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps.take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for place in {f"{warning.filename}:{warning.lineno}" for warning in caught}:
        tqdm.write(f"    waits for the GPU: {place}")
    return len(caught)


def table(rows: list[Mapping[str, Any]]) -> str:
    columns = ("preset", "recipe", "crop", "pairs", "parameters, M", "step, s", "peak, GiB", "waits", "GPU against CPU")
    lines = [
        [
            row["preset"], row["recipe"], "x".join(map(str, row["crop"])), row["batch"],
            f"{row['parameters'] / 1e6:.2f}", row["seconds"],
            f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else None, row["waits"],
            None if row["difference"] is None else f"{row['difference']:.1e}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--allowed", type=float, default=ALLOWED, help="difference between GPU and CPU")
    parser.add_argument("--output", type=Path, default=Path("benchmarks") / "results", help="folder of the report")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[Mapping[str, Any]] = []
    for preset in options.presets:
        for recipe in options.recipes:
            configuration = Configuration.from_dict(load_preset(preset, recipe))
            difference = None
            # On the CPU a step of the larger presets takes minutes; their modules are the same.
            if device.type == "cuda" and preset == "tiny":
                difference = largest_difference(configuration)
                if not difference <= options.allowed:
                    raise SystemExit(
                        f"{preset} {recipe}: losses differ by {difference:.2g}, allowed {options.allowed:.2g}"
                    )
            row = {"preset": preset, "recipe": recipe, "crop": list(configuration.crop_size)}
            row |= {"batch": configuration.batch_size, "difference": difference}
            rows.append({**row, **measure(configuration, device, options.rounds)})
            tqdm.write(table(rows[-1:]).splitlines()[-1])
    date = datetime.date.today().isoformat()
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"{date}-pretraining-step-{device.type}"
    stem.with_suffix(".json").write_text(json.dumps({"date": date, "machine": machine, "rows": rows}, indent=1) + "\n")
    facts = "; ".join(f"{name}: {value}" for name, value in machine.items())
    page = f"# A pretraining step\n\n{date}. `python benchmarks/pretraining_step.py`\n\n{facts}.\n\n{table(rows)}\n"
    stem.with_suffix(".md").write_text(page)
    print(f"Report: {stem}.md and .json")


if __name__ == "__main__":
    main()
