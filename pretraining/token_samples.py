"""Samples of an encoder's tokens at one level, for losses and measures that compare distributions of tokens.

Every crop contributes the same number of tokens, drawn by a generator of its own among those that show tissue. The
samples of a batch therefore do not depend on how it is divided over processes, and only they are exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swinfuse.architecture.topology import Triple
from nnunetv2_swinfuse.host_copies import send
from pretraining.processes import SINGLE_PROCESS, Processes

# With fewer tokens that show tissue in the whole batch, all tokens are used.
MIN_FOREGROUND = 16


@dataclass(frozen=True)
class TokenSamples:
    """Tokens of all crops of one modality, of all processes.

    Attributes:
        tokens: (crops * samples, C), float32.
        mask: bool (crops * samples,), False for tokens that show no tissue; all True if fewer than MIN_FOREGROUND
            tokens show tissue.
        group: bool (crops * samples,), which of two groups of crops the token comes from.
    """

    tokens: Tensor
    mask: Tensor
    group: Tensor


def sample_tokens(
    tokens: Tensor,
    foreground: Tensor,
    count: int,
    generators: Sequence[torch.Generator],
    group: Tensor,
    processes: Processes = SINGLE_PROCESS,
) -> TokenSamples:
    """Draws tokens of each crop, first of all those that show tissue.

    Args:
        tokens: (B, tokens, C), of one view of each crop of this process.
        foreground: bool (B, tokens), which of these tokens show tissue.
        count: number of tokens to draw from each crop; all if it has fewer.
        generators: on the CPU, one per crop.
        group: bool (B,), divides the crops into two groups.
        processes: those that train together.
    """
    available = tokens.shape[1]
    if count < available:
        order = torch.stack([torch.rand(available, generator=generator) for generator in generators])
        # Draws are in [0, 1): adding 1 puts background tokens after all foreground tokens.
        order = send(order, tokens.device) + (~foreground)
        drawn = order.topk(count, dim=1, largest=False).indices
        tokens = tokens.gather(1, drawn[..., None].expand(-1, -1, tokens.shape[2]))
        foreground = foreground.gather(1, drawn)
    tokens, foreground = processes.gather(tokens.float()), processes.gather(foreground)
    mask = foreground.flatten()
    crop_groups = processes.gather(send(group, tokens.device))
    return TokenSamples(
        tokens.flatten(0, 1), mask | (mask.sum() < MIN_FOREGROUND), crop_groups.repeat_interleave(tokens.shape[1])
    )


def foreground_tokens(image: Tensor, grid: Triple) -> Tensor:
    """Which cells of a grid show tissue: those whose standard deviation exceeds 5 % of the crop's.

    A cell of one voxel has no deviation; there it is that of the 3 x 3 x 3 voxels around.

    The air around a CT and the zeros around a skull-stripped MR are constant, so no modality needs a threshold of
    intensity.

    Args:
        image: (B, 1, z, y, x).
        grid: cells per axis.

    Returns:
        bool (B, prod(grid)).
    """
    image = image.float()
    if image.shape[2:] == tuple(grid):
        mean, square = (F.avg_pool3d(v, 3, 1, 1, count_include_pad=False) for v in (image, image.square()))
    else:
        mean, square = (F.adaptive_avg_pool3d(v, grid) for v in (image, image.square()))
    deviation = (square - mean.square()).clamp_min(0).sqrt().flatten(1)
    return deviation > 0.05 * image.flatten(1).std(1, keepdim=True)
