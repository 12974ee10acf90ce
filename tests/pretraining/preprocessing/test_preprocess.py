import shutil
from collections import Counter
from pathlib import Path

import blosc2
import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.resolve import find_collection, find_collections
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessing import preprocess as preprocessing
from pretraining.preprocessing.foreground import read_volume
from pretraining.preprocessing.preprocess import preprocess
from tests.pretraining.nnunet_plans import CT
from tests.pretraining.preprocessing.runs import index_of, run, split_of, times_of, voxels_of
from tests.pretraining.synthetic_volumes import SHAPE, ball, ct, mr, write, write_folder_pair


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_folder_pair(tmp_path / "raw" / "A", pairs=2, ct_only=2, mr_only=2)


def test_files_index_and_metadata(raw, tmp_path):
    folder = run(tmp_path)
    assert folder == tmp_path / "preprocessed" / "A" / "swinfuse"
    names = {"p0_CT", "p0_MR", "p1_CT", "p1_MR", "c0_CT", "c1_CT", "m0_MR", "m1_MR"}
    assert {path.name for path in folder.iterdir()} == {"index.json", "index.npz", *(f"{name}.b2nd" for name in names)}
    index = index_of(folder)
    assert index["name"] == "A"
    assert index["hash"] == find_collection("A", tmp_path / "raw").hash
    assert index["spacing"] == [1.0, 1.0, 1.0]
    assert index["crop_size"] == [8, 8, 8]
    assert index["normalisation"]["mr_use_mask"] is False
    assert (index["patients"], index["pairs"], index["volumes"]) == (6, 2, {"CT": 4, "MR": 4})
    collection = PreprocessedCollection.open(folder)
    table = collection.table
    assert [collection.file(volume).name for volume in (6, 7)] == ["p1_CT.b2nd", "p1_MR.b2nd"]
    assert [collection.patient(volume) for volume in (0, 6, 7)] == ["c0", "p1", "p1"]
    assert table.domain[-2:].tolist() == [0, 1]
    assert [index["modalities"][number] for number in table.modality[-2:]] == ["CT", "MR"]
    assert table.paired.tolist() == [False] * 4 + [True] * 2
    assert (table.shape == SHAPE).all()
    array = blosc2.open(str(folder / "p1_CT.b2nd"), mode="r")
    assert (array.dtype, array.shape) == (np.float32, (1, *SHAPE))
    assert array.schunk.meta["spacing"] == [1.0, 1.0, 1.0]
    assert array.schunk.meta["padding"] == array[:].min()
    points = np.frombuffer(array.schunk.meta["foreground"], "<i2").reshape(-1, 3)
    assert 500 < len(points) <= 1000
    # The body of a pair is what is body in either.
    assert ball(SHAPE)[tuple(points.T.astype(int))].all()


def test_intensities_are_normalised_as_nnunet_does(raw, tmp_path):
    folder = run(tmp_path)
    properties = index_of(folder)["normalisation"]["ct"]
    clipped = np.clip(ct(0), properties["percentile_00_5"], properties["percentile_99_5"])
    assert np.allclose(voxels_of(folder / "p0_CT.b2nd"), (clipped - properties["mean"]) / properties["std"], atol=1e-4)
    assert np.allclose(voxels_of(folder / "p0_MR.b2nd"), (mr(0) - mr(0).mean()) / mr(0).std(), atol=1e-4)


def test_ct_is_normalised_with_the_intensities_of_a_dataset_if_given(raw, tmp_path):
    own = index_of(run(tmp_path))["normalisation"]
    # Files that an interrupted run has normalised otherwise are written again.
    (tmp_path / "preprocessed" / "A" / "swinfuse" / "index.json").unlink()
    folder = run(tmp_path, ct_intensities=CT)
    index = index_of(folder)
    assert index["ct_intensities"] == index["normalisation"]["ct"] == CT != own["ct"]
    clipped = np.clip(ct(0), CT["percentile_00_5"], CT["percentile_99_5"])
    assert np.allclose(voxels_of(folder / "p0_CT.b2nd"), (clipped - CT["mean"]) / CT["std"], atol=1e-4)
    assert np.allclose(voxels_of(folder / "p0_MR.b2nd"), (mr(0) - mr(0).mean()) / mr(0).std(), atol=1e-4)
    times = times_of(folder)
    assert times_of(run(tmp_path, ct_intensities=CT)) == times
    for other in (None, {**CT, "std": 50.0}):
        with pytest.raises(InputError, match=r"CT normalised with {.*} in the folder, .* now \(--for a CT data"):
            run(tmp_path, ct_intensities=other)
    assert index_of(run(tmp_path, overwrite=True))["normalisation"] == own
    with pytest.raises(InputError, match=r'with the intensities of the collection in the folder, {"mean": 93.1'):
        run(tmp_path, ct_intensities=CT)


def test_mr_with_much_zero_around_is_cropped_and_normalised_inside(raw, tmp_path):
    for index in range(2):
        voxels = np.zeros(SHAPE, np.float32)
        voxels[4:14, 5:17, 4:16] = mr(index)[4:14, 5:17, 4:16]
        # A corner beside the crop's middle is zero too: outside of the mask, and inside of the crop.
        voxels[4:8, 5:9, 4:8] = 0
        write(raw / "mr" / f"m{index}.nii.gz", voxels)
        (raw / "mr" / f"p{index}.nii.gz").unlink()
    folder = run(tmp_path)
    assert index_of(folder)["normalisation"]["mr_use_mask"] is True
    array = blosc2.open(str(folder / "m0_MR.b2nd"), mode="r")
    assert array.shape == (1, 10, 12, 12)
    data = array[0]
    assert (data[:4, :4, :4] == 0).all()
    assert array.schunk.meta["padding"] == 0.0
    inside = np.ones(data.shape, bool)
    inside[:4, :4, :4] = False
    assert data[inside].mean() == pytest.approx(0, abs=1e-5)
    assert data[inside].std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("stored", ["RAS", "LPS", "LAS", "PIR", "SLA"])
def test_all_orientations_give_one_array(tmp_path, stored):
    voxels = ct()
    voxels[3, 5, 7] = 1000
    root = tmp_path / "raw" / "A"
    write(root / "ct" / "a.nii.gz", voxels, (1.0, 1.2, 2.0), (5.0, -3.0, 1.0), stored)
    write(root / "ct" / "b.nii.gz", ct(), (1.0, 1.2, 2.0))
    folder = run(tmp_path)
    index = index_of(folder)
    assert index["orientation"] == "RAS"
    assert index["native_orientations"] == {"CT": Counter((stored, "RAS")), "MR": {}}
    # The spacing is permuted with the axes.
    assert index["spacing"] == pytest.approx([2.0, 1.2, 1.0])
    array = voxels_of(folder / "a_CT.b2nd")
    assert array.shape == SHAPE
    assert array[3, 5, 7] == array.max()
    properties = index["normalisation"]["ct"]
    clipped = np.clip(voxels, properties["percentile_00_5"], properties["percentile_99_5"])
    assert np.allclose(array, (clipped - properties["mean"]) / properties["std"], atol=1e-4)
    assert PreprocessedCollection.open(folder).table.native_spacing[0].tolist() == pytest.approx([2.0, 1.2, 1.0])


def test_a_pair_stored_in_two_orientations_stays_registered(tmp_path):
    voxels = ct()
    voxels[3, 5, 7] = 1000
    for name in ("p0", "p1"):
        write(tmp_path / "raw" / "A" / "ct" / f"{name}.nii.gz", voxels, stored="LPS")
        write(tmp_path / "raw" / "A" / "mr" / f"{name}.nii.gz", voxels + 2000.0, stored="PIR")
    folder = run(tmp_path)
    ours_ct, ours_mr = (voxels_of(folder / f"p0_{domain}.b2nd") for domain in ("CT", "MR"))
    assert np.unravel_index(ours_mr.argmax(), SHAPE) == (3, 5, 7)
    # The noise inside the body is the same in both, up to clipping.
    body = ball(SHAPE)
    body[3, 5, 7] = False
    assert np.corrcoef(ours_ct[body], ours_mr[body])[0, 1] > 0.98


def test_the_order_is_that_of_nnunets_reorienting_reader(tmp_path):
    """With it, fine-tuning and prediction read images as pretraining did."""
    path = write(tmp_path / "a.nii.gz", ct(), stored="PIR")
    theirs, properties = SimpleITKIOWithReorient().read_images([str(path)])
    ours, our_properties = read_volume(path)
    assert np.array_equal(ours, theirs)
    assert our_properties["spacing"] == properties["spacing"]


def test_volumes_are_resampled_to_the_median_spacing_or_the_one_given(tmp_path):
    root = tmp_path / "raw" / "A"
    for index, slice_distance in enumerate((2.0, 2.0, 4.0)):
        write(root / "ct" / f"c{index}.nii.gz", ct(), spacing=(1.0, 1.0, slice_distance))
        write(root / "mr" / f"m{index}.nii.gz", mr(), spacing=(1.0, 1.0, slice_distance))
    folder = run(tmp_path)
    assert index_of(folder)["spacing"] == [2.0, 1.0, 1.0]
    assert [voxels_of(folder / f"c{index}_CT.b2nd").shape[0] for index in range(3)] == [18, 18, 36]
    folder = run(tmp_path, spacing=(4.0, 2.0, 1.0), overwrite=True)
    assert voxels_of(folder / "c0_CT.b2nd").shape == (9, 11, 20)


def test_a_pair_stays_on_one_grid_when_its_background_is_cropped(raw, tmp_path):
    outside = ~np.pad(np.ones((10, 12, 12), bool), [(2, 6), (4, 6), (3, 5)])
    for domain, voxels in (("ct", ct()), ("mr", mr())):
        voxels[outside] = 0
        write(raw / domain / "p0.nii.gz", voxels)
    folder = run(tmp_path)
    assert voxels_of(folder / "p0_CT.b2nd").shape == voxels_of(folder / "p0_MR.b2nd").shape == (10, 12, 12)


def test_the_split_is_by_patient_stratified_and_kept(raw, tmp_path):
    folder = run(tmp_path, seed=0)
    split = split_of(folder)
    assert {kind: sorted(split[f"{kind}{i}"] for i in range(2)) for kind in "pcm"} == {
        kind: ["train", "validation"] for kind in "pcm"
    }
    seeds = [other for other in range(1, 9) if run_split(tmp_path, other) != split]
    run(tmp_path, seed=seeds[0])
    (folder / "p0_CT.b2nd").unlink()
    run(tmp_path, seed=seeds[0])
    assert split_of(folder) == split


def run_split(root: Path, seed: int) -> dict[str, str]:
    return preprocessing.split_patients(find_collection("A", root / "raw").patients, 0.1, seed)


@pytest.mark.slow
def test_several_processes_give_the_same_files(raw, tmp_path):
    folder = run(tmp_path)
    expected = {name: voxels_of(folder / name) for name in times_of(folder)}
    index = index_of(folder)
    shutil.rmtree(folder)
    run(tmp_path, processes=2)
    assert index_of(folder) == index
    assert all(np.array_equal(voxels_of(folder / name), voxels) for name, voxels in expected.items())


@pytest.mark.parametrize(("distance", "voxels"), [(0.001, "0 x 0 x 0"), (5000.0, "90000 x 110000 x 100000")])
def test_a_voxel_size_that_cannot_be_meant_is_refused_before_any_work(tmp_path, distance, voxels):
    write_folder_pair(tmp_path / "raw" / "A", ct_only=2, mr_only=2)
    write(tmp_path / "raw" / "A" / "ct" / "odd.mha", ct(), spacing=(distance,) * 3)
    with pytest.raises(InputError, match=rf"1 problem.*\n.*odd\.mha.*would become {voxels} voxels of 1 x 1 x 1 mm"):
        run(tmp_path)
    assert not (tmp_path / "preprocessed").exists()


def test_a_volume_whose_only_slice_is_lost_is_named(tmp_path):
    write_folder_pair(tmp_path / "raw" / "A", ct_only=2, mr_only=2)
    voxels = np.zeros_like(mr())
    voxels[9] = mr()[9] + 1
    write(tmp_path / "raw" / "A" / "mr" / "odd.nii.gz", voxels)
    with pytest.raises(InputError, match=r"odd\.nii\.gz: all but 1 x .* none remains"):
        run(tmp_path, spacing=(3.0, 1.0, 1.0))


def test_a_body_that_resampling_loses_leaves_no_points(tmp_path):
    root = tmp_path / "raw" / "A"
    speck = np.zeros(SHAPE, np.uint8)
    speck[9, 11, 10] = 1
    for patient in ("1BA001", "1BA002"):
        write(root / patient / "ct.nii.gz", ct())
        write(root / patient / "mr.nii.gz", mr())
        write(root / patient / "mask.nii.gz", speck)
    folder = run(tmp_path, spacing=(6.0, 6.0, 6.0))
    array = blosc2.open(str(folder / "1BA001_CT.b2nd"), mode="r")
    assert array.schunk.meta["foreground"] == b""


def test_headers_are_read_once(raw, tmp_path, monkeypatch):
    from pretraining.collections import integrity

    read = []
    original = integrity.read_grid
    monkeypatch.setattr(integrity, "read_grid", lambda path: read.append(path) or original(path))
    collection = find_collection("A", tmp_path / "raw")
    run(tmp_path, grids=integrity.check(collection))
    assert sorted(read) == sorted(volume.path for volume in collection.volumes)


def test_a_collection_with_only_mr_can_be_preprocessed(tmp_path):
    write_folder_pair(tmp_path / "raw" / "A", mr_only=3)
    folder = run(tmp_path)
    assert index_of(folder)["volumes"] == {"CT": 0, "MR": 3}
    assert np.allclose(voxels_of(folder / "m0_MR.b2nd"), (mr(200) - mr(200).mean()) / mr(200).std(), atol=1e-4)


def test_several_collections_lie_in_folders_of_their_own(tmp_path):
    write_folder_pair(tmp_path / "raw" / "A", pairs=2)
    write_folder_pair(tmp_path / "raw" / "B", ct_only=2, mr_only=2)
    collection = find_collections(["A", "B"], tmp_path / "raw")
    folder = preprocess(collection, tmp_path / "preprocessed", crop_size=(8, 8, 8), processes=1)
    reopened = PreprocessedCollection.open(folder)
    files = {reopened.file(volume).relative_to(folder).as_posix() for volume in range(8)}
    assert {"A/p0_CT.b2nd", "A/p0_MR.b2nd", "B/c0_CT.b2nd", "B/m1_MR.b2nd"} < files
    assert all((folder / file).is_file() for file in files)
    assert reopened.split_by_patient().keys() == {patient.identifier for patient in collection.patients}
