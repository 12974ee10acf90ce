"""What to do with an encoder: nnU-Net's commands, for the screen and the report."""

from __future__ import annotations

from nnunetv2_swinfuse.architecture.encoder import Backbone
from nnunetv2_swinfuse.architecture.registry import RESENC_PLANNING, RESENC_PLANS

DATASET = "DATASET_ID"


def training_command(backbone: Backbone) -> str:
    """Fine-tunes the published encoder; a residual one in the plans that nnU-Net makes for such networks."""
    plans = f" -p {RESENC_PLANS}" if backbone == "resenc" else ""
    return f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerSwinFUSE{plans}"


def planning_command(backbone: Backbone) -> str | None:
    """What comes before, where nnU-Net's default plans are for another network; they work, but plan less memory."""
    return RESENC_PLANNING.format(DATASET) if backbone == "resenc" else None
