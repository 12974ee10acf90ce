"""nnU-Net's commands that use a pretrained encoder, as printed after a run and shown in its report."""

from __future__ import annotations

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.registry import RESENC_PLANNING, RESENC_PLANS

DATASET = "DATASET_ID"


def training_command(backbone: Backbone) -> str:
    """Fine-tunes the published encoder; a residual encoder with nnU-Net's plans for residual encoders."""
    plans = f" -p {RESENC_PLANS}" if backbone == "resenc" else ""
    return f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSwinFUSE{plans}"


def planning_command(backbone: Backbone) -> str | None:
    """Makes the plans for a residual encoder; None for Swin, which uses nnU-Net's default plans.

    A residual encoder also works with the default plans, but they are planned for a network that needs less memory.
    """
    return RESENC_PLANNING.format(DATASET) if backbone == "resenc" else None
