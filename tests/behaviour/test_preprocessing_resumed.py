"""Preprocessing that is interrupted, repaired, out of disk space or divided: nothing is lost or done twice."""

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import pytest
from filelock import FileLock

from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessed.collection import INDEX_VERSION
from pretraining.preprocessing import fingerprint, image
from pretraining.preprocessing import preprocess as preprocessing
from tests.pretraining.preprocessing.runs import index_of, run, times_of, voxels_of
from tests.pretraining.synthetic_volumes import ct, mr, shorten, write, write_folder_pair

pytestmark = pytest.mark.slow


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_folder_pair(tmp_path / "raw" / "A", pairs=2, ct_only=2, mr_only=2)


def test_files_of_an_older_version_are_rewritten(raw, tmp_path, monkeypatch):
    for module in (image, fingerprint):
        monkeypatch.setattr(module, "INDEX_VERSION", INDEX_VERSION - 1)
    folder = run(tmp_path)
    (folder / "index.json").unlink()
    before = times_of(folder)
    monkeypatch.undo()
    read = []
    original = fingerprint.read_volume
    monkeypatch.setattr(fingerprint, "read_volume", lambda path: read.append(path.name) or original(path))
    run(tmp_path)
    assert len(read) == 8
    after = times_of(folder)
    assert all(after[name] > before[name] for name in before if name.endswith(".b2nd"))


def test_a_second_run_touches_nothing(raw, tmp_path, monkeypatch):
    folder = run(tmp_path)
    before = times_of(folder)
    monkeypatch.setattr(preprocessing, "fingerprint_volume", None)
    run(tmp_path)
    assert times_of(folder) == before


def test_an_interrupted_run_is_completed_not_repeated(raw, tmp_path):
    folder = run(tmp_path)
    before = times_of(folder)
    (folder / "index.json").unlink()
    (folder / "c0_CT.b2nd").unlink()
    shorten(folder / "m0_MR.b2nd")
    (folder / "c1_CT.123.tmp.b2nd").write_bytes(b"of a killed process")
    run(tmp_path)
    after = times_of(folder)
    assert {name for name in before if after[name] != before[name]} == {"c0_CT.b2nd", "m0_MR.b2nd"}
    assert set(after) == set(before)


def test_broken_volumes_are_all_named_and_a_rerun_finishes(raw, tmp_path, monkeypatch):
    shorten(raw / "ct" / "c0.nii.gz")
    voxels = mr()
    voxels[0, 0, 0] = np.nan
    write(raw / "mr" / "m1.nii.gz", voxels)
    with pytest.raises(InputError, match=r"reading volumes: 2 volume\(s\)") as caught:
        run(tmp_path)
    assert "c0.nii.gz: truncated" in str(caught.value)
    assert "m1.nii.gz: 1 NaN or infinite voxel" in str(caught.value)
    write(raw / "ct" / "c0.nii.gz", ct(100))
    (raw / "mr" / "m1.nii.gz").unlink()
    write(raw / "mr" / "m2.nii.gz", mr(7))
    read = []
    from pretraining.preprocessing import fingerprint

    original = fingerprint.read_volume
    monkeypatch.setattr(fingerprint, "read_volume", lambda path: read.append(path.name) or original(path))
    folder = run(tmp_path)
    # Everything that was readable had been read, and that was kept.
    assert sorted(read) == ["c0.nii.gz", "m2.nii.gz"]
    assert len(times_of(folder)) == 8


def test_a_volume_that_breaks_while_others_are_written_loses_nothing(raw, tmp_path, monkeypatch):
    original = image.read_volume

    def read(path):
        if path.name == "c0.nii.gz":
            raise InputError(f"{path}: truncated")
        return original(path)

    monkeypatch.setattr(image, "read_volume", read)
    with pytest.raises(InputError, match=r"preprocessing to .*1 volume\(s\).*\n.*c0\.nii\.gz"):
        run(tmp_path)
    monkeypatch.undo()
    before = times_of(tmp_path / "preprocessed" / "A" / "swinfuse")
    assert len(before) == 7
    after = times_of(run(tmp_path))
    assert {name: after[name] for name in before} == before
    assert len(after) == 8


def test_a_replaced_volume_is_preprocessed_again_before_completion(raw, tmp_path):
    folder = run(tmp_path)
    (folder / "index.json").unlink()
    write(raw / "mr" / "m0.nii.gz", mr(50) * 2)
    before = voxels_of(folder / "m0_MR.b2nd")
    run(tmp_path)
    assert not np.allclose(voxels_of(folder / "m0_MR.b2nd"), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing": (2.0, 1.0, 1.0)}, r"spacing 1 x 1 x 1 mm in the folder, 2 x 1 x 1 mm now"),
        ({"unpaired": True}, "other volumes: 6 patients in the folder, 6 now"),
    ],
)
def test_other_settings_in_a_completed_folder_are_refused(raw, tmp_path, change, words):
    before = times_of(run(tmp_path))
    with pytest.raises(InputError, match=rf"{words}.*--overwrite"):
        run(tmp_path, **change)
    folder = run(tmp_path, **change, overwrite=True)
    assert times_of(folder) != before


def test_another_patient_in_a_completed_folder_is_refused(raw, tmp_path):
    run(tmp_path)
    write(raw / "ct" / "c9.nii.gz", ct(9))
    with pytest.raises(InputError, match="6 patients in the folder, 7 now"):
        run(tmp_path)


def test_a_damaged_index_is_named(raw, tmp_path):
    folder = run(tmp_path)
    (folder / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json: damaged.*--overwrite"):
        run(tmp_path)


def test_a_full_disk_is_explained_and_what_is_complete_is_kept(raw, tmp_path, monkeypatch):
    original = blosc2.asarray
    written = []

    def fill_up(*arguments, **options):
        written.append(options["urlpath"])
        if len(written) > 3:
            # What blosc2 raises on a full disk.
            raise RuntimeError("Error while creating the NDArray")
        return original(*arguments, **options)

    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(blosc2, "asarray", fill_up)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"swinfuse: the disk is full \(0\.00 GiB free\).*same command again"):
            run(tmp_path)
    folder = tmp_path / "preprocessed" / "A" / "swinfuse"
    assert {path.suffix for path in folder.glob("*.*") if path.is_file()} == {".b2nd"}
    assert not list(folder.rglob("*.tmp.*"))
    before = times_of(folder)
    assert len(before) == 3
    after = times_of(run(tmp_path))
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_from_the_start(raw, tmp_path, monkeypatch, number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(preprocessing, "fingerprint_volume", refuse)
    with pytest.raises(InputError, match="disk is full"):
        run(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(raw, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(preprocessing, "preprocess_image", refuse)
    with pytest.raises(InputError, match=r"cannot be written to.*nnUNet_preprocessed"):
        run(tmp_path)


def test_parts_one_after_the_other_give_what_one_run_gives(raw, tmp_path, monkeypatch):
    from pretraining.preprocessing import fingerprint

    folder = run(tmp_path)
    expected = {name: voxels_of(folder / name) for name in times_of(folder)}
    index, table = index_of(folder), dict(np.load(folder / "index.npz"))
    shutil.rmtree(folder)
    read = []
    original = fingerprint.read_volume
    monkeypatch.setattr(fingerprint, "read_volume", lambda path: read.append(path.name) or original(path))
    written = []
    for part in (2, 0, 1):
        run(tmp_path, part=part, parts=3)
        written.append(set(times_of(folder)) - set().union(*written))
        assert (folder / "index.json").is_file() == (part == 1)
    # Images, pairs among them, are dealt out in turn; each volume is read for the normalisation once.
    assert [len(files) for files in written] == [3, 2, 3]
    assert len(read) == 8
    assert index_of(folder) == index
    assert {name: column.tolist() for name, column in np.load(folder / "index.npz").items()} == {
        name: column.tolist() for name, column in table.items()
    }
    assert all(np.array_equal(voxels_of(folder / name), voxels) for name, voxels in expected.items())
    assert {path.name for path in folder.iterdir()} == {"index.json", "index.npz", *expected}


def test_a_part_does_not_touch_what_another_is_writing(raw, tmp_path):
    folder = run(tmp_path, part=0, parts=2)
    (folder / "c1_CT.123.tmp.b2nd").write_bytes(b"another part's")
    run(tmp_path, part=0, parts=2)
    assert (folder / "c1_CT.123.tmp.b2nd").is_file()
    run(tmp_path, part=1, parts=2)
    assert not list(folder.rglob("*.tmp.*"))


def test_a_second_process_waits_for_the_first(raw, tmp_path, capsys):
    folder = tmp_path / "preprocessed" / "A" / "swinfuse"
    folder.mkdir(parents=True)
    unfinished = folder / "p0_CT.b2nd.123.tmp.b2nd"
    unfinished.write_bytes(b"the first is writing it")
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder.with_name("swinfuse.lock")):
            second = pool.submit(run, tmp_path)
            time.sleep(1)
            assert [path.name for path in folder.iterdir()] == [unfinished.name]
            assert "another process is preprocessing" in capsys.readouterr().err
        second.result()
    assert not unfinished.exists()
    assert len(times_of(folder)) == 8


def test_two_at_once_do_the_work_once(raw, tmp_path, monkeypatch):
    read = []
    original = fingerprint.read_volume
    monkeypatch.setattr(fingerprint, "read_volume", lambda path: read.append(path.name) or original(path))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run(tmp_path), range(2))
    assert first == second
    assert len(read) == 8
    assert index_of(first)["patients"] == 6


def test_a_completed_folder_needs_no_lock(raw, tmp_path):
    folder = run(tmp_path)
    before = times_of(folder)
    with FileLock(folder.with_name("swinfuse.lock")):
        assert run(tmp_path) == folder
    assert times_of(folder) == before


def test_the_last_part_rewrites_files_of_other_settings(raw, tmp_path):
    run(tmp_path, part=0, parts=2)
    folder = run(tmp_path, part=1, parts=2, spacing=(2.0, 1.0, 1.0))
    # Part 0 was preprocessed with another spacing.
    assert index_of(folder)["spacing"] == [2.0, 1.0, 1.0]
    assert {voxels_of(folder / name).shape for name in times_of(folder)} == {(9, 22, 20)}


def test_another_share_for_validation_is_refused(raw, tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"validation_share 0\.1 in the folder, 0\.5 now"):
        run(tmp_path, validation_share=0.5)
