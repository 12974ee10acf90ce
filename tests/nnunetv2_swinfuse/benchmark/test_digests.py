import gzip
import hashlib
import os

from nnunetv2_swinfuse.benchmark.digests import case_digests, content_sha256, equal_cases, file_digests, joined_digest
from nnunetv2_swinfuse.benchmark.raw_dataset import find_dataset


def test_the_digest_of_a_gz_is_that_of_its_content(tmp_path):
    content = bytes(range(256)) * 5000
    expected = hashlib.sha256(content).hexdigest()
    (tmp_path / "plain.nii").write_bytes(content)
    assert content_sha256(tmp_path / "plain.nii") == expected
    for level in (1, 9):
        (tmp_path / "image.nii.gz").write_bytes(gzip.compress(content, level, mtime=level))
        assert content_sha256(tmp_path / "image.nii.gz") == expected


def test_files_are_known_by_what_they_hold(raw, tmp_path):
    dataset = find_dataset(901)
    images = [paths[0] for paths in dataset.images.values()]
    cache = tmp_path / "digests.json"
    first = file_digests(images, cache)
    assert len(set(first.values())) == 12
    # Compressed again, in another second and under another name, it is the same image.
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(gzip.compress(gzip.decompress(images[3].read_bytes()), compresslevel=1, mtime=1))
    assert content_sha256(copy) == first[str(images[3])]
    # A changed file is read again.
    images[3].write_bytes(images[4].read_bytes())
    os.utime(images[3], (1, 1))
    assert file_digests(images, cache)[str(images[3])] == first[str(images[4])]


def test_the_digest_of_cases_is_that_of_their_names_and_files_in_any_order(tmp_path):
    first, second, cache = (tmp_path / name for name in ("first", "second", "cache.json"))
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    of_one, of_two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    expected = hashlib.sha256("\n".join(sorted([f"a {of_one}", f"a {of_two}", f"b {of_one}"])).encode()).hexdigest()
    assert joined_digest(case_digests({"a": [first, second], "b": [first]}, cache)) == expected
    assert joined_digest(case_digests({"b": [first], "a": [second, first]}, cache)) == expected
    assert joined_digest(case_digests({"b": [second], "a": [second, first]}, cache)) != expected


def test_cases_of_the_same_channels_are_found(tmp_path):
    cache, files = tmp_path / "cache.json", {}
    for case, contents in {"d": "12", "b": "12", "a": "21", "c": "1"}.items():
        files[case] = [tmp_path / f"{case}_{channel}" for channel in range(len(contents))]
        for path, content in zip(files[case], contents, strict=True):
            path.write_text(content)
    assert equal_cases(case_digests(files, cache)) == [["b", "d"]]
    del files["b"]
    assert equal_cases(case_digests(files, cache)) == []
