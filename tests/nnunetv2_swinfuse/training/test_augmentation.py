import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunetv2_swinfuse.random_contrast import apply_contrast, draw_contrast
from nnunetv2_swinfuse.training.augmentation import RandomContrastTransform, with_random_contrast

from .workshop import SETTINGS, make_trainer, publish_encoder


def test_every_channel_has_a_contrast_of_its_own_and_labels_stay():
    image = torch.randn(1, 8, 9, 10).repeat(2, 1, 1, 1)
    labels = torch.randint(0, 3, (1, 8, 9, 10))
    np.random.seed(0)
    result = RandomContrastTransform(1.0)(image=image.clone(), segmentation=labels.clone())
    np.random.seed(0)
    np.random.random()
    generators = [torch.Generator().manual_seed(int(seed)) for seed in np.random.randint(2**31 - 1, size=2)]
    expected = apply_contrast(image[:, None], draw_contrast(generators))[:, 0]
    assert torch.equal(result["image"], expected)
    assert torch.equal(result["segmentation"], labels)
    assert (result["image"][0] - result["image"][1]).abs().max() > 0.5


def test_zeros_around_a_patch_get_no_gradient():
    """nnU-Net pads patches with zeros, which are the mean of normalised intensities."""
    image = torch.randn(2, 12, 12, 12)
    image[..., :6] = 0
    np.random.seed(0)
    result = RandomContrastTransform(1.0)(image=image.clone())["image"]
    padding = result[..., :4].flatten(1)
    assert (padding.std(1) / result.flatten(1).std(1)).max() < 1e-3


def test_the_mask_and_the_channels_of_a_cascade_come_later():
    mask, cascade = MaskImageTransform([0]), MoveSegAsOneHotToDataTransform(1, (1, 2))
    for later in ([mask, RemoveLabelTansform(-1, 0), cascade], [RemoveLabelTansform(-1, 0), cascade]):
        steps = with_random_contrast(ComposeTransforms(later), 1.0).transforms
        kinds = [type(step) for step in steps]
        assert sorted(map(str, kinds)) == sorted(map(str, [*map(type, later), RandomContrastTransform]))
        place = kinds.index(RandomContrastTransform)
        assert all(kinds.index(type(step)) > place for step in later if step in (mask, cascade))
    # What is outside the mask ends as zero, and the one-hot channels as zeros and ones.
    image = torch.randn(1, 6, 6, 6)
    labels = torch.randint(-1, 3, (2, 6, 6, 6))
    before = labels.clone()
    result = with_random_contrast(ComposeTransforms([mask, cascade]), 1.0)(image=image.clone(), segmentation=labels)
    assert not result["image"][0][before[0] < 0].any()
    assert set(result["image"][1:].unique().tolist()) <= {0, 1}
    assert (result["image"][0] - image[0])[before[0] >= 0].abs().max() > 0.1


class Patches:
    """A data loader of one patch, augmented as nnU-Net's loader does."""

    def __init__(self, transform, patch):
        self.transform, self.patch = transform, patch

    def __iter__(self):
        return self

    def __next__(self):
        return {"image": self.transform(image=self.patch.clone())["image"].numpy(), "process": self.process}

    def set_thread_id(self, number):
        self.process = number


def test_nnunets_augmentation_processes_draw_different_contrasts():
    patches = Patches(RandomContrastTransform(1.0), torch.randn(1, 6, 6, 6))
    augmenter = NonDetMultiThreadedAugmenter(patches, None, num_processes=2, num_cached=4, seeds=None)
    drawn = {0: set(), 1: set()}
    try:
        while min(map(len, drawn.values())) < 3:
            item = next(augmenter)
            drawn[int(item["process"])].add(item["image"].tobytes())
    finally:
        augmenter._finish()
    assert not drawn[0] & drawn[1]


def test_a_share_of_the_patches_is_rendered():
    np.random.seed(0)
    transforms = with_random_contrast(ComposeTransforms([]), 0.25)
    image = torch.randn(1, 4, 4, 4)
    changed = sum(not torch.equal(transforms(image=image.clone())["image"], image) for _ in range(400))
    assert 70 < changed < 130


def test_other_transforms_are_refused():
    with pytest.raises(TypeError, match="expected ComposeTransforms"):
        with_random_contrast(RemoveLabelTansform(-1, 0), 0.5)


@pytest.mark.parametrize(("variable", "expected"), [(None, 0), ("0.5", 1)])
def test_nnunets_trainer_uses_it_when_asked_to(workshop, monkeypatch, variable, expected):
    publish_encoder(workshop.encoder, settings=SETTINGS)
    if variable:
        monkeypatch.setenv("SWINFUSE_RANDOM_CONTRAST", variable)
    trainer = make_trainer()
    trainer.initialize()
    training, validation = (loader.data_loader.transforms.transforms for loader in trainer.get_dataloaders())
    names = [type(step).__name__ for step in training]
    assert names.count("RandomContrastTransform") == expected
    assert "RandomContrast" not in str(validation)
