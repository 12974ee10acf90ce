"""Random contrasts in nnU-Net's augmentation: for segmentation of images with another contrast than the training's."""

from __future__ import annotations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from nnunetv2_swinfuse.random_contrast import ContrastParameters, apply_contrast, draw_contrast


class RandomContrastTransform(ImageOnlyTransform):
    """Renders every channel of an image (C, z, y, x) in a random contrast of its own; mean and deviation stay."""

    def get_parameters(self, **data_dict: Tensor) -> dict[str, ContrastParameters]:
        return {"contrast": draw_contrast([torch.default_generator] * len(data_dict["image"]))}

    def _apply_to_image(self, img: Tensor, **params: ContrastParameters) -> Tensor:
        return apply_contrast(img[:, None], params["contrast"])[:, 0]


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
    random_contrast = RandomTransform(RandomContrastTransform(), probability)
    return ComposeTransforms([*steps[:place], random_contrast, *steps[place:]])
