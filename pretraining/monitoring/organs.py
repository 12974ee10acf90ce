"""Names of the organ probe's measures in the records of a run, and the warning that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Each followed by dataset and number of labelled cases: `organ_dice_501_2`.
DICE = "organ_dice"
RANDOM, BEST_RANDOM = "random_organ_dice", "best_random_organ_dice"
HANDMADE, COORDINATES = "handmade_organ_dice", "coordinates_organ_dice"


def organ_tasks(names: Iterable[str]) -> list[str]:
    """Datasets with numbers of labelled cases, such as `501_2`, that the names of measures mention."""
    return sorted(name.removeprefix(f"{DICE}_") for name in names if name.startswith(f"{DICE}_"))


def organ_warnings(means: Mapping[str, float]) -> list[str]:
    """Warnings for features that tell organs apart no better than those of a random encoder."""
    warnings = []
    for task in organ_tasks(means):
        dataset, _, labelled = task.rpartition("_")
        dice, random, best = (means[f"{name}_{task}"] for name in (DICE, RANDOM, BEST_RANDOM))
        if dice < random:
            warnings.append(
                f"features are poorer than a random encoder's: a linear layer fitted on {labelled} labelled cases of "
                f"{dataset} reaches a Dice of {dice:.2f} on others, with random encoders {random:.2f} (best "
                f"{best:.2f}). Fine-tuning will hardly profit from this encoder: try other weights of the losses, "
                "another --recipe, or the spacing of the dataset (--for)."
            )
    return warnings
