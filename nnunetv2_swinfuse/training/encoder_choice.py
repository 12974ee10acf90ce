"""Which encoder a training starts from, and that all folds of a model start from the same one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swinfuse.architecture.encoder_file import Encoder, load_encoder

VARIABLE = "SWINFUSE_CHECKPOINT"
PUBLISHED = Path("swinfuse") / "encoder.pth"
CHECKPOINTS = "checkpoint_*.pth"


class EncoderChoiceError(RuntimeError):
    """No encoder, or the wrong one; the message says what was looked at and what to do."""


def find_encoder(planned: Mapping[str, Any]) -> tuple[Path, str] | None:
    """The encoder file to use and who named it: the variable, the plan, or the last pretraining run.

    Args:
        planned: the configuration's `swinfuse` block; its `encoder` may be a path.

    Returns:
        None when there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named), f"the variable {VARIABLE}"
    if planned.get("encoder"):
        return Path(planned["encoder"]), "the plans' swinfuse.encoder"
    results = os.environ.get("nnUNet_results")
    if results and (Path(results) / PUBLISHED).is_file():
        return Path(results) / PUBLISHED, "the last pretraining run"
    return None


def choose_encoder(planned: Mapping[str, Any]) -> Encoder:
    """Loads the encoder that :func:`find_encoder` finds.

    Raises:
        EncoderChoiceError: when there is none.
        EncoderFileError: when the file cannot be used.
    """
    found = find_encoder(planned)
    if found is None:
        results = os.environ.get("nnUNet_results", "$nnUNet_results")
        raise EncoderChoiceError(
            f"no pretrained encoder: {VARIABLE} is not set, the plans name none, and {Path(results) / PUBLISHED} does not "
            "exist. Pretrain one (swinfuse_pretrain -d COLLECTION), point the variable to one, or train the same "
            "network from random weights with -tr nnUNetTrainerSwinFUSEScratch."
        )
    return load_encoder(found[0])


def trained_plans(model_folder: Path) -> Path | None:
    """plans.json of a model folder in which some fold has a checkpoint: these plans decide from then on."""
    plans = model_folder / "plans.json"
    if plans.is_file() and any(model_folder.glob(f"fold_*/{CHECKPOINTS}")):
        return plans
    return None


def check_same_encoder(recorded: Mapping[str, Any], encoder: Encoder, model_folder: Path) -> None:
    """Refuses a second encoder in one model: its folds could not be compared nor averaged.

    Args:
        recorded: the `swinfuse` block of the model's plans.json.
        encoder: the encoder that would be used now.
        model_folder: the model's folder.

    Raises:
        EncoderChoiceError: saying which encoder the other folds began with and how to use it.
    """
    before = recorded.get("encoder_sha256")
    if before == encoder.sha256:
        return
    raise EncoderChoiceError(
        f"{model_folder}: its folds were trained from the encoder {str(before)[:12]} (kept at "
        f"{recorded.get('encoder_source') or recorded.get('encoder')}), now {encoder.path} is {str(encoder.sha256)[:12]}. "
        f"Use the same: export {VARIABLE}={recorded.get('encoder_source') or recorded.get('encoder')}; or move the model "
        "folder away to start a new cross-validation."
    )
