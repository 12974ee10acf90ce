import numpy as np
import pytest
import torch

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.preprocessed.turnable import is_isotropic_plane, turnable_volumes, turning_notes
from pretraining.preprocessed.volume_file import NativeGrid, StoredGrid, VolumeMetadata, write_volume
from pretraining.randomness import sample_generators
from pretraining.view_pairs import two_views

from ..synthetic import tiny, write_index

PADDING = -7.0
ISOTROPIC, ANISOTROPIC = (3.0, 1.0, 1.04), (3.0, 1.0, 1.1)
LARGE, SMALL = (12, 20, 20), (20, 10, 20)


def make(folder, grids: dict[str, tuple], pairs=()) -> PreprocessedCollection:
    """A collection of volumes such as `a_CT`, each with a shape and a native spacing."""
    patients, stored = {}, {}
    for name, (shape, spacing) in grids.items():
        identifier, domain = name.split("_")
        path = folder / f"{name}.b2nd"
        voxels = np.random.default_rng(len(stored)).normal(size=(1, *shape)).astype(np.float32)
        metadata = VolumeMetadata(np.empty((0, 3)), PADDING, native=NativeGrid(spacing, "RAS"))
        write_volume(path, voxels, metadata, (1, 8, 8, 8), (1, 4, 4, 4))
        stored[path.name] = StoredGrid(shape, NativeGrid(spacing, "RAS"))
        patients.setdefault(identifier, []).append(Volume(domain, domain, path))
    members = tuple(Patient(name, tuple(volumes), name in pairs) for name, volumes in patients.items())
    split = dict.fromkeys(patients, "train")
    write_index(folder, Collection("A", "synthetic", folder, members), split, LARGE, stored)
    return PreprocessedCollection.open(folder)


def crops_of(collection, batch_size=16) -> CropDataset:
    return CropDataset(collection, "train", (16, 16, 16), batch_size, seed=0, steps=20)


@pytest.mark.parametrize(
    ("y", "x", "expected"), [(1.0, 1.0, True), (1.0, 1.05, True), (1.06, 1.0, False), (1.0, 1.06, False)]
)
def test_five_per_cent_are_isotropic(y, x, expected):
    assert is_isotropic_plane(y, x) == expected
    assert is_isotropic_plane(np.array([y]), np.array([x])).tolist() == [expected]


def test_a_volume_is_turnable_if_its_plane_fills_the_crop_and_was_isotropic(tmp_path):
    grids = {
        "a_CT": (LARGE, ISOTROPIC), "b_CT": (SMALL, ISOTROPIC), "c_CT": (LARGE, ANISOTROPIC),
        "d_MR": ((20, 20, 15), ISOTROPIC), "e_MR": ((16, 16, 16), ISOTROPIC),
    }  # fmt: skip
    # Padding along z, as for the first, turns with nothing.
    assert turnable_volumes(make(tmp_path, grids), (16, 16, 16)).tolist() == [True, False, False, False, True]


def test_both_crops_of_a_pair_are_turnable_or_neither(tmp_path):
    grids = {"p_CT": (LARGE, ISOTROPIC), "p_MR": (LARGE, ANISOTROPIC)}
    registered = crops_of(make(tmp_path, grids, pairs=("p",)))[0]
    assert not registered["ct_turnable"].any()
    assert not registered["mr_turnable"].any()
    unregistered = crops_of(make(tmp_path, grids))[0]
    assert unregistered["ct_turnable"].all()
    assert not unregistered["mr_turnable"].any()
    single = CropDataset(make(tmp_path, grids), "train", (16, 16, 16), 2, seed=0, steps=1, domains=("MR",))[0]
    assert single.keys() == {"mr", "mr_inside", "mr_turnable", "registered", "patients"}


@pytest.mark.slow
def test_the_padding_says_nothing_about_the_turn(tmp_path):
    """The best classifier that sees only the padding: the most frequent turn for each pattern of padding."""
    grids = {
        "a_CT": (SMALL, ISOTROPIC), "b_CT": (LARGE, ISOTROPIC), "c_CT": ((20, 9, 11), ISOTROPIC),
        "d_MR": ((20, 20, 10), ISOTROPIC), "e_MR": (LARGE, ISOTROPIC), "f_MR": ((20, 15, 15), ISOTROPIC),
    }  # fmt: skip
    crops = crops_of(make(tmp_path, grids))
    patterns: dict[bytes, list[int]] = {}
    for step in range(len(crops)):
        batch = crops[step]
        images = {"CT": batch["ct"], "MR": batch["mr"]}
        turnable = {"CT": batch["ct_turnable"], "MR": batch["mr_turnable"]}
        generators = sample_generators(0, step, 0, range(16))
        views = two_views(images, turnable, batch["registered"], tiny(), generators).views
        for name, both in views.items():
            # The views' intensities differ, so the padding is followed through the turns by itself.
            padding = (images[name] == PADDING).repeat(2, 1, 1, 1, 1)
            for image, turns in zip(padding, both.turns.tolist(), strict=True):
                turned = torch.rot90(image, turns, (2, 3)).numpy().tobytes()
                patterns.setdefault(turned, []).append(turns)
    # One pattern for each volume that is padded in the plane, which never shows a turn, and one for the others.
    assert len(patterns) == 5
    turned = [turns for turns in patterns.values() if len(set(turns)) > 1]
    assert len(turned) == 1
    assert max(np.bincount(turned[0])) / len(turned[0]) < 0.3


def test_the_log_says_what_cannot_be_turned_and_what_would_help(tmp_path):
    few = {f"c{number}_CT": (SMALL, ISOTROPIC) for number in range(12)}
    collection = make(tmp_path, {**few, "a_CT": (LARGE, ISOTROPIC), "m_MR": (LARGE, ISOTROPIC)})
    (note,) = turning_notes(collection, (16, 16, 16), ("CT", "MR"))
    assert note.startswith("WARNING: hardly any CT crop trains the rotation task. 1 of 13 CT volumes can be turned")
    assert "12 are smaller than a crop along y or x" in note
    # The volumes have 10 voxels along y, and the collection's spacing is 1 mm.
    assert "at most 10 voxels" in note
    assert "spacing of 1 x 0.625 x 0.625 mm" in note
    assert turning_notes(collection, (16, 8, 8), ("CT", "MR")) == []
    half = make(tmp_path / "b", {"a_MR": (LARGE, ISOTROPIC), "b_MR": (LARGE, ANISOTROPIC)})
    (note,) = turning_notes(half, (16, 16, 16), ("CT", "MR"))
    assert note.startswith("1 of 2 MR volumes can be turned by quarters (1 had voxels of different sizes along y and x")
    none = make(tmp_path / "c", {"b_MR": (LARGE, ANISOTROPIC)})
    assert "WARNING" in turning_notes(none, (16, 16, 16), ("MR",))[0]
    assert "--no-quarter_turns" in turning_notes(none, (16, 16, 16), ("MR",))[0]
