import json

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections import nnssl
from pretraining.collections.integrity import check
from pretraining.collections.modalities import ModalityMap

from ..synthetic_volumes import ct, mr, write


def image(path, modality="T1w", **more):
    return {"name": "scan", "modality": modality, "image_path": str(path), "image_info": {}, **more}


def make(root, subjects, dataset="ds1"):
    """`pretrain_data.json` as nnssl writes it; `subjects`: images by session by subject."""
    content = {
        "collection_index": 745,
        "collection_name": "Dataset745_Made",
        "datasets": {
            dataset: {
                "dataset_index": dataset,
                "name": None,
                "dataset_info": None,
                "subjects": {
                    subject: {
                        "subject_id": subject,
                        "subject_info": None,
                        "sessions": {
                            session: {"session_id": session, "session_info": None, "images": images}
                            for session, images in sessions.items()
                        },
                    }
                    for subject, sessions in subjects.items()
                },
            }
        },
    }
    root.mkdir(exist_ok=True)
    (root / "pretrain_data.json").write_text(json.dumps(content))
    return root


def read(root, words=()):
    assert nnssl.matches(root)
    return nnssl.read(root.name, root, ModalityMap.from_words(words))


def test_a_subject_is_one_patient_over_all_sessions(tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_raw", str(tmp_path))
    write(tmp_path / "D" / "one.nii.gz", mr())
    write(tmp_path / "D" / "two.nii.gz", ct())
    sessions = {
        "ses-1": [image("$nnssl_raw/D/one.nii.gz", associated_masks=None)],
        "ses-2": [image("$nnssl_raw/D/two.nii.gz", "CT")],
    }
    collection = read(make(tmp_path / "D", {"sub-1": sessions}))
    (patient,) = collection.patients
    assert (patient.identifier, patient.paired) == ("ds1/sub-1", False)
    assert [(v.modality, v.domain, v.name) for v in patient.volumes] == [
        ("T1w", "MR", "ses-1_one"),
        ("CT", "CT", "ses-2_two"),
    ]
    assert set(check(collection)) == {tmp_path / "D" / "one.nii.gz", tmp_path / "D" / "two.nii.gz"}
    assert len(collection.hash) == 64


def test_masks_are_body_and_what_was_removed(tmp_path):
    masks = {"anatomy_mask": "body.nii.gz", "anonymization_mask": "face.nii.gz"}
    root = make(tmp_path / "D", {"s": {"1": [image("a.nii.gz", associated_masks=masks)]}})
    volume = read(root).patients[0].volumes[0]
    assert (volume.path, volume.mask, volume.removed) == (
        root / "a.nii.gz",
        root / "body.nii.gz",
        root / "face.nii.gz",
    )
    root = make(tmp_path / "D", {"s": {"1": [image("a.nii.gz", associated_masks={**masks, "anatomy_mask": None})]}})
    assert read(root).patients[0].volumes[0].mask is None


def test_a_mask_on_another_grid_is_found(tmp_path):
    write(tmp_path / "D" / "a.nii.gz", mr())
    write(tmp_path / "D" / "face.nii.gz", ct(shape=(18, 22, 24)))
    masks = {"anatomy_mask": None, "anonymization_mask": "face.nii.gz"}
    collection = read(make(tmp_path / "D", {"s": {"1": [image("a.nii.gz", associated_masks=masks)]}}))
    with pytest.raises(InputError, match=r"a\.nii\.gz and .*face\.nii\.gz: different grids \(size"):
        check(collection)


def test_a_missing_file_is_named(tmp_path):
    collection = read(make(tmp_path / "D", {"s": {"1": [image("gone.nii.gz")]}}))
    with pytest.raises(InputError, match=r"gone\.nii\.gz: cannot be read"):
        check(collection)


def test_a_variable_that_is_not_set_says_what_to_export(tmp_path, monkeypatch):
    monkeypatch.delenv("nnssl_raw", raising=False)
    with pytest.raises(InputError, match=r"\$nnssl_raw/a\.nii\.gz starts with \$nnssl_raw.*export nnssl_raw="):
        read(make(tmp_path / "D", {"s": {"1": [image("$nnssl_raw/a.nii.gz")]}}))


def test_unknown_modalities_are_refused_or_mapped(tmp_path):
    root = make(tmp_path / "D", {"s": {"1": [image("a.nii.gz", "PET"), image("b.nii.gz")]}})
    with pytest.raises(InputError, match=r"ds1/s, session 1: modality 'PET'"):
        read(root)
    assert len(read(root, ["PET=none"]).volumes) == 1


def test_all_problems_are_reported_together(tmp_path):
    images = [
        image("a.nii.gz"),
        image("a.nii.gz"),
        image("", associated_masks={"anatomy_mask": "m.nii.gz"}),
        image(""),
    ]
    with pytest.raises(InputError, match=r"3 problem\(s\), nothing was changed") as caught:
        read(make(tmp_path / "D", {"s": {"1": images}}))
    assert "a.nii.gz is listed twice" in str(caught.value)
    assert "a mask without its image" in str(caught.value)
    assert "an image without image_path" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"datasets": {"1": {"subjects": []}}}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "pretrain_data.json").write_text(content)
    with pytest.raises(InputError, match=r"pretrain_data\.json: not in nnssl.s format"):
        read(tmp_path)
