"""Checkpoints from outside: plain values are read, code is refused and does not run."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from nnunetv2_swinfuse.plain_loading import (
    PlainFileError,
    UnsafeFileError,
    inspect_checkpoint,
    load_plain,
    plain_values,
)

from .malicious import Malicious, checkpoint_with, tar_before


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, protocol):
    target, path = tmp_path / "ran", tmp_path / "c.pth"
    path.write_bytes(checkpoint_with(Malicious(target), protocol))
    with pytest.raises(UnsafeFileError, match=r"c\.pth: .*code execution"):
        load_plain(path)
    with path.open("rb") as file, pytest.raises(PlainFileError, match="could run code"):
        inspect_checkpoint(file, "c.pth")
    assert not target.exists()
    # The oracle: what stock nnU-Net does with it.
    torch.load(path, weights_only=False)
    assert target.exists()


def test_tensors_come_back_and_other_content_is_refused(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"weights": torch.arange(6.0)}, path)
    assert torch.equal(load_plain(path)["weights"], torch.arange(6.0))
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(6.0).numpy().tobytes())
    content[at + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlainFileError, match="corrupted"):
        load_plain(path)
    torch.save([1, 2], path)
    with pytest.raises(PlainFileError, match="holds a list, expected a dictionary"):
        load_plain(path)


def test_numpy_becomes_python_all_the_way_down():
    content = {"a": [np.float64(0.5), (np.int64(3), np.array([1, 2]))], "b": {"c": np.bool_(True)}, "d": "text"}
    plain = plain_values(content)
    assert plain == {"a": [0.5, (3, [1, 2])], "b": {"c": True}, "d": "text"}
    assert [type(value) for value in (plain["a"][0], plain["a"][1][0], plain["b"]["c"])] == [float, int, bool]


def test_numpy_numbers_of_stock_checkpoints_are_plain_values(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"logging": [np.float64(0.5), np.float32(0.25), np.int64(3), np.bool_(True)]}, path)
    assert load_plain(path)["logging"] == [0.5, 0.25, 3, True]
    with path.open("rb") as file:
        inspect_checkpoint(file, "c.pth")
    torch.save({"array": np.array([Malicious(tmp_path / "ran")], dtype=object)}, path)
    with pytest.raises(PlainFileError):
        load_plain(path)
    assert not (tmp_path / "ran").exists()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_archive_at_the_end_of_another_file_is_refused(tmp_path):
    """zipfile finds an archive from its end; torch.load decides by the first bytes."""
    target, path = tmp_path / "ran", tmp_path / "c.pth"
    path.write_bytes(tar_before(saved({"a": 1}), target))
    assert zipfile.is_zipfile(path)
    with path.open("rb") as file, pytest.raises(PlainFileError, match=r"c\.pth: damaged or no PyTorch archive .*begin"):
        inspect_checkpoint(file, "c.pth")
    assert not target.exists()
    # The oracle: what stock nnU-Net does with it.
    with pytest.raises(TypeError):
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("before", [b"PK\x03\x04", checkpoint_with("nnUNetTrainer"), bytes(100)], ids=len)
def test_bytes_before_the_archive_are_refused(before):
    with pytest.raises(PlainFileError, match=r"damaged or no PyTorch archive .*begin"):
        inspect_checkpoint(io.BytesIO(before + saved({"a": 1})), "c.pth")


def two_directories(target):
    """An archive in which Python reads one pickle and PyTorch another, which creates the file `target`.

    The end of a large zip states twice where its table of contents lies: Python reads the end that lies before the
    locator, PyTorch the one that the locator points to.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("data.pkl", saved({"a": 1})), ("evil.pkl", checkpoint_with(Malicious(target)))):
            with zipfile.ZipFile(io.BytesIO(content)) as parts:
                archive.writestr(f"archive/{name}", parts.read("archive/data.pkl"))
        archive.writestr("archive/version", "3\n")
    content = buffer.getvalue()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    clean = content[start:end]
    evil = clean.replace(b"data.pkl", b"none.pkl").replace(b"evil.pkl", b"data.pkl")

    def end_of(directory):
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(clean), directory)

    file = content[:start] + evil
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(file), 1)
    file += end_of(start)
    file += clean + end_of(len(file)) + locator
    return file + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(clean), 0xFFFFFFFF, 0)


def test_the_pickle_that_is_inspected_is_the_one_that_pytorch_reads(tmp_path):
    target = tmp_path / "ran"
    content = two_directories(target)
    with pytest.raises(PlainFileError, match="damaged or no PyTorch archive"):
        inspect_checkpoint(io.BytesIO(content), "c.pth")
    assert not target.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert target.exists()


def test_what_pytorch_saves_passes(tmp_path):
    values = {"weights": torch.arange(6.0), "half": torch.ones(3, 5).half(), "epoch": 7, "curve": [np.float64(0.5)]}
    torch.save(values, tmp_path / "by_path.pth")
    inspect_checkpoint(io.BytesIO(saved(values)), "buffer")
    with (tmp_path / "by_path.pth").open("rb") as file:
        inspect_checkpoint(file, "path")
    # An archive without the 64-bit records that PyTorch always writes.
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(values))) as old, zipfile.ZipFile(plain, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    inspect_checkpoint(plain, "32 bits")
