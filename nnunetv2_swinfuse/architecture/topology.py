"""From nnU-Net's plan to the stages of the network: pure functions on tuples and plain arguments, no tensors.

A plan lists one stride per stage and axis (z, y, x), the first being 1. The stages become

- stage 0: convolutions at full resolution,
- stage 1: patch embedding with that stage's stride, then the Domain Invariance Module,
- stages 2 to 5: a Swin stage each (blocks at the resolution above, then patch merging by the stage's stride),
- stages beyond (a Swin encoder has at most as many stages as its settings have depths): strided convolutions.

A residual encoder has one stage for each of the plan's, the first at full resolution after the stem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_swinfuse.errors import UPGRADE

Triple = tuple[int, int, int]


def triple(values: Sequence[int]) -> Triple:
    """Three whole numbers (z, y, x), for example from a JSON list; ValueError for more or fewer."""
    z, y, x = values
    return int(z), int(y), int(x)


@dataclass(frozen=True)
class Topology:
    """The strides of a plan, sorted by what carries them out.

    Returned by :func:`plan_topology` and :func:`residual_topology`.

    Attributes:
        strides: stride of every stage of the plan (z, y, x).
        patch_stride: stride (and kernel) of the patch embedding, stage 1; 1 of the stem of a residual encoder.
        stage_strides: one stride per encoder stage: of a Swin stage's merging, or a residual stage's first block.
        convolution_strides: strides of the stages beyond the Swin encoder.
    """

    strides: tuple[Triple, ...]
    patch_stride: Triple
    stage_strides: tuple[Triple, ...]
    convolution_strides: tuple[Triple, ...]

    @property
    def downsampling(self) -> Triple:
        """Product of all strides per axis: a patch must be divisible by it, as nnU-Net's plans are."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))  # type: ignore[return-value]


def plan_topology(strides: Sequence[Sequence[int]], swin_stages: int) -> Topology:
    """Sorts the strides of a plan into patch embedding, Swin stages and further convolution stages.

    Args:
        strides: the plan's `strides`, one (z, y, x) per stage; stage 0 has stride 1.
        swin_stages: largest number of Swin stages of the encoder (the number of its depths).

    Raises:
        ValueError: naming the field of the plan, when the strides are not those of a 3d plan of two stages or more.
    """
    field = "architecture.arch_kwargs.strides"
    if len(strides) < 2:
        raise ValueError(f"{field} has {len(strides)} stage(s); SwinFUSE needs at least 2 (full resolution, patches)")
    checked: list[Triple] = []
    for index, stride in enumerate(strides):
        if isinstance(stride, int) or len(stride) != 3:
            raise ValueError(f"{field}[{index}] is {stride}; expected (z, y, x): SwinFUSE is for 3d plans")
        if any(int(s) not in (1, 2) for s in stride):
            raise ValueError(f"{field}[{index}] is {list(stride)}; expected 1 or 2 for each axis")
        checked.append((int(stride[0]), int(stride[1]), int(stride[2])))
    if checked[0] != (1, 1, 1):
        raise ValueError(f"{field}[0] is {list(checked[0])}; expected [1, 1, 1], the full resolution")
    return Topology(
        strides=tuple(checked),
        patch_stride=checked[1],
        stage_strides=tuple(checked[2 : 2 + swin_stages]),
        convolution_strides=tuple(checked[2 + swin_stages :]),
    )


def residual_topology(strides: Sequence[Sequence[int]]) -> Topology:
    """The strides of a plan for a residual encoder, whose stages carry out all of them.

    Raises:
        ValueError: as :func:`plan_topology`.
    """
    checked = plan_topology(strides, len(strides)).strides
    return Topology(checked, (1, 1, 1), checked, ())


def check_patch_size(patch_size: Sequence[int], topology: Topology) -> None:
    """Checks that a patch (z, y, x, in voxels) can go through all stages.

    Raises:
        ValueError: naming the axis, when the patch is not divisible by the product of its strides.
    """
    for axis, size, factor in zip("zyx", patch_size, topology.downsampling, strict=True):
        if size % factor:
            raise ValueError(
                f"patch_size {list(patch_size)}: axis {axis} has {size} voxels, which its strides "
                f"(product {factor}) do not divide; use a multiple of {factor}"
            )


def clamp_window(shape: Triple, window: Triple, shifted: bool) -> tuple[Triple, Triple]:
    """The window and shift used on a feature map: along an axis no longer than the window, the axis itself, unshifted.

    Args:
        shape: size of the feature map (z, y, x).
        window: the encoder's window.
        shifted: whether this block shifts its windows by half their size.
    """
    used = tuple(min(size, width) for size, width in zip(shape, window, strict=True))
    shift = tuple(width // 2 if shifted and size > width else 0 for size, width in zip(shape, window, strict=True))
    return used, shift  # type: ignore[return-value]


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that a network does not take: a newer version of this package may."""
    if arguments:
        raise ValueError(
            f"architecture.arch_kwargs has {sorted(arguments)}, which this version of nnunetv2-swinfuse does not "
            f"know. Either the model is of a newer version: {UPGRADE}; or its plans were edited: undo that"
        )


def stage_kernels(kernel_sizes: Sequence[Sequence[int]] | None, stages: int) -> list[Triple]:
    """The convolution kernel of each stage (z, y, x); 3 x 3 x 3 where the plan names none.

    Raises:
        ValueError: when the plan lists kernels for another number of stages.
    """
    if kernel_sizes is None:
        return [(3, 3, 3)] * stages
    if len(kernel_sizes) != stages:
        raise ValueError(
            f"architecture.arch_kwargs.kernel_sizes lists {len(kernel_sizes)} stages, strides lists {stages}"
        )
    return [triple(kernel) for kernel in kernel_sizes]
