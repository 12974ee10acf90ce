from dataclasses import replace

import numpy as np
import pytest

from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.volume_file import NativeGrid, StoredGrid, foreground_points, open_volume
from pretraining.preprocessing import image as module
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.preprocessing.image import FOREGROUND_POINTS, Image, images_of, preprocess_image

from ..synthetic_volumes import SHAPE, ball, ct, mr, write

CT_PROPERTIES = {"mean": 10.0, "std": 5.0, "percentile_00_5": -50.0, "percentile_99_5": 60.0}
GRID = StoredGrid(SHAPE, NativeGrid((1.0, 1.0, 1.0), "RAS"))
NORMALISATION = Normalisation((1.0, 1.0, 1.0), CT_PROPERTIES, False)


@pytest.fixture
def pair(tmp_path):
    volumes = (
        Volume("CT", "CT", write(tmp_path / "ct.nii.gz", ct())),
        Volume("MR", "MR", write(tmp_path / "mr.nii.gz", mr())),
    )
    return Patient("a", volumes, paired=True)


def run(image, folder, normalisation=NORMALISATION):
    return preprocess_image(image, folder, normalisation, (8, 8, 8))


def test_a_registered_pair_is_one_image_and_other_volumes_are_one_each(pair):
    unpaired = replace(pair, identifier="b", paired=False)
    images = images_of(Collection("A", "synthetic", pair.volumes[0].path.parent, (pair, unpaired)))
    assert [[volume.modality for volume in image.volumes] for image in images] == [["CT", "MR"], ["CT"], ["MR"]]
    assert [image.patient.identifier for image in images] == ["a", "b", "b"]


def test_channels_are_normalised_and_written_with_the_body(pair, tmp_path):
    assert run(Image(pair, pair.volumes), tmp_path) == {"a_CT.b2nd": GRID, "a_MR.b2nd": GRID}
    volume = open_volume(tmp_path / "a_CT.b2nd")
    assert np.allclose(volume[0], (np.clip(ct(), -50, 60) - 10) / 5, atol=1e-5)
    assert volume.schunk.meta["padding"] == pytest.approx(-12.0)
    points = foreground_points(tmp_path / "a_CT.b2nd", volume)
    assert 0 < len(points) <= FOREGROUND_POINTS
    assert ball(SHAPE)[tuple(points.T.astype(int))].all()


def test_complete_files_are_kept_and_those_with_another_normalisation_rewritten(pair, tmp_path, monkeypatch):
    image = Image(pair, pair.volumes)
    shapes = run(image, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_volume", None)
        assert run(image, tmp_path) == shapes
    run(image, tmp_path, replace(NORMALISATION, ct={**CT_PROPERTIES, "mean": 0.0}))
    assert open_volume(tmp_path / "a_CT.b2nd")[0].max() == pytest.approx(12.0)
