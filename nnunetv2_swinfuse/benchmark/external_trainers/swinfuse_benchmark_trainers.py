"""What nnU-Net finds through `nnUNet_extTrainer` while the benchmark runs. Nothing else may live in this folder.

The classes are defined in the package and only named here; see `discovery/external_trainers`.
"""

from nnunetv2_swinfuse.benchmark.swin_unetr import nnUNetTrainerSwinUNETR
from nnunetv2_swinfuse.benchmark.trainers import __getattr__

__all__ = ["__getattr__", "nnUNetTrainerSwinUNETR"]
