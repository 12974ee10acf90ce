import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.integrity import check
from pretraining.collections.resolve import find_collection

from ..synthetic_volumes import SHAPE, ct, mr, write, write_folder_pair


def problems_of(root):
    with pytest.raises(InputError) as caught:
        check(find_collection(root.name, root.parent))
    return str(caught.value)


def test_a_sound_collection_passes(tmp_path):
    write_folder_pair(tmp_path / "A", pairs=1, ct_only=1)
    grids = check(find_collection("A", tmp_path))
    assert {grid.size for grid in grids.values()} == {SHAPE[::-1]}


def test_all_problems_are_reported_together(tmp_path):
    root = write_folder_pair(tmp_path / "A", pairs=1, ct_only=1, mr_only=1)
    (root / "ct" / "text.nii.gz").write_text("no volume")
    (root / "mr" / "zero.mha").write_bytes(b"")
    (root / "mr" / "gone.nii.gz").symlink_to(root / "nowhere.nii.gz")
    write(root / "ct" / "series.nii.gz", np.zeros((2, *SHAPE), np.float32))
    write(root / "mr" / "slice.nii.gz", mr(shape=(1, 20, 20)))
    message = problems_of(root)
    assert message.startswith("collection A: 5 problem(s)")
    for name in ("text.nii.gz", "zero.mha", "gone.nii.gz"):
        assert f"{name}: cannot be read" in message
    assert "series.nii.gz: 4D" in message
    assert "slice.nii.gz: size (20, 20, 1)" in message
    assert "p0.nii.gz" not in message


def test_a_colour_image_is_not_a_volume(tmp_path):
    root = write_folder_pair(tmp_path / "A", ct_only=1, mr_only=1)
    colours = sitk.GetImageFromArray(np.zeros((*SHAPE, 3), np.float32), isVector=True)
    sitk.WriteImage(colours, str(root / "mr" / "colours.nrrd"))
    assert "3 component(s)" in problems_of(root)


@pytest.mark.parametrize(
    ("difference", "grid"),
    [
        ("size", {"voxels": mr(shape=(18, 22, 24))}),
        ("spacing", {"voxels": mr(), "spacing": (1.0, 1.0, 1.5)}),
        ("origin", {"voxels": mr(), "origin": (0.0, 5.0, 0.0)}),
    ],
)
def test_a_pair_on_two_grids_names_both_files_and_both_remedies(tmp_path, difference, grid):
    root = write_folder_pair(tmp_path / "A", pairs=1)
    write(root / "mr" / "p0.nii.gz", **grid)
    message = problems_of(root)
    assert "ct/p0.nii.gz and " in message
    assert "mr/p0.nii.gz" in message
    assert f"({difference} " in message
    assert "resample" in message
    assert "--unpaired" in message
    check(find_collection("A", tmp_path, unpaired=True))


def test_rounding_in_a_header_is_no_difference(tmp_path):
    root = write_folder_pair(tmp_path / "A", pairs=1)
    write(root / "mr" / "p0.nii.gz", mr(), spacing=(1.0, 1.0, 1.00001))
    check(find_collection("A", tmp_path))


def test_a_pair_stored_in_two_orientations_is_on_one_grid(tmp_path):
    root = write_folder_pair(tmp_path / "A", pairs=1)
    write(root / "mr" / "p0.nii.gz", mr(), stored="PIL")
    grids = check(find_collection("A", tmp_path))
    assert {grid.size for grid in grids.values()} == {SHAPE[::-1]}


def test_a_mask_on_another_grid_is_found(tmp_path):
    patient = tmp_path / "A" / "1BA001"
    write(patient / "ct.nii.gz", ct())
    write(patient / "mr.nii.gz", mr())
    write(patient / "mask.nii.gz", ct(shape=(18, 22, 24)))
    assert "mask.nii.gz: different grids (size" in problems_of(tmp_path / "A")
