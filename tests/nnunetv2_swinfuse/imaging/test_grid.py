import os
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.imaging.grid import Grid, itk_reason, read_grid
from tests.pretraining.synthetic_volumes import ct, write

GRID = Grid((20, 22, 18), (1.0, 1.5, 3.0), (-5.0, 0.0, 7.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def test_a_header_is_read_in_itks_order(tmp_path):
    image = sitk.GetImageFromArray(ct())
    image.SetSpacing((1.0, 1.5, 3.0))
    image.SetOrigin((-5.0, 0.0, 7.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert read_grid(tmp_path / "a.nii.gz").differs_from(GRID) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (20, 22, 19)}, r"size (20, 22, 18) and (20, 22, 19)"),
        ({"spacing": (1.0, 1.5, 3.1)}, "spacing [1.0, 1.5, 3.0] and [1.0, 1.5, 3.1]"),
        ({"origin": (-5.0, 1.0, 7.0)}, "origin"),
        ({"direction": (0, 1.0, 0, 1.0, 0, 0, 0, 0, 1.0)}, "direction"),
    ],
)
def test_the_first_property_that_differs_is_described(changes, words):
    assert words in (GRID.differs_from(replace(GRID, **changes)) or "")


def test_rounding_of_a_file_format_is_no_difference():
    assert GRID.differs_from(replace(GRID, spacing=(1.0000001, 1.5, 3.0), origin=(-5.0, 0.0005, 7.0))) is None


def test_spacings_can_be_compared_more_closely_and_are_told_apart():
    rounded = replace(GRID, spacing=(1.9531, 1.5, 3.0))
    other = replace(GRID, spacing=(1.953125, 1.5, 3.0), origin=(-5.0, 0.0005, 7.0))
    assert rounded.differs_from(other) is None
    assert rounded.differs_from(other, 1e-8) == "spacing [1.9531, 1.5, 3.0] and [1.953125, 1.5, 3.0]"
    assert rounded.differs_from(replace(rounded, spacing=(1.95311, 1.5, 3.0)), 1e-8) is None


@pytest.mark.parametrize(
    ("voxels", "words"),
    [(np.zeros((3, 4, 5, 6), np.float32), "4D"), (np.zeros((1, 4, 4), np.float32), "at least 2 voxels")],
)
def test_what_is_no_volume_is_named(tmp_path, voxels, words):
    path = write(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(InputError, match=rf"a\.nii\.gz: .*{words}"):
        read_grid(path)


def test_an_unreadable_file_is_named_without_itks_source_lines(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read") as caught:
        read_grid(tmp_path / "a.nii.gz")
    assert ".cxx" not in str(caught.value)
    assert itk_reason(RuntimeError("/build/io.cxx:3:\nERROR: bad magic\n")) == "ERROR: bad magic"


@pytest.mark.parametrize("name", [b"M\xfcller.nii.gz", b"M\xfcller/a.nii.gz"])
def test_a_path_that_is_not_utf8_is_refused_before_itk_aborts(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(write(tmp_path / "b.nii.gz", ct()).read_bytes())
    with pytest.raises(InputError, match="rename it"):
        read_grid(path)
    path = path.rename(tmp_path / "M\u00fcller.nii.gz")
    assert read_grid(path).size == ct().shape[::-1]
