import errno
import io
import os
import pickle
import zipfile

import pytest
import torch

from nnunetv2_swinfuse.architecture.torch_file import (
    TorchFileError,
    load_torch_file,
    map_torch_file,
    save_torch_file,
)

VALUE = -0.02


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.pth"
    save_torch_file({"weights": torch.full((64,), VALUE), "step": 3}, path)
    return path


def test_round_trip(path):
    content = load_torch_file(path)
    assert content["step"] == 3
    assert torch.equal(content["weights"], torch.full((64,), VALUE))
    assert [file.name for file in path.parent.iterdir()] == ["file.pth"]


def test_content_in_memory_is_read_under_the_name_it_is_given(path):
    content = path.read_bytes()
    assert load_torch_file(io.BytesIO(content), "upload")["step"] == 3
    with pytest.raises(TorchFileError, match=r"^upload: corrupted"):
        load_torch_file(io.BytesIO(content[:-30]), "upload")


def test_a_number_is_read_without_the_tensors(path):
    assert map_torch_file(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TorchFileError, match=r"file\.pth: cannot be read"):
        map_torch_file(path)


def test_equal_content_gives_equal_files(path, tmp_path):
    other = tmp_path / "other.pth"
    save_torch_file({"weights": torch.full((64,), VALUE), "step": 3}, other)
    assert other.read_bytes() == path.read_bytes()


def test_a_flipped_bit_is_seen_although_pytorch_does_not_look(path):
    # One bit of an exponent: -0.02 becomes -6.8e36.
    whole = path.read_bytes()
    place = whole.index(torch.tensor([VALUE]).numpy().tobytes()) + 3
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
    assert torch.load(path, weights_only=True)["weights"].min() < -1e30
    with pytest.raises(
        TorchFileError, match=r"file.pth: corrupted .* the checksum of archive/data/0 is wrong"
    ) as caught:
        load_torch_file(path)
    assert not caught.value.needs_code


def test_a_file_that_needs_code_is_refused_without_running_it(path, tmp_path):
    torch.save({"hook": Touch(tmp_path / "executed")}, path)
    with pytest.raises(TorchFileError, match="needs code execution") as caught:
        load_torch_file(path)
    assert caught.value.needs_code
    assert not (tmp_path / "executed").exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_other_errors_of_damaged_bytes_are_named(path, monkeypatch):
    for error in (
        IndexError("pop from empty list"),
        AttributeError("x"),
        ZeroDivisionError(),
        TypeError(),
        MemoryError(),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(TorchFileError, match=f"corrupted or not a PyTorch file \\({type(error).__name__}: "):
            load_torch_file(path)


def test_a_compressed_archive_is_checked_as_well(path, tmp_path):
    # As a file manager packs it again.
    again = tmp_path / "again.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert load_torch_file(again)["step"] == 3


def test_files_of_older_pytorch_are_read(path):
    torch.save({"step": 4}, path, _use_new_zipfile_serialization=False)
    assert load_torch_file(path) == {"step": 4}


def test_a_failed_write_leaves_the_old_file_and_no_litter(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_torch_file({"x": lambda: None}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_torch_file({"step": 5}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
