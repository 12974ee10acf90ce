"""Which folds of a model have been trained; standard library only, because `swinfuse_train` asks before it starts."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_swinfuse.architecture.atomic_write import is_temporary


def model_checkpoints(model_folder: Path) -> list[Path]:
    """Checkpoints of all folds of a model folder, in the order of their paths.

    Temporary files are left out: a killed process leaves them half written.
    """
    return sorted(path for path in model_folder.glob("fold_*/checkpoint_*.pth") if not is_temporary(path))


def trained_folds(model_folder: Path) -> list[str]:
    """Names of the folds of a model folder that have a checkpoint, such as `fold_0`."""
    return sorted({checkpoint.parent.name for checkpoint in model_checkpoints(model_folder)})
