import hashlib
import json
import os

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference import output_folder
from nnunetv2_swinfuse.inference.output_folder import HIDDEN, OutputFolder


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
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [HIDDEN, "a.json", "a.nii.gz", "lock"]


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


def test_probabilities_belong_to_the_case(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz", probabilities=True) as output:
        for ending in (".npz", ".pkl"):
            output.draft("a").with_name(f"a{ending}").write_bytes(b"p")
        publish(output, "a", b"mask")
        assert output.earlier("a")[0]
        (tmp_path / "a.npz").unlink()
        assert output.earlier("a") == (False, None)


def test_one_process_at_a_time_but_one_for_each_part(tmp_path):
    with OutputFolder(tmp_path, ".nii.gz"):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), OutputFolder(tmp_path, ".nii.gz"):
            pass
        with OutputFolder(tmp_path, ".nii.gz", "_part0of2"), OutputFolder(tmp_path, ".nii.gz", "_part1of2"):
            pass
    with OutputFolder(tmp_path, ".nii.gz") as output:
        publish(output, "a", b"mask")
        assert json.loads((tmp_path / HIDDEN / "a.json").read_text())["replaces"] is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), OutputFolder(tmp_path / "file" / "out", ".nii.gz"):
        pass
