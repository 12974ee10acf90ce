"""How the network benchmarks measure: interleaved rounds, medians, peak memory in a separate process, one report.

Times: every network runs once per round, in turn, so that a busy machine slows all of them; medians over the rounds,
and the ratio of medians. Memory: the peak that one pass adds to a process without the network (weights, activations,
gradients); on a GPU `torch.cuda.max_memory_allocated`, on a CPU the resident set's high-water mark (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Factory = Callable[[tuple[int, ...]], nn.Module]
PASSES = ("inference", "training")


@dataclass(frozen=True)
class Competitors:
    """Networks to compare; the first is ours, and ratios are to it.

    Attributes:
        factories: by name, a picklable function of the image's shape (z, y, x) that builds the network.
        channels: channels of the input (batch, channels, z, y, x).
        scale: how many times smaller than the image the input is along each axis (2 for an embedding).
    """

    factories: Mapping[str, Factory]
    channels: int = 1
    scale: int = 1


@dataclass
class Options:
    """What a run measures, from the command line."""

    device: torch.device
    autocast: torch.dtype | None
    shapes: list[tuple[int, ...]]
    batches: list[int]
    rounds: int
    compiled: bool
    output: Path
    threads: int


def parse(description: str | None) -> Options:
    """The options that all network benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="96^3, one image, for a CPU")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="measure this image size only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("benchmarks") / "results", help="folder of the report")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = [(96, 96, 96)] if options.quick else [(64, 64, 64), (96, 96, 96), (128, 128, 128), (40, 56, 40)]
    if options.shape:
        shapes = [tuple(options.shape)]
    return Options(
        device=torch.device(options.device),
        autocast=torch.bfloat16 if options.bf16 else None,
        shapes=shapes,
        batches=[1] if options.quick else [1, 2],
        rounds=options.rounds or (5 if options.quick else 9),
        compiled=options.compile,
        output=options.output,
        threads=options.threads,
    )


def random_input(competitors: Competitors, shape: Sequence[int], batch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = [size // competitors.scale for size in shape]
    return torch.randn(batch, competitors.channels, *sizes, generator=generator).to(device)


def outputs_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    """A network's outputs as a list, whatever it returns."""
    outputs = network(x)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def one_pass(network: nn.Module, x: Tensor, kind: str, autocast: torch.dtype | None) -> None:
    """A forward pass without gradients, or a forward and backward pass; done when this returns."""
    precision = torch.autocast(x.device.type, autocast) if autocast is not None else nullcontext()
    if kind == "inference":
        with torch.inference_mode(), precision:
            outputs_of(network.eval(), x)
    else:
        network.train().zero_grad(set_to_none=True)
        with precision:
            loss = torch.stack([output.float().square().mean() for output in outputs_of(network, x)]).sum()
        loss.backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def time_passes(
    competitors: Competitors, shape: tuple[int, ...], batch: int, options: Options
) -> dict[str, dict[str, float]]:
    """Median seconds by competitor and pass."""
    networks = {name: build(shape).to(options.device) for name, build in competitors.factories.items()}
    if options.compiled:
        networks = {name: torch.compile(network) for name, network in networks.items()}
    x = random_input(competitors, shape, batch, options.device)
    seconds: dict[str, dict[str, float]] = {name: {} for name in networks}
    for kind in PASSES:
        measured: dict[str, list[float]] = {name: [] for name in networks}
        for number in range(options.rounds + 1):
            for name, network in networks.items():
                start = time.perf_counter()
                one_pass(network, x, kind, options.autocast)
                if number:  # the first round warms up
                    measured[name].append(time.perf_counter() - start)
        for name in networks:
            seconds[name][kind] = statistics.median(measured[name])
    return seconds


def peak_memory(
    competitors: Competitors, name: str, shape: tuple[int, ...], batch: int, kind: str, options: Options
) -> int:
    """Bytes, see the module's docstring. On a CPU in a new process, because an allocator keeps freed memory."""
    if options.device.type == "cuda":
        return _cuda_peak(competitors, name, shape, batch, kind, options)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_cpu_peak, competitors, name, shape, batch, kind, options).result()


def _cuda_peak(
    competitors: Competitors, name: str, shape: tuple[int, ...], batch: int, kind: str, options: Options
) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    network = competitors.factories[name](shape).to(options.device)
    x = random_input(competitors, shape, batch, options.device)
    for _ in range(2):  # the first pass may choose algorithms with more workspace
        torch.cuda.reset_peak_memory_stats()
        one_pass(network, x, kind, options.autocast)
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(
    competitors: Competitors, name: str, shape: tuple[int, ...], batch: int, kind: str, options: Options
) -> int:
    torch.set_num_threads(options.threads)
    small = competitors.factories[name]((64, 64, 64))
    one_pass(small, random_input(competitors, (64, 64, 64), 1, options.device), "training", options.autocast)
    del small
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    network = competitors.factories[name](shape)
    one_pass(network, random_input(competitors, shape, batch, options.device), kind, options.autocast)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; memory on a CPU is measured on Linux only")


def compare(competitors: Competitors, options: Options) -> list[dict[str, Any]]:
    """One row for each competitor, shape and batch; the row of a network that refuses the input gives the reason."""
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        for batch in options.batches:
            accepted, refused = _accepted(competitors, shape, options)
            seconds = time_passes(accepted, shape, batch, options)
            for name in competitors.factories:
                row: dict[str, Any] = {"network": name, "shape": list(shape), "batch": batch}
                if name in refused:
                    row["refused"] = refused[name]
                else:
                    row |= {f"{kind}_seconds": seconds[name][kind] for kind in PASSES}
                    row |= {
                        f"{kind}_bytes": peak_memory(competitors, name, shape, batch, kind, options) for kind in PASSES
                    }
                rows.append(row)
                print(_line(row, rows), flush=True)
    return rows


def _accepted(competitors: Competitors, shape: tuple[int, ...], options: Options) -> tuple[Competitors, dict[str, str]]:
    accepted, refused = dict(competitors.factories), {}
    x = random_input(competitors, shape, 1, options.device)
    for name, build in competitors.factories.items():
        try:
            one_pass(build(shape).to(options.device), x, "inference", options.autocast)
        except (ValueError, RuntimeError) as error:
            refused[name] = str(error).splitlines()[0]
            del accepted[name]
    return Competitors(accepted, competitors.channels, competitors.scale), refused


def _ours(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    same = [r for r in rows if r["shape"] == row["shape"] and r["batch"] == row["batch"]]
    return same[0]


def _cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [row["network"], "x".join(map(str, row["shape"])), str(row["batch"])]
    if "refused" in row:
        return [*cells, f"refused: {row['refused'][:60]}", *[""] * 3]
    ours = _ours(row, rows)
    for name, unit, digits in (("seconds", 1.0, 3), ("bytes", 2.0**20, 0)):
        for kind in PASSES:
            value, reference = row[f"{kind}_{name}"], ours.get(f"{kind}_{name}")
            ratio = f" ({value / reference:.2f}x)" if reference and row is not ours else ""
            cells.append(f"{value / unit:.{digits}f}{ratio}")
    return cells


def _line(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    return "| " + " | ".join(_cells(row, rows)) + " |"


HEADER = (
    "| network | image | batch | inference, s | forward + backward, s | inference, MiB | forward + backward, MiB |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def report(title: str, command: str, checks: Mapping[str, float], rows: list[dict[str, Any]], options: Options) -> None:
    """Writes a dated Markdown page and its JSON, and prints where."""
    machine = {
        "device": torch.cuda.get_device_name() if options.device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "precision": "bf16 autocast" if options.autocast else "float32",
        "compiled": options.compiled,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "monai", "nnunetv2", "dynamic_network_architectures")},
        "load average at the end": os.getloadavg()[0],
    }
    date = datetime.date.today().isoformat()
    words = [options.device.type, *(["bf16"] if options.autocast else []), *(["compiled"] if options.compiled else [])]
    stem = f"{date}-{title.split(',')[0].lower().replace(' ', '-')}-{'-'.join(words)}"
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "date": date, "machine": machine, "checks": dict(checks), "rows": rows}
    (options.output / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    page = [
        f"# {title}\n",
        f"{date}. `{command}`\n",
        "; ".join(f"{name}: {value}" for name, value in machine.items()) + ".\n",
        "Checked first: " + "; ".join(f"{name} {value:.2g}" for name, value in checks.items()) + ".\n",
        f"Medians of {options.rounds} interleaved rounds; in brackets the multiple of ours.\n",
        HEADER,
        *(_line(row, rows) for row in rows),
    ]
    (options.output / f"{stem}.md").write_text("\n".join(page) + "\n")
    print(f"Report: {options.output / stem}.md and .json")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest absolute difference, relative to the largest value of the second."""
    return max(
        ((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in zip(first, second, strict=True)
    )


def check(name: str, difference: float, allowed: float) -> float:
    """Returns the difference; ends the benchmark when it is larger than allowed, or not a number."""
    if not difference <= allowed:
        raise SystemExit(f"{name}: {difference:.3g}, allowed {allowed:.3g}; nothing was timed")
    return difference
