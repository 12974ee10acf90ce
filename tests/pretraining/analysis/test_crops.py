from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.crops import collection_crops, labelled_crops
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.collections.modalities import ModalityMap
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.volume_file import open_volume, read_crop
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.datasets import find_dataset

from ..synthetic import synthetic_collection, write_index
from ..voxel_probe import synthetic_labelled

SIZE = (16, 16, 16)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return synthetic_collection(tmp_path_factory.mktemp("collection"), patients=4)


def place_of(collection, crop, domain):
    """Where the volume of a patient holds a crop."""
    file = collection.folder / f"{crop.patient}_{domain}.b2nd"
    volume = open_volume(file)
    whole = read_crop(file, volume, np.zeros(3, int), volume.shape[1:])[0]
    windows = np.lib.stride_tricks.sliding_window_view(whole, SIZE)
    return np.argwhere((windows[..., 8, 8, :] == crop.image[0, 0, 8, 8].numpy()).all(-1)).tolist()


def test_registered_crops_show_the_same_place_of_the_same_patient(collection):
    crops = collection_crops(collection, "all", SIZE, 4, 0)
    assert crops.registered
    assert crops.names == ("CT", "MR")
    assert crops.first.patients == crops.second.patients
    assert len(set(crops.first.patients)) == 4
    ct, mr = (place_of(collection, domain.crops[1], domain.name) for domain in crops)
    assert [place for place in ct if place in mr]


def test_crops_depend_on_the_seed_only(collection):
    first, again, other = (collection_crops(collection, "all", SIZE, 4, seed).first.crops[0] for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_neighbours_are_of_different_patients(collection):
    patients = collection_crops(collection, "train", SIZE, 9, 0).first.patients
    assert len(set(patients)) == 3
    assert all(one != other for one, other in pairwise(patients))


def test_neighbours_are_of_different_patients_also_if_these_have_several_volumes(tmp_path):
    whole = synthetic_collection(tmp_path)
    patients = []
    for number in (0, 1):
        ct = [Volume("CT", "CT", whole.folder / f"1BA00{2 * number + n}_CT.b2nd") for n in (1, 2)]
        mr = Volume("MR", "MR", whole.folder / f"1BA00{number + 1}_MR.b2nd")
        patients.append(Patient(f"p{number}", (*ct, mr), paired=False))
    members = Collection("Sessions", "nnssl", whole.folder, tuple(patients))
    split = {"p0": "train", "p1": "train"}
    write_index(whole.folder, members, split, tuple(whole.table.shape[0]), spacing=[1, 1, 1], crop_size=[16, 16, 16])
    crops = collection_crops(PreprocessedCollection.open(whole.folder), "train", SIZE, 8, 0)
    for domain in crops:
        assert all(one != other for one, other in pairwise(domain.patients))


def test_too_few_patients_are_refused_with_a_remedy(collection):
    with pytest.raises(InputError, match=r"1 patient\(s\) with CT in the split 'validation'.*--split all"):
        collection_crops(collection, "validation", SIZE, 4, 0)


def test_labelled_datasets_give_classes_that_both_share_by_name(tmp_path):
    synthetic_labelled.write_dataset(tmp_path / "raw", 510, cases=3)
    synthetic_labelled.write_dataset(tmp_path / "raw", 511, cases=2, modality="CT", names=("spleen", "kidney"))
    modalities = ModalityMap.from_words([])
    datasets = [find_dataset(name, tmp_path / "raw", modalities) for name in ("510", "511")]
    ct = {"mean": 0.0, "std": 100.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}
    normalisation = Normalisation((1.0, 1.0, 1.0), ct, False)
    crops = labelled_crops(datasets, normalisation, SIZE, (4, 4, 4), 10, 0, tmp_path / "pre")
    assert crops.names == ("510 (MR)", "511 (CT)")
    assert [len(domain.crops) for domain in crops] == [3, 2]
    assert crops.classes == {1: "liver", 2: "spleen", 3: "kidney"}
    assert not crops.registered
    assert set(crops.first.crops[0].classes.unique().tolist()) <= {0, 1, 2}
    assert set(crops.second.crops[0].classes.unique().tolist()) <= {0, 2, 3}
    assert 2 in crops.second.crops[0].classes
