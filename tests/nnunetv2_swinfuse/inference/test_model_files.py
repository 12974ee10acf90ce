"""Which folders are folds, and files of a folder against its manifest."""

import hashlib
import re

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.manifest import MANIFEST, Manifest
from nnunetv2_swinfuse.inference.model_files import compare_with_manifest, file_hash, find_folds, read_manifest


@pytest.mark.parametrize(
    ("folders", "folds", "expected"),
    [
        (("fold_1", "fold_0", "fold_all"), None, ["fold_0", "fold_1"]),
        (("fold_all",), None, ["fold_all"]),
        # nnU-Net's order, in which it adds up logits.
        (("fold_2", "fold_10"), None, ["fold_10", "fold_2"]),
        (("fold_0", "fold_0_backup", "fold_1old", "fold_", "fold_allx"), None, ["fold_0"]),
        (("fold_0", "fold_1"), ["1", "1"], ["fold_1"]),
        (("fold_0", "fold_all"), ["all"], ["fold_all"]),
    ],
)
def test_folds_are_numbered_or_all(tmp_path, folders, folds, expected):
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_final.pth").touch()
    (tmp_path / "fold_7").mkdir()
    assert find_folds(tmp_path, folds, "checkpoint_final.pth") == expected


@pytest.mark.parametrize(
    ("folds", "checkpoint", "message"),
    [
        (None, "c.pth", "no c.pth in any fold"),
        (["0", "3"], "c.pth", "no c.pth in fold_0, fold_3"),
        (["0_backup"], "c.pth", "-f 0_backup: no fold; expected a number, or `all`"),
        (["../fold_0"], "c.pth", "no fold"),
        (None, "../c.pth", "expected the name of a file"),
    ],
)
def test_what_is_no_fold_is_named(tmp_path, folds, checkpoint, message):
    (tmp_path / "fold_0_backup").mkdir()
    (tmp_path / "fold_0_backup" / "c.pth").touch()
    with pytest.raises(InputError, match=re.escape(message)):
        find_folds(tmp_path, folds, checkpoint)


@pytest.fixture
def folder(tmp_path):
    """A folder whose manifest lists a.json and a checkpoint."""
    files = {"a.json": b"{}", "fold_0/checkpoint_final.pth": b"weights"}
    (tmp_path / "fold_0").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    entries = {name: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for name, c in files.items()}
    (tmp_path / MANIFEST).write_text(Manifest("D/a__b__c", entries, {}, {}, {}).to_json())
    return tmp_path


def test_hashes_are_those_of_the_files(folder):
    expected = {"a.json": hashlib.sha256(b"{}").hexdigest()}
    assert compare_with_manifest(folder, ["a.json", "neither/here.json"]) == expected
    (folder / MANIFEST).unlink()
    (folder / "a.json").write_bytes(b"[]")
    assert read_manifest(folder) is None
    assert compare_with_manifest(folder, ["a.json"]) == {"a.json": hashlib.sha256(b"[]").hexdigest()}


def test_changed_missing_and_unlisted_files_have_messages_of_their_own(folder):
    (folder / "a.json").write_bytes(b"[]")
    with pytest.raises(InputError, match=r"a\.json has the SHA-256 \w{64}, swinfuse_manifest\.json says .*damaged"):
        compare_with_manifest(folder, ["a.json"])
    (folder / "a.json").unlink()
    with pytest.raises(InputError, match=r"a\.json: missing, but listed .*install the model again"):
        compare_with_manifest(folder, ["a.json"])
    (folder / "b.json").touch()
    with pytest.raises(InputError, match=r"b\.json: not in swinfuse_manifest\.json: .*Delete it$"):
        compare_with_manifest(folder, ["b.json"])
    (folder / "fold_1").mkdir()
    (folder / "fold_1" / "checkpoint_final.pth").touch()
    with pytest.raises(InputError, match=r"fold_1/checkpoint_final\.pth: not in .*another version.* \(-f 0\)$"):
        compare_with_manifest(folder, ["fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        file_hash(tmp_path / "nowhere")


def test_what_cannot_be_read_is_named_without_a_traceback(folder, unreadable, monkeypatch):
    unreadable(MANIFEST)
    with pytest.raises(InputError, match=rf"{MANIFEST}: cannot be read \(Permission denied\); check its permissions"):
        read_manifest(folder)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    # Of a folder that may not be searched, already the question whether a file exists.
    monkeypatch.setattr(type(folder), "is_file", denied)
    for read in (read_manifest, lambda folder: find_folds(folder, ["0"], "c.pth")):
        with pytest.raises(InputError, match="cannot be read"):
            read(folder)
