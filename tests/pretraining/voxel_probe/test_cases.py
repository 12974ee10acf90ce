import numpy as np
import pytest
import torch

from pretraining.collections.modalities import ModalityMap
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preprocessing.labelled import LabelledImage
from pretraining.voxel_probe import cases as module
from pretraining.voxel_probe.cases import halve_labels, load_case, make_case
from pretraining.voxel_probe.datasets import find_dataset

from . import synthetic_labelled as synthetic

NORMALISATION = Normalisation((1.0, 1.0, 1.0), {}, False)


def image(shape=(20, 20, 20)):
    labels = np.zeros(shape, np.int16)
    labels[12:16, 12:16, 12:16] = 3
    voxels = np.arange(labels.size, dtype=np.float32).reshape(shape)
    return LabelledImage(voxels, labels, np.ones(shape, bool), -7.0)


def test_labels_are_halved_by_majority():
    labels = torch.zeros(2, 2, 4, dtype=torch.long)
    labels[:, :, 0] = 2  # half of the first block: the smaller label wins
    labels[:, :, 2:] = 5
    labels[0, 0, 2] = 1
    assert halve_labels(labels).tolist() == [[[0, 5]]]


def test_a_small_image_is_padded_at_its_end_and_padding_is_not_used():
    case = make_case("a", image((9, 10, 12)), (96, 96, 96), (8, 8, 8))
    assert case.image.shape == (1, 1, 16, 16, 16)
    assert case.image[0, 0, 9:].unique().tolist() == [-7.0]
    assert case.used.shape == case.labels.shape == (8, 8, 8)
    assert int(case.used.sum()) == 5 * 5 * 6  # the fifth plane is half padding


def test_a_crop_contains_the_labels_and_is_the_same_each_time():
    case, again = (make_case("a", image(), (12, 12, 12), (2, 2, 2)) for _ in range(2))
    assert torch.equal(case.image, again.image)
    assert case.image.shape[2:] == (12, 12, 12)
    assert int((case.labels == 3).sum()) >= 1


def test_ignored_voxels_are_not_used():
    case = make_case("a", image(), (96, 96, 96), (2, 2, 2), ignored=3)
    assert int((~case.used).sum()) == 8
    assert not case.body[~case.used].any()


def test_a_block_of_mostly_ignored_voxels_is_not_used_as_background():
    labels = np.array([3, 3, 3, 1, 1, 2, 2, 0], np.int16).reshape(2, 2, 2)
    mixed = LabelledImage(np.zeros(labels.shape, np.float32), labels, np.ones(labels.shape, bool), 0.0)
    case = make_case("a", mixed, (2, 2, 2), (2, 2, 2), ignored=3)
    assert not case.used.any()
    assert not case.body.any()


def test_prepared_cases_are_kept_until_the_normalisation_changes(tmp_path, monkeypatch):
    synthetic.write_dataset(tmp_path / "raw", cases=1)
    dataset = find_dataset("501", tmp_path / "raw", ModalityMap())

    def load(normalisation):
        return load_case(dataset.cases[0], dataset, normalisation, (96, 96, 96), (2, 2, 2), tmp_path / "pre")

    first = load(NORMALISATION)
    monkeypatch.setattr(module, "preprocess_labelled", None)
    assert torch.equal(load(NORMALISATION).image, first.image)
    with pytest.raises(TypeError):
        load(Normalisation((2.0, 2.0, 2.0), {}, False))
