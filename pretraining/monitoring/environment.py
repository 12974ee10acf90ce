"""Machine, devices and versions that a run uses, for its report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("nnunetv2-swinfuse", "torch", "numpy", "blosc2", "dynamic-network-architectures", "nnunetv2")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Describes hardware and versions; what cannot be determined is left out."""
    facts = {"machine": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    memory = _memory()
    if memory:
        facts["memory"] = f"{memory / 2**30:.0f} GiB"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    facts["trained on"] = str(device)
    facts["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    name = platform.processor() or platform.machine()
    description = Path("/proc/cpuinfo")
    if description.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in description.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} logical cores"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
