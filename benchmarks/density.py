"""The density loss between known distributions, the table in docs/method.md."""

from __future__ import annotations

import math

import torch

from pretraining.losses.density import density_matching

SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

print("| channels | " + " | ".join(f"{shift:g}" for shift in SHIFTS) + " |")
print("| --- " * (len(SHIFTS) + 1) + "|")
for channels in (4, 16, 48, 768):
    generator = torch.Generator().manual_seed(0)
    row = []
    for shift in SHIFTS:
        first, second = (torch.randn(512, channels, generator=generator) for _ in range(2))
        match = density_matching(first, second + shift, generator=generator)
        row.append(f"{match.divergence.item() / math.log(2):.3f}")
    print(f"| {channels} | " + " | ".join(row) + " |")
