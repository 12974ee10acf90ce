"""plans.json of a model with trained folds: read, or restored from a checkpoint when it is damaged.

nnU-Net rewrites the file in place whenever a training starts or resumes. A process that is killed in that moment leaves
half of it; every checkpoint contains the whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.architecture.registry import planned_backbone
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import PLANS_FILE
from nnunetv2_swinfuse.plain_loading import load_plain
from nnunetv2_swinfuse.training.checkpoints import model_checkpoints, trained_folds
from nnunetv2_swinfuse.training.planned_network import PlansError
from nnunetv2_swinfuse.training.provenance import PROVENANCE_BLOCK


def trained_plans(model_folder: Path, configuration: str) -> dict[str, Any] | None:
    """The plans that a model's folds were trained with; None when none has been.

    Args:
        model_folder: the model's folder.
        configuration: the one it is for, which the plans are sure to have with network and provenance.

    Raises:
        PlansError: when the model's plans.json is not this trainer's, or is damaged and no checkpoint can restore it.
    """
    path = model_folder / PLANS_FILE
    folds = trained_folds(model_folder)
    if not folds or not path.is_file():
        return None
    try:
        try:
            plans: dict[str, Any] = json.loads(path.read_text())
        except ValueError:
            restored = _restore(path)
            if restored is None:
                raise
            plans = restored
        block = plans["configurations"][configuration]
        if planned_backbone(block["architecture"]) is None or PROVENANCE_BLOCK not in block:
            raise KeyError(PROVENANCE_BLOCK)
        # What it inherits must be there too.
        PlansManager(plans).get_configuration(configuration)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PlansError(
            f"{path}: its folds ({', '.join(folds)}) were trained with it, but it is damaged or not a SwinFUSE plan "
            f"({type(error).__name__}: {error}). Restore it, or move the model folder away to start over"
        ) from error
    return plans


def _restore(path: Path) -> dict[str, Any] | None:
    """Writes the plans that the newest readable checkpoint contains; None when there is none."""
    for checkpoint in sorted(model_checkpoints(path.parent), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            plans = dict(load_plain(checkpoint)["init_args"]["plans"])
        except (InputError, KeyError, TypeError, ValueError):
            continue
        plans.pop("continue_training", None)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(plans, indent=4))
        print(f"SwinFUSE: {path} was damaged and has been restored from {checkpoint}.")
        return plans
    return None
