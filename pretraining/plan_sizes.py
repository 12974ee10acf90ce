"""Sizes of an encoder that fits the datasets to fine-tune on, from their nnU-Net plans: stages, crop and spacing;
and how their CT is normalised.

An encoder stage without a counterpart in the plan is not used in fine-tuning. The strides are therefore the first ones
that all plans share, and the encoder has exactly one stage for each of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
from nnunetv2_swinfuse.architecture.topology import Triple, plan_topology, triple
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import CT_SCHEME, STOCK_PLANS
from pretraining.configuration import Configuration

DEFAULT_CONFIGURATION = "3d_fullres"
# Settings that --for determines; other values on the command line would contradict the plans.
DECIDED = ("strides", "depths", "num_heads")
# Full resolution, patch embedding and one Swin stage.
MIN_STAGES = 3
# The Swin stages of Swin UNETR; deeper stages of a plan are convolutions.
MAX_SWIN_STAGES = len(EncoderSettings.depths)
# A collection has one spacing; the spacings of the datasets may differ by this factor along an axis.
MAX_SPACING_RATIO = 2.0
PLANNERS = (
    (r"nnUNetPlans", "nnUNetv2_plan_and_preprocess -d {}"),
    (r"nnUNetResEncUNet(M|L|XL)Plans", r"nnUNetv2_plan_and_preprocess -d {} -pl nnUNetPlannerResEnc\1"),
    (r"nnUNetSwinFUSE(L|XL)Plans", r"swinfuse_plan_and_preprocess -d {} -preset \1"),
    (r"nnUNetSwinFUSEPlans", "swinfuse_plan_and_preprocess -d {}"),
)


@dataclass(frozen=True)
class DatasetPlan:
    """The plans of a dataset as far as they determine an encoder, with the axes of the images (z, y, x).

    Attributes:
        dataset: name of its folder.
        strides: stride of each stage.
        patch_size: in voxels.
        spacing: in mm.
        blocks: residual blocks of each stage; None if the plans are for another network.
        ct: intensity properties of each channel that is CT.
    """

    dataset: str
    strides: tuple[Triple, ...]
    patch_size: Triple
    spacing: tuple[float, float, float]
    blocks: tuple[int, ...] | None
    ct: tuple[Mapping[str, float], ...] = ()


def read_plan(
    preprocessed: Path, dataset: str, plans: str = STOCK_PLANS, configuration: str = DEFAULT_CONFIGURATION
) -> DatasetPlan:
    """Reads the plans of a dataset in nnUNet_preprocessed.

    nnU-Net may transpose images; its plans then refer to the transposed axes, pretraining to those of the images.

    Args:
        preprocessed: the folder nnUNet_preprocessed.
        dataset: number or name of the dataset, such as 501 or Dataset501_Hippocampus.
        plans: name of the plans.
        configuration: a 3d configuration of the plans.

    Raises:
        InputError: when the plans do not exist (the message gives the command that creates them) or cannot be used.
    """
    number = dataset_number(dataset)
    folders = sorted(preprocessed.glob(f"Dataset{number}_*"))
    if len(folders) > 1:
        raise InputError(f"--for {dataset}: several folders in {preprocessed}: {[folder.name for folder in folders]}")
    file = (folders[0] if folders else preprocessed / f"Dataset{number}_...") / f"{plans}.json"
    if not file.is_file():
        others = sorted(path.stem for path in file.parent.glob("*Plans.json"))
        raise InputError(
            f"--for {dataset}: {file} does not exist. {_planning_command(plans, number)}"
            + (f"The dataset has {', '.join(others)}: --for_plans NAME" if others else "")
        )
    try:
        content = json.loads(file.read_text())
        configurations = content["configurations"]
        available = [name for name in configurations if "2d" not in name]
        if configuration not in available:
            raise InputError(
                f"{file}: no 3d configuration {configuration!r}; expected --for_configuration with one of {available}"
            )
        return _read(folders[0].name, content, _resolved(configurations, configuration))
    except InputError as error:
        raise InputError(f"--for {dataset}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"--for {dataset}: {file}, configuration {configuration}: cannot be used ({type(error).__name__}: "
            f"{error}). Plan the dataset again with nnU-Net 2.8 or newer"
        ) from error


def dataset_number(dataset: str) -> str:
    """The three digits of a dataset's number or name; raises InputError for anything else."""
    match = re.fullmatch(r"(?:Dataset)?(\d{1,3})(?:_.+)?", dataset)
    if match is None:
        raise InputError(f"--for {dataset}: expected the number or name of an nnU-Net dataset, such as 501")
    return f"{int(match[1]):03d}"


def fitted_sizes(plans: Sequence[DatasetPlan], preset: Configuration, spacing: bool = True) -> dict[str, Any]:
    """Settings of a run whose encoder is used completely by the networks of all plans.

    Args:
        plans: plans of the datasets, at least one.
        preset: settings of the preset, whose depths and heads are used and whose crop limits the new one.
        spacing: whether to determine the spacing too, which must then be similar in all plans.

    Returns:
        `strides`, `depths`, `num_heads`, `crop_size` and, if requested, `spacing`.

    Raises:
        InputError: naming what differs between the datasets.
    """
    strides = _common_strides(plans)
    residual = preset.backbone == "resenc"
    if not residual:
        strides = strides[: 2 + MAX_SWIN_STAGES]
    stages = len(strides) if residual else len(strides) - 2
    depths, heads = preset.depths, preset.num_heads
    if residual:
        blocks = {plan.blocks[:stages] if plan.blocks else None for plan in plans}
        # If the plans agree on the blocks of their residual networks, the encoder has the same.
        depths = blocks.pop() or depths if len(blocks) == 1 else depths
    else:
        # The channels double with every stage, and with them the heads.
        heads = tuple(heads[i] if i < len(heads) else heads[-1] << (i - len(heads) + 1) for i in range(stages))
    depths = tuple(depths[min(i, len(depths) - 1)] for i in range(stages))
    sizes: dict[str, Any] = {
        "strides": strides,
        "depths": depths,
        "num_heads": heads,
        "crop_size": _crop_size(plans, strides, preset),
    }
    return {**sizes, "spacing": _common_spacing(plans)} if spacing else sizes


def shared_ct_intensities(plans: Sequence[DatasetPlan]) -> Mapping[str, float] | None:
    """Intensity properties of the only CT channel of all datasets; None where there is none, or more than one.

    An encoder sees all CT on one scale. With several CT channels, there is none that all of them are fine-tuned on.
    """
    channels = [properties for plan in plans for properties in plan.ct]
    return channels[0] if len(channels) == 1 else None


def _read(dataset: str, content: Mapping[str, Any], block: Mapping[str, Any]) -> DatasetPlan:
    arguments = block["architecture"]["arch_kwargs"]
    strides = plan_topology(arguments["strides"], len(arguments["strides"])).strides
    # The axis of the plans for each axis of the image.
    axes = triple(content.get("transpose_backward", (0, 1, 2)))
    image_strides = tuple(triple([stride[axis] for axis in axes]) for stride in strides)
    if image_strides != strides:
        raise InputError(
            f"{dataset}: its plans transpose the images (transpose_forward {content['transpose_forward']}) and do not "
            f"halve the exchanged axes alike (strides {[list(stride) for stride in strides]}), which pretraining does "
            "not support. Set --strides, --crop_size and --spacing instead of --for"
        )
    z, y, x = (float(block["spacing"][axis]) for axis in axes)
    if not all(math.isfinite(value) and value > 0 for value in (z, y, x)):
        raise ValueError(f"spacing is {block['spacing']}")
    blocks = arguments.get("n_blocks_per_stage")
    properties = content.get("foreground_intensity_properties_per_channel", {})
    schemes = enumerate(block.get("normalization_schemes", ()))
    return DatasetPlan(
        dataset,
        strides,
        triple([block["patch_size"][axis] for axis in axes]),
        (z, y, x),
        None if blocks is None else tuple(int(count) for count in blocks),
        tuple(properties[str(channel)] for channel, scheme in schemes if scheme == CT_SCHEME),
    )


def _resolved(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    block = configurations[name]
    parent = block.get("inherits_from")
    return dict(block) if parent is None else {**_resolved(configurations, parent), **block}


def _planning_command(plans: str, number: str) -> str:
    for pattern, command in PLANNERS:
        if match := re.fullmatch(pattern, plans):
            return f"Create it with: {match.expand(command).format(int(number))}. "
    return "Plan the dataset with nnU-Net first. "


def _common_strides(plans: Sequence[DatasetPlan]) -> tuple[Triple, ...]:
    common: list[Triple] = []
    for stage in zip(*(plan.strides for plan in plans), strict=False):
        if len(set(stage)) > 1:
            break
        common.append(stage[0])
    if len(common) < MIN_STAGES:
        listing = "; ".join(f"{plan.dataset}: {[list(stride) for stride in plan.strides]}" for plan in plans)
        raise InputError(
            f"--for: the plans have {len(common)} first stages in common, an encoder needs {MIN_STAGES} or more "
            f"({listing}). Pretrain for each dataset separately"
        )
    return tuple(common)


def _common_spacing(plans: Sequence[DatasetPlan]) -> tuple[float, ...]:
    """Geometric mean of the spacings along each axis, mm (z, y, x)."""
    by_axis = list(zip(*(plan.spacing for plan in plans), strict=True))
    # Slightly more than the ratio, since plans have rounding errors such as 4.688000202178955.
    if any(max(values) > 1.001 * MAX_SPACING_RATIO * min(values) for values in by_axis):
        listing = "; ".join(f"{plan.dataset}: {[round(value, 3) for value in plan.spacing]}" for plan in plans)
        raise InputError(
            f"--for: the plans' spacings (mm along z, y, x) differ by more than a factor of {MAX_SPACING_RATIO:g} "
            f"({listing}). Pretrain for each dataset separately, or set --spacing"
        )
    return tuple(round(math.prod(values) ** (1 / len(values)), 4) for values in by_axis)


def _crop_size(plans: Sequence[DatasetPlan], strides: Sequence[Triple], preset: Configuration) -> Triple:
    """The smallest of the patches, with y equal to x (crops are turned in that plane), within the limits of the preset.

    The preset's crop limits the number of voxels and the number of tokens of the first stage. Of all crops within these
    limits, the one is chosen whose smallest ratio to the patch is largest.
    """
    depth = min(plan.patch_size[0] for plan in plans)
    width = min(min(plan.patch_size[1:]) for plan in plans)
    steps = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    step_z, step = steps[0], max(steps[1:])
    voxels = math.prod(preset.crop_size)
    tokens = voxels // math.prod(preset.strides[1])
    crops = [
        (z, size, size)
        for z in range(step_z, depth + 1, step_z)
        for size in range(step, width + 1, step)
        if z * size**2 <= min(voxels, tokens * math.prod(strides[1]))
    ]
    if not crops:
        return step_z, step, step
    return max(crops, key=lambda crop: (min(crop[0] / depth, crop[1] / width), math.prod(crop)))
