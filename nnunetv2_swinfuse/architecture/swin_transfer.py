"""A Swin encoder's patch filters and patch merging for other strides: what :mod:`transfer` asks for each of them.

Where an axis is no longer halved, weights are summed ("folded") along it; where it is halved now, they are repeated and
divided. Either way a map that is constant along the axis gives the pretrained response.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunetv2_swinfuse.architecture.swin import MONAI_LEGACY_SUBGRIDS
from nnunetv2_swinfuse.architecture.tensor_names import MERGING
from nnunetv2_swinfuse.architecture.topology import Triple

MERGING_TENSORS = ("reduction.weight", "norm.weight", "norm.bias")


def adapt_patch(weight: Tensor, stride: Triple) -> tuple[Tensor, str]:
    """Patch filters (features, channels, kz, ky, kx) for another stride; also describes what was done."""
    kernel = tuple(weight.shape[2:])
    for axis in range(3):
        weight = _fold(weight, 2 + axis, kernel[axis], stride[axis])
    return weight, f"patch {kernel} to {stride}" if kernel != stride else ""


def adapt_merging(
    weights: Mapping[str, Tensor], name: str, old: Triple, new: Triple, monai_legacy: bool = False
) -> dict[str, Tensor]:
    """Norm and reduction of a patch merging for another stride.

    The norm's scale is taken into the reduction before folding; what its shift adds to the output stays as it is
    (:func:`_with_constant`). Exact for maps that are constant along the folded axes.

    Args:
        weights: weights of the encoder.
        name: name of any tensor of the merging.
        old, new: the stride (z, y, x), pretrained and in the network.
        monai_legacy: where all three axes are halved, encoder and network join MONAI's legacy sub-grids.

    Returns:
        The merging's three tensors under their names, in the dtype of the pretrained ones.
    """
    prefix = name[: name.index(MERGING) + len(MERGING)]
    reduction, scale, shift = (weights[prefix + part].double() for part in MERGING_TENSORS)
    scaled = reduction * scale
    kernel = _all_subgrids(scaled) if monai_legacy and old == (2, 2, 2) else scaled.reshape(len(scaled), *old, -1)
    if monai_legacy and new == (2, 2, 2):
        kernel = _legacy_subgrids(kernel, old)
    else:
        for axis in range(3):
            kernel = _fold(kernel, 1 + axis, old[axis], new[axis])
    adapted = _with_constant(kernel.flatten(1), reduction @ shift, shift)
    return {
        prefix + part: value.to(weights[prefix + part].dtype)
        for part, value in zip(MERGING_TENSORS, adapted, strict=True)
    }


def _all_subgrids(reduction: Tensor) -> Tensor:
    """The reduction (outputs, inputs) of MONAI's legacy sub-grids for all eight: (outputs, 2, 2, 2, channels).

    Those that it never saw get the weight zero. The norm's statistics then count every sub-grid once: the same for maps
    that are constant along the axes, an approximation otherwise.
    """
    slots = reduction.unflatten(-1, (len(MONAI_LEGACY_SUBGRIDS), -1))
    kernel = reduction.new_zeros(len(reduction), 2, 2, 2, slots.shape[-1])
    for slot, (z, y, x) in enumerate(MONAI_LEGACY_SUBGRIDS):
        kernel[:, z, y, x] += slots[:, slot]
    return kernel


def _legacy_subgrids(kernel: Tensor, old: Triple) -> Tensor:
    """Weights (outputs, *old, channels) for MONAI's legacy sub-grids: (outputs, 8, channels).

    Sub-grids that were one before share its weights, by how often the legacy merging joins them.
    """
    origins = [
        tuple(min(place, step - 1) for place, step in zip(subgrid, old, strict=True))
        for subgrid in MONAI_LEGACY_SUBGRIDS
    ]
    return torch.stack([kernel[:, z, y, x] / origins.count((z, y, x)) for z, y, x in origins], 1)


def _with_constant(reduction: Tensor, constant: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reduction, scale and shift of a norm and a reduction that add `constant` to the output.

    Solving `reduction @ x = constant` for the norm's shift would give values tens of times the pretrained ones where
    there are as many inputs as outputs, and no solution where there are fewer. But the mean over the channels of a
    normalised token is zero: a number added to a whole row of the reduction does not change its output for them, and
    with a shift that is the same for all channels it gives any constant.

    Args:
        reduction: (outputs, inputs).
        constant: (outputs,).
        shift: the pretrained shift, whose size (root mean square) the new one has.
    """
    inputs = reduction.shape[1]
    size = shift.square().mean().sqrt()
    if size > 0:
        reduction = reduction + ((constant / size - reduction.sum(1)) / inputs)[:, None]
    return reduction, reduction.new_ones(inputs), size.expand(inputs)


def _fold(weight: Tensor, axis: int, old: int, new: int) -> Tensor:
    """Weights of `old` neighbours along an axis for `new` ones (1 or 2 each)."""
    if new < old:
        return weight.sum(axis, keepdim=True)
    return weight.repeat_interleave(new, axis) / new if new > old else weight
