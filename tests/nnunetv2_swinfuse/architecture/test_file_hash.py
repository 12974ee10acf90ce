import hashlib
import os

import pytest

from nnunetv2_swinfuse.architecture import file_hash as module
from nnunetv2_swinfuse.architecture.file_hash import file_hash


def test_the_hash_is_that_of_the_whole_file_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(12_345))
    monkeypatch.setattr(type(path), "read_bytes", lambda *_: pytest.fail("reads the whole file into memory"))
    with path.open("rb") as file:
        assert file_hash(path) == hashlib.sha256(file.read()).hexdigest()
