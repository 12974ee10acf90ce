"""How plans process a model's images: preprocessing, patches, cascade and the way back to the image.

nnU-Net keeps one plans.json for all folds of a model and predicts with it, whatever a fold was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.nnunet_names import CT_SCHEME
from nnunetv2_swinfuse.plain_loading import plain_values

INTENSITIES = "foreground_intensity_properties_per_channel"
# Decide what preprocessed data are: keys of the plans and of a configuration.
PLANS_KEYS = ("transpose_forward", "image_reader_writer", INTENSITIES)
CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
# Decide what a network predicts from such data. The batch size does not: a training may continue on a smaller GPU.
PREDICTION_KEYS = (
    "patch_size",
    "previous_stage",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
)
# What nnU-Net's schemes read of a channel's intensities; other schemes may read all of them.
READ_INTENSITIES = {
    CT_SCHEME: ("mean", "std", "percentile_00_5", "percentile_99_5"),
    "ZScoreNormalization": (),
    "NoNormalization": (),
    "RescaleTo01Normalization": (),
    "RGBTo01Normalization": (),
}
# Relative; another version of numpy may round the intensities of the same images otherwise.
TOLERANCE = 1e-5


def preprocessing_of(plans: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a configuration's preprocessed data are, for one raw dataset.

    Args:
        plans: nnU-Net's plans.
        block: the configuration, with what it inherits.
    """
    return {**{key: plans.get(key) for key in PLANS_KEYS}, **{key: block.get(key) for key in CONFIGURATION_KEYS}}


def processing_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What all folds of a model must have in common besides network and settings, as plain values.

    Args:
        plans: nnU-Net's plans; what the configuration inherits is resolved.
        configuration: its name in the plans.
    """
    block = PlansManager(dict(plans)).get_configuration(configuration).configuration
    processing = {**preprocessing_of(plans, block), **{key: block.get(key) for key in PREDICTION_KEYS}}
    intensities = processing[INTENSITIES] or {}
    read: dict[str, Any] = {}
    for channel, scheme in enumerate(processing["normalization_schemes"] or ()):
        properties = intensities.get(str(channel), {})
        read[str(channel)] = {
            key: properties[key] for key in READ_INTENSITIES.get(scheme, properties) if key in properties
        }
    plain: dict[str, Any] = plain_values({**processing, INTENSITIES: read})
    return plain


def processing_differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What differs between two results of :func:`processing_of`, each as `NAME was VALUE, is VALUE`.

    Args:
        recorded: of trained folds. What an earlier version did not record is not compared.
        current: of the plans to train with now.
    """
    return [
        f"{path} was {before}, is {now}"
        for name in current
        if name in recorded
        for path, before, now in _differing(name, recorded[name], current[name])
    ]


def _differing(name: str, recorded: Any, current: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(recorded, Mapping) and isinstance(current, Mapping):
        for key in sorted({*recorded, *current}):
            yield from _differing(f"{name}.{key}", recorded.get(key), current.get(key))
    elif not _equal(recorded, current):
        yield name, recorded, current


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return math.isclose(first, second, rel_tol=TOLERANCE)
    return bool(first == second)
