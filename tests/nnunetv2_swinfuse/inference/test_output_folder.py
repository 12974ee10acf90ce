import hashlib
import json
import os

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference import output_folder
from nnunetv2_swinfuse.inference.cases import RECORDS
from nnunetv2_swinfuse.inference.output_folder import OutputFolder


def publish(output, case, content):
    output.draft(case).with_name(f"{case}.nii.gz").write_bytes(content)
    return output.publish(case, {"origin": {"plans": "x"}})


def test_a_mask_appears_with_its_record(tmp_path):
    with OutputFolder(tmp_path / "out", ".nii.gz") as output:
        assert output.earlier("a") == (False, None)
        digest = publish(output, "a", b"mask")
        assert digest == hashlib.sha256(b"mask").hexdigest()
        assert output.mask("a").read_bytes() == b"mask"
        exists, record = output.earlier("a")
        assert exists
        assert (record["origin"], record["mask_sha256"], record["replaces"]) == ({"plans": "x"}, digest, None)
        output.draft("b").with_name("b.nii.gz").write_bytes(b"half")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    locks = {f"{RECORDS}/{name}" for name in ("lock", "lock_part0of1", "process_part0of1")}
    # On Windows, a lock's file goes with the lock.
    assert files - locks == {"a.nii.gz", f"{RECORDS}/a.json"}


def test_changed_masks_and_those_of_others_have_no_origin(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"mask")
        output.mask("a").write_bytes(b"edited")
        output.mask("b").write_bytes(b"of another program")
        assert output.earlier("a") == (True, None)
        assert output.earlier("b") == (True, None)


def test_a_kill_between_record_and_mask_leaves_the_case_to_be_predicted(tmp_path, monkeypatch):
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"first")

        def killed(*_):
            raise KeyboardInterrupt

        # Only the move of the mask: the record is written by write_text.
        monkeypatch.setattr(output_folder, "write_text", lambda path, text: path.write_text(text))
        with monkeypatch.context() as patch:
            patch.setattr(output_folder, "move_into_place", killed)
            with pytest.raises(KeyboardInterrupt):
                publish(output, "a", b"second")
        assert output.mask("a").read_bytes() == b"first"
        assert output.earlier("a") == (False, None)


def publish_with_probabilities(output, case, content):
    for ending in (".npz", ".pkl"):
        output.draft(case).with_name(f"{case}{ending}").write_bytes(b"p")
    publish(output, case, content)
    return output.earlier(case)[1]


def test_probabilities_belong_to_the_case(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz", probabilities=True) as output:
        record = publish_with_probabilities(output, "a", b"mask")
        assert output.is_complete("a", record)
        (tmp_path / "a.npz").unlink()
        assert output.earlier("a") == (True, record)
        assert not output.is_complete("a", record)


def test_missing_probabilities_do_not_make_a_changed_mask_disappear(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"mask")
        output.mask("a").write_bytes(b"corrected by hand")
    with OutputFolder(tmp_path, ".nii.gz", probabilities=True) as output:
        assert output.earlier("a") == (True, None)


def test_probabilities_of_a_replaced_mask_are_not_those_of_its_successor(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz", probabilities=True) as output:
        publish_with_probabilities(output, "a", b"first")
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"second")
        # nnUNetv2_ensemble would read them.
        assert not (tmp_path / "a.npz").exists()
        assert not (tmp_path / "a.pkl").exists()
    with OutputFolder(tmp_path, ".nii.gz", probabilities=True) as output:
        assert not output.is_complete("a", output.earlier("a")[1])


def test_the_picture_of_a_replaced_mask_is_removed(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz") as output:
        output.overlay("a").parent.mkdir()
        output.overlay("a").write_bytes(b"picture of the first mask")
        publish(output, "a", b"second")
        assert not output.overlay("a").exists()


def test_one_process_at_a_time_or_the_parts_of_one_division(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz"):
        for part, parts in ((0, 1), (1, 2)):
            with pytest.raises(InputError, match=f"process {os.getpid()}"):
                OutputFolder(tmp_path, ".nii.gz", part=part, parts=parts).__enter__()
    parts = [OutputFolder(tmp_path, ".nii.gz", part=part, parts=2) for part in (0, 1)]
    with parts[0], parts[1]:
        assert parts[0].draft("a") != parts[1].draft("a")
        assert [part.report.name for part in parts] == ["report_part0of2.json", "report_part1of2.json"]
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"mask")
        assert json.loads((tmp_path / RECORDS / "a.json").read_text())["replaces"] is None


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "a.npz", "a.pkl", "overlays/a.png", "report.json", "dataset.json", "plans.json"]
)
def test_no_output_replaces_an_input(tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"input")
    output = OutputFolder(tmp_path / "out", ".nii.gz", probabilities=True)
    with pytest.raises(InputError, match="would replace an input file"):
        output.protect([path], ["a"])
    output.protect([path.with_name("other")], ["a"])
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]


def test_links_do_not_hide_an_input(tmp_path):
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "a.nii.gz"
    image.write_bytes(b"image")
    (tmp_path / "folder").symlink_to("images")
    with pytest.raises(InputError, match="would replace"):
        OutputFolder(tmp_path / "folder", ".nii.gz").protect([image], ["a"])
    (tmp_path / "out").mkdir()
    image.rename(tmp_path / "out" / "b.nii.gz")
    image.symlink_to(tmp_path / "out" / "b.nii.gz")
    with pytest.raises(InputError, match="would replace"):
        OutputFolder(tmp_path / "out", ".nii.gz").protect([image], ["b"])
    OutputFolder(tmp_path / "out", ".nii.gz").protect([image, tmp_path / "missing"], ["a", "missing"])


def test_the_folder_of_the_images_is_refused_even_if_no_file_would_be_replaced(tmp_path):
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "a_0000.nii.gz"
    image.write_bytes(b"image")
    (tmp_path / "link").symlink_to("images")
    (tmp_path / "empty").mkdir()
    for folder in ("images", "link", "empty"):
        output = OutputFolder(tmp_path / folder, ".nii.gz")
        with pytest.raises(InputError, match=f"{folder}: the folder of images that -i names.*choose another .* -o"):
            output.protect([image], ["a"], [tmp_path / "images", tmp_path / "empty"])
    # Masks in the folder above or below are not read with the images.
    for folder in (tmp_path, tmp_path / "images" / "masks", tmp_path / "new"):
        OutputFolder(folder, ".nii.gz").protect([image], ["a"], [tmp_path / "images"])
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [image]


@pytest.mark.parametrize("name", [b"masks\xe9", b"M\xfcller/masks"])
def test_a_path_that_is_not_utf8_is_refused_before_it_is_made(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    with (
        pytest.raises(InputError, match=r"masks.*: .*not UTF-8.*; choose another with -o"),
        OutputFolder(folder, ".nii.gz"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), OutputFolder(tmp_path / "file" / "out", ".nii.gz"):
        pass
