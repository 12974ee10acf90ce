"""How fine-tuning normalises CT, compared with the pretraining of the encoder.

Both clip at two percentiles of the foreground and divide by its standard deviation. Foreground is the body in
pretraining and the labelled classes in nnU-Net's plans, so that the same voxel can have very different values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnunetv2_swinfuse.nnunet_names import CT_SCHEME

USED = ("std", "percentile_00_5", "percentile_99_5")
# nnU-Net divides by at least this much.
MIN_STD = 1e-8
# A standard deviation further from the encoder's than by this factor changes contrasts noticeably.
MAX_SCALE_RATIO = 1.5
# Ranges of intensities that share less than this of what they cover together show different tissues.
MIN_COMMON_RANGE = 0.5


def ct_intensity_warning(
    properties: Mapping[str, Mapping[str, float]],
    schemes: Sequence[str],
    recorded: Mapping[str, float],
    dataset: int,
) -> str | None:
    """Says that CT is scaled or clipped otherwise than in pretraining, and what to do; None when it is not.

    Args:
        properties: the plans' `foreground_intensity_properties_per_channel`.
        schemes: the plans' `normalization_schemes`, one for each channel.
        recorded: the same properties of the pretraining collection's CT; empty when it has none or they are not known.
        dataset: number of the dataset, for the command.
    """
    for channel, scheme in enumerate(schemes):
        own = properties.get(str(channel), {})
        if scheme != CT_SCHEME or not set(USED) <= set(own) & set(recorded):
            continue
        ratio = max(recorded["std"], MIN_STD) / max(own["std"], MIN_STD)
        if not 1 / MAX_SCALE_RATIO <= ratio <= MAX_SCALE_RATIO or _common_share(own, recorded) < MIN_COMMON_RANGE:
            return (
                f"channel {channel} (CT): the plans clip intensities to {_range_text(own)}, standard deviation "
                f"{own['std']:.4g}; the encoder was pretrained with {_range_text(recorded)}, {recorded['std']:.4g}. "
                f"Differences are {ratio:.2f} times as large as in pretraining. Plan with "
                f"swinfuse_plan_and_preprocess -d {dataset} --normalisation_as_pretrained -overwrite_plans_name NAME "
                "and train with -p NAME (this model keeps the plans that it has), or pretrain with "
                f"swinfuse_pretrain --for {dataset} (docs/planning.md, Matching the pretraining data)"
            )
    return None


def _common_share(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Share of the intensities within either clip range that lie within both; negative for ranges apart."""
    (low, high), (other_low, other_high) = _range(first), _range(second)
    covered = max(high, other_high) - min(low, other_low)
    return (min(high, other_high) - max(low, other_low)) / covered if covered else 1.0


def _range(properties: Mapping[str, float]) -> tuple[float, float]:
    return properties["percentile_00_5"], properties["percentile_99_5"]


def _range_text(properties: Mapping[str, float]) -> str:
    low, high = _range(properties)
    return f"{low:.4g} to {high:.4g}"
