import io
import os
import pickle
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


class RunsCode:
    """A pickle that would create a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(content, path):
    torch.save(content, path)
    return path


def test_tensors_and_plain_values_are_read(tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)
    path = saved({"weights": weights, "epoch": 3, "curve": [np.float64(0.5)], "name": None}, tmp_path / "model.pth")
    with path.open("rb") as file:
        inspect_checkpoint(file, "model.pth")
    content = load_plain(path)
    assert torch.equal(content["weights"], weights)
    assert (content["epoch"], content["curve"], content["name"]) == (3, [0.5], None)


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path):
    evil = tmp_path / "evil"
    path = saved({"weights": RunsCode(evil)}, tmp_path / "model.pth")
    with path.open("rb") as file, pytest.raises(PlainFileError, match=r"pickle calls .*mkdir"):
        inspect_checkpoint(file, "model.pth")
    with pytest.raises(UnsafeFileError, match="needs code execution"):
        load_plain(path)
    assert not evil.exists()


def test_newer_pickle_protocols_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"path": RunsCode(tmp_path / "evil")}, protocol=4))
    with path.open("rb") as file, pytest.raises(PlainFileError, match="STACK_GLOBAL"):
        inspect_checkpoint(file, "model.pth")


def test_two_pickles_compressed_parts_and_other_files_are_refused(tmp_path):
    def archive(compression=zipfile.ZIP_STORED, names=("a/data.pkl",)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as target:
            for name in names:
                target.writestr(name, pickle.dumps({}, protocol=2) * 50)
        return file

    with pytest.raises(PlainFileError, match="2 pickles"):
        inspect_checkpoint(archive(names=("a/data.pkl", "b/data.pkl")), "x")
    with pytest.raises(PlainFileError, match="compressed"):
        inspect_checkpoint(archive(zipfile.ZIP_DEFLATED), "x")
    with pytest.raises(PlainFileError, match="damaged or no PyTorch archive"):
        inspect_checkpoint(io.BytesIO(b"no archive"), "x")


def test_a_flipped_bit_is_noticed(tmp_path):
    path = saved({"weights": torch.ones(1000)}, tmp_path / "model.pth")
    content = bytearray(path.read_bytes())
    position = content.find(torch.ones(8).numpy().tobytes())
    content[position + 3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(PlainFileError, match=r"model\.pth"):
        load_plain(path)


def test_anything_but_a_dictionary_is_refused(tmp_path):
    with pytest.raises(PlainFileError, match="holds a list, expected a dictionary"):
        load_plain(saved([1, 2], tmp_path / "model.pth"))


def test_numpys_numbers_become_pythons_all_the_way_down():
    values = plain_values({"a": np.float32(0.5), "b": [np.int64(3), (np.arange(2),)], "c": "text"})
    assert values == {"a": 0.5, "b": [3, ([0, 1],)], "c": "text"}
    assert type(values["a"]) is float
    assert type(values["b"][0]) is int
