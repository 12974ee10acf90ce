"""Which encoder a training starts from, and that all folds of a model start from the same one."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_swinfuse.architecture.encoder_file import PUBLISHED, Encoder
from nnunetv2_swinfuse.architecture.encoder_loading import load_pretrained
from nnunetv2_swinfuse.errors import SwinFUSEError
from nnunetv2_swinfuse.nnunet_names import ENCODER, RESULTS
from nnunetv2_swinfuse.training.checkpoints import trained_folds
from nnunetv2_swinfuse.training.provenance import Provenance


class EncoderChoiceError(SwinFUSEError, RuntimeError):
    """No encoder, or the wrong one; the message says what was searched and what to do."""


def find_encoder(named: str | None) -> tuple[Path, str] | None:
    """The encoder file to use and who named it: the variable, the plan, or the last pretraining run.

    Args:
        named: the path that the plans name in the configuration's `swinfuse.encoder`, if they do.

    Returns:
        None when there is none.
    """
    variable = os.environ.get(ENCODER)
    if variable:
        return Path(variable), f"named by {ENCODER}"
    if named:
        return Path(named), "named by the plans' swinfuse.encoder"
    results = os.environ.get(RESULTS)
    if results and (Path(results) / PUBLISHED).is_file():
        return Path(results) / PUBLISHED, "published by swinfuse_pretrain"
    return None


def choose_encoder(named: str | None) -> tuple[Encoder, str]:
    """Loads the encoder that :func:`find_encoder` finds; also returns who named it.

    Raises:
        EncoderChoiceError: when there is none.
        EncoderFileError: when the file cannot be used.
    """
    choice = find_encoder(named)
    if choice is None:
        results = os.environ.get(RESULTS, f"${RESULTS}")
        raise EncoderChoiceError(
            f"no pretrained encoder: {ENCODER} is not set, the plans name none, and {Path(results) / PUBLISHED} does "
            "not exist. Pretrain one (swinfuse_pretrain -d COLLECTION), point the variable to one, or train the same "
            "network from random weights with -tr nnUNetTrainerSwinFUSEScratch."
        )
    return load_pretrained(choice[0]), choice[1]


def check_same_encoder(recorded: Provenance, encoder: Encoder, model_folder: Path, fold: int | str) -> None:
    """Refuses a second encoder in one model: its folds could not be compared, nor averaged in inference.

    A model whose only trained fold is trained again may change its encoder.

    Args:
        recorded: what is recorded in the model's plans.json.
        encoder: the encoder that would be used now.
        model_folder: the model's folder.
        fold: the fold that would be trained now.

    Raises:
        EncoderChoiceError: saying which encoder the other folds started with and how to use it.
    """
    others = [name for name in trained_folds(model_folder) if name != f"fold_{fold}"]
    if not others or recorded.encoder_sha256 == encoder.sha256:
        return
    kept = recorded.kept_encoder
    raise EncoderChoiceError(
        f"{model_folder}: {', '.join(others)} started with the encoder SHA-256 {recorded.encoder_sha256} (kept at "
        f"{kept}), fold {fold} would start with {encoder.path}, SHA-256 {encoder.sha256}. All folds of a model need "
        f"the same one: export {ENCODER}={kept}; or move the model folder away to start a new cross-validation."
    )
