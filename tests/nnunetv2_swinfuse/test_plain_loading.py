"""Checkpoints from outside: plain values are read, code is refused and does not run."""

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

from .malicious import Malicious, checkpoint_with


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
