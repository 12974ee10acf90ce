"""The Domain Invariance Module's geometry: where its update lies, its positions, how the update changes with the patch.

    python benchmarks/dim_geometry.py                  # random weights on synthetic heads
    python benchmarks/dim_geometry.py RUN/checkpoint_latest.pth

The module is treated as a black box, so that the same script runs on other versions. Deterministic; nothing is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_swinfuse.demo.volumes import make_patient
from pretraining.checkpoint import load_checkpoint
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.preset_files import load_preset

SHAPES = ((20, 28, 20), (48, 48, 48), (32, 64, 56), (32, 32, 32), (64, 64, 64), (20, 160, 128), (20, 320, 256))
POSITIONS = (("base", 48, (48, 48, 48)), ("small", 24, (32, 32, 32)), ("tiny", 24, (16, 16, 16)),
             ("tiny", 8, (6, 6, 6)), ("base", 8, (12, 14, 12)), ("base", 48, (20, 160, 128)))  # fmt: skip
SIZES = (10, 12, 16, 20, 24)


class Recorder(nn.Module):
    """In place of a block of attention layers: leaves its tokens as they are and keeps what it was given."""

    def forward(self, tokens: Tensor, context: Tensor, positions: Tensor, need_weights: bool = False):
        self.tokens, self.positions = tokens, positions
        return tokens, []


def module_of(preset: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    configuration = Configuration.from_dict({**load_preset(preset), **changes})
    return PretrainingModel(configuration).encoder.domain_invariance.eval()


@torch.no_grad()
def displacement(shape: Sequence[int]) -> tuple[float, float]:
    """Largest and median displacement of a coordinate ramp in tokens, away from the map's border."""
    module = module_of("base")
    module.ct_block = module.mr_block = Recorder()
    module.norm, module.proj = nn.Identity(), nn.Identity()
    axes = torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing="ij")
    ramp = torch.stack([*axes, *[axes[0]] * 45])[None]
    moved = (module(ramp) - 2 * ramp)[0, :3].abs()
    largest, medians = 0.0, []
    for axis, size in enumerate(shape):
        line = moved[axis].movedim(axis, 0).flatten(1).amax(1)[size // 10 : size - size // 10]
        width = 2 * moved[axis].max().item()  # of a cell, from what is lost at the border
        margin = int(1.2 * width)
        inner = line[margin : len(line) - margin] if len(line) > 2 * margin + 2 else line[:0]
        if len(inner):
            largest = max(largest, inner.max().item())
            medians.append(inner.median().item())
    return largest, float(np.mean(medians)) if medians else 0.0


@torch.no_grad()
def positions(preset: str, feature_size: int, shape: Sequence[int]) -> tuple[int, int, float, str]:
    """Cells, distinct positions, the smallest distance of two, and whether neighbours are more alike than strangers."""
    heads = (2, 4) if preset == "tiny" else (2, 4, 8, 16)
    changes = {} if feature_size in (24, 48) else {"feature_size": feature_size, "num_heads": heads}
    module = module_of(preset, **changes)
    module.ct_block = module.mr_block = Recorder()
    module(torch.zeros(1, feature_size, *shape))
    encoding = module.ct_block.positions.float()
    distances = torch.cdist(encoding, encoding, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(9)
    distinct = len(torch.unique((encoding * 1e3).round(), dim=0))
    return len(encoding), distinct, distances.min().item(), ""


def embedded_heads(model: nn.Module) -> list[Tensor]:
    """Embeddings of synthetic heads, CT and MR, normalised as by nnU-Net: (1, C, z, y, x) each."""
    maps = []
    for seed in range(3):
        patient = make_patient(seed, (56, 64, 60), (2.6, 3.0, 2.7))
        for volume in (patient.ct, patient.mr):
            values = torch.from_numpy(np.asarray(volume, dtype=np.float32))
            values = (values.clamp(-1000, 1000) - values.mean()) / values.std()
            with torch.no_grad():
                maps.append(model.patch_embed(values[None, None]))
    return maps


@torch.no_grad()
def change(module: nn.Module, maps: Sequence[Tensor], size: int) -> tuple[float, float]:
    """Relative change of the update on common tokens: of a patch one token larger, and of one moved by a token."""
    larger, moved = [], []
    for x in maps:
        first = [(extent - size - 1) // 2 for extent in x.shape[2:]]

        def update(start: int, extent: int, x: Tensor = x, first: Sequence[int] = first) -> Tensor:
            crop = x[(..., *[slice(f + start, f + start + extent) for f in first])]
            return module(crop) - crop

        base = update(0, size)
        norm = base.norm()
        larger.append(((update(0, size + 1)[..., :size, :size, :size] - base).norm() / norm).item())
        shifted = update(1, size)[..., :-1, :-1, :-1]
        moved.append(((shifted - base[..., 1:, 1:, 1:]).norm() / norm).item())
    return float(np.mean(larger)), float(np.mean(moved))


def main() -> None:
    print("| map (tokens) | displacement of a ramp, tokens: largest, median |\n| --- | --- |")
    for shape in SHAPES:
        print("| {} | {:.2f}, {:.2f} |".format("x".join(map(str, shape)), *displacement(shape)))
    print("\n| preset, channels, map | cells | distinct positions | smallest distance |\n| --- | --- | --- | --- |")
    for preset, feature_size, shape in POSITIONS:
        cells, distinct, smallest, _ = positions(preset, feature_size, shape)
        print(f"| {preset}, {feature_size}, {'x'.join(map(str, shape))} | {cells} | {distinct} | {smallest:.3f} |")
    if len(sys.argv) > 1:
        state = load_checkpoint(Path(sys.argv[1]))
        model = PretrainingModel(state.configuration)
        model.load_state_dict(state.network_weights)
    else:
        torch.manual_seed(0)
        model = PretrainingModel(Configuration.from_dict(load_preset("tiny")))
    model.eval()
    maps = embedded_heads(model)
    print("\n| patch (tokens an axis) | one token larger | moved by one token |\n| --- | --- | --- |")
    for size in SIZES:
        print("| {} | {:.3f} | {:.3f} |".format(size, *change(model.encoder.domain_invariance, maps, size)))


if __name__ == "__main__":
    main()
