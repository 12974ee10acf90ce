"""What nnU-Net finds through `nnUNet_extTrainer`. Nothing else may live in this folder.

nnU-Net drops every module of this folder from `sys.modules` after its search: classes defined here could not be
pickled. They are defined in the package and only named here.
"""

from nnunetv2_swinfuse.training.trainer import (
    nnUNetTrainerSwinFUSE,
    nnUNetTrainerSwinFUSEFrozen,
    nnUNetTrainerSwinFUSEScratch,
)
from nnunetv2_swinfuse.training.variants import VARIANTS

globals().update(VARIANTS)

__all__ = ["nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEFrozen", "nnUNetTrainerSwinFUSEScratch"]
