import hashlib
import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.manifest import Manifest, parse_manifest

# FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MANIFEST = Manifest(
    "Dataset1_A/a__b__c",
    {"plans.json": {"sha256": ABC, "bytes": 3}, "a.json": {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}},
    {"torch": "2"},
    {"code": "Apache-2.0"},
    {"folds": ["fold_0"]},
)


def test_what_is_written_is_read_and_files_are_sorted():
    assert hashlib.sha256(b"abc").hexdigest() == ABC
    text = MANIFEST.to_json()
    assert parse_manifest(text.encode(), "m") == MANIFEST
    assert list(json.loads(text)["files"]) == ["a.json", "plans.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format 'other'"),
        ({"format_version": 2}, "format version 2, this installation reads 1"),
        ({"model": "a/b/c"}, "model 'a/b/c'"),
        ({"files": {"x": {"sha256": ABC[:-1], "bytes": 3}}}, "entry of 'x'"),
        ({"files": {"x": {"sha256": ABC, "bytes": "3"}}}, "entry of 'x'"),
        ({"files": []}, "AttributeError"),
        ({"licences": None}, "TypeError"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(InputError, match=f"^m: damaged, or of another version .*{message}"):
        parse_manifest(json.dumps({**json.loads(MANIFEST.to_json()), **change}).encode(), "m")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_no_manifest_at_all(text):
    with pytest.raises(InputError, match=r"^m: damaged"):
        parse_manifest(text, "m")
