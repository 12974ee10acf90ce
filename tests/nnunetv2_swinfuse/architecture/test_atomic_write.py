"""A file written atomically is complete or absent, and leaves nothing beside it."""

import errno
import os
import stat

import numpy as np
import pytest

from nnunetv2_swinfuse.architecture.atomic_write import atomic_write, is_temporary, move_into_place, write_text
from nnunetv2_swinfuse.errors import InputError


@pytest.mark.parametrize("name", ["plans.json", "c1.CT.b2nd", "no_suffix", ".hidden"])
def test_the_file_appears_when_the_block_ends(tmp_path, name):
    path = tmp_path / "new" / "folder" / name
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix or not path.suffix
        temporary.write_text("half")
        assert not path.exists()
        assert [file for file in path.parent.iterdir() if is_temporary(file)] == [temporary]
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert not is_temporary(path)


def test_a_writer_that_appends_suffixes_finds_nothing_to_append(tmp_path):
    with atomic_write(tmp_path / "index.npz") as temporary:
        np.savez(temporary, rows=np.arange(3))
    assert np.load(tmp_path / "index.npz")["rows"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, call=call, name=name: (calls.append(name), call(*given)))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert calls == ["fsync", "replace"]


def test_two_writers_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_colleagues_can_read_the_file(tmp_path):
    mask = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="file"), atomic_write(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_finished_file_replaces_the_old_one_and_a_missing_one_does_not(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "draft", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
    (tmp_path / "draft").write_text("new")
    move_into_place(tmp_path / "draft", tmp_path / "old")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "new"}


def test_a_text_that_cannot_be_written_names_its_file(tmp_path):
    write_text(tmp_path / "new" / "a.json", "µ\n")
    assert (tmp_path / "new" / "a.json").read_bytes() == b"\xc2\xb5\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.json: cannot be written"):
        write_text(tmp_path / "file" / "a.json", "")
