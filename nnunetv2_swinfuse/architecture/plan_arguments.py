"""Checks of `architecture.arch_kwargs` in plans.json that all networks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_swinfuse.architecture.topology import Triple, triple


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that a network does not take: a newer version of this package may."""
    if arguments:
        raise ValueError(
            f"architecture.arch_kwargs has {sorted(arguments)}, which this version of nnunetv2-swinfuse does not "
            "know: the model was made with a newer one (pip install --upgrade nnunetv2-swinfuse), or its plans "
            "were edited"
        )


def stage_kernels(kernel_sizes: Sequence[Sequence[int]] | None, stages: int) -> list[Triple]:
    """The convolution kernel of each stage (z, y, x); 3 x 3 x 3 where the plan names none.

    Raises:
        ValueError: when the plan's kernels are not of so many stages.
    """
    if kernel_sizes is None:
        return [(3, 3, 3)] * stages
    if len(kernel_sizes) != stages:
        raise ValueError(
            f"architecture.arch_kwargs.kernel_sizes lists {len(kernel_sizes)} stages, strides lists {stages}"
        )
    return [triple(kernel) for kernel in kernel_sizes]
