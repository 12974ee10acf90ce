"""Random contrasts in nnU-Net's augmentation: for segmentation of images with another contrast than the training's."""

from __future__ import annotations

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from torch import Tensor

from nnunetv2_swinfuse.random_contrast import ContrastParameters, apply_contrast, draw_contrast


class RandomContrastTransform(ImageOnlyTransform):
    """Renders a share of the images (C, z, y, x), every channel in a random contrast; mean and deviation stay.

    All draws depend on numpy's generator, because nnU-Net seeds only that one anew in each of its augmentation
    processes: torch's is the same in all of them, so they would all draw the same contrasts.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def get_parameters(self, **data_dict: Tensor) -> dict[str, ContrastParameters | None]:
        if np.random.random() >= self.probability:
            return {"contrast": None}
        seeds = np.random.randint(2**31 - 1, size=len(data_dict["image"]))
        return {"contrast": draw_contrast([torch.Generator().manual_seed(int(seed)) for seed in seeds])}

    def _apply_to_image(self, img: Tensor, **params: ContrastParameters | None) -> Tensor:
        contrast = params["contrast"]
        return img if contrast is None else apply_contrast(img[:, None], contrast)[:, 0]


def with_random_contrast(transforms: BasicTransform, probability: float) -> BasicTransform:
    """Adds :class:`RandomContrastTransform` after nnU-Net's own changes of intensity.

    It comes before voxels outside the mask are set to 0 and before a cascade adds channels that are no images.

    Args:
        transforms: nnU-Net's training transforms.
        probability: share of the patches that are rendered.

    Raises:
        TypeError: for transforms that are no list to add to.
    """
    if not isinstance(transforms, ComposeTransforms):
        raise TypeError(f"nnU-Net's training transforms are {type(transforms).__name__}, expected ComposeTransforms")
    steps = transforms.transforms
    later = (MaskImageTransform, MoveSegAsOneHotToDataTransform)
    place = next((index for index, step in enumerate(steps) if isinstance(step, later)), len(steps))
    return ComposeTransforms([*steps[:place], RandomContrastTransform(probability), *steps[place:]])
