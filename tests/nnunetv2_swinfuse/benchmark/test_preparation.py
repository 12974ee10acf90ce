import gzip
import os

import pytest

from nnunetv2_swinfuse.benchmark.cells import Workspace
from nnunetv2_swinfuse.benchmark.commands import Processes
from nnunetv2_swinfuse.benchmark.files import content_sha256, write_json
from nnunetv2_swinfuse.benchmark.preparation import Preparation, encoder_of, file_digests, find_dataset, seen_cases
from nnunetv2_swinfuse.errors import BenchmarkError

from .tables import DATASET, make_experiment


def test_a_dataset_is_found_by_its_number(raw):
    dataset = find_dataset(901)
    assert (dataset.number, dataset.name, dataset.folder) == (901, DATASET, raw)
    assert len(dataset.images) == len(dataset.label) == 12
    assert dataset.images["case_003"] == (raw / "imagesTr" / "case_003_0000.nii.gz",)
    assert dataset.label["case_003"] == raw / "labelsTr" / "case_003.nii.gz"
    assert dataset.content["labels"]["core"] == 2


def test_a_missing_folder_of_datasets_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(BenchmarkError, match="nnUNet_raw is not set or no folder"):
        find_dataset(901)


def test_a_dataset_without_its_description_is_refused(raw):
    (raw / "dataset.json").unlink()
    with pytest.raises(BenchmarkError, match=f"{DATASET}: not a dataset of nnU-Net"):
        find_dataset(901)


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


def test_images_that_pretraining_learns_from_are_found_in_other_collections(raw, tmp_path):
    images = raw / "imagesTr"
    for name, side, source in (("a", "ct", 0), ("b", "ct", 1), ("a", "mr", 5), ("b", "mr", 6)):
        path = raw.parent / "Pairs" / side / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The same image, compressed otherwise.
        content = gzip.decompress((images / f"case_{source:03d}_0000.nii.gz").read_bytes())
        path.write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
    pretraining = {"collections": ["Pairs"], "steps": 1}
    experiment = make_experiment(arms=["swinfuse", "mr"], pretraining=pretraining)
    workspace = Workspace(tmp_path / "work", tmp_path / "work" / "results")
    preparation = Preparation(experiment, workspace, Processes(), 1)
    dataset = find_dataset(901)
    digests = {
        case: list(file_digests(paths, tmp_path / "cache.json").values()) for case, paths in dataset.images.items()
    }
    expected = {"swinfuse": ["case_000", "case_001", "case_005", "case_006"], "mr": ["case_005", "case_006"]}
    for recipe, cases in expected.items():
        write_json(workspace.pretraining(recipe) / "volumes.json", preparation.learnt_digests(recipe))
        assert seen_cases(experiment.arm(recipe), workspace, digests) == cases


def test_an_encoder_of_another_pretraining_is_not_used(tmp_path):
    def preparation(**pretraining):
        experiment = make_experiment(arms=["swinfuse"], pretraining={"collections": ["Pairs"], **pretraining})
        return Preparation(experiment, workspace, Processes(), 1)

    workspace = Workspace(tmp_path, tmp_path / "results")
    first = preparation(steps=2)
    record = {"recipe": "swinfuse", "sha256": "e", "pretraining": first.experiment.to_dict()["pretraining"]}
    write_json(workspace.pretraining("swinfuse") / "encoder.json", record)
    first.pretrain("swinfuse")
    # The folder may have been moved: the file is where the workspace is now.
    encoder = encoder_of(first.experiment.arm("swinfuse"), workspace)
    assert encoder["path"] == str(tmp_path / "pretraining" / "swinfuse" / "nnUNet_results" / "swinfuse" / "encoder.pth")
    with pytest.raises(
        BenchmarkError, match=r'pretrained with .*"steps": 2.*now says .*"steps": 3.*Move the folder away'
    ):
        preparation(steps=3).pretrain("swinfuse")


def test_an_unfinished_pretraining_is_named(tmp_path):
    experiment = make_experiment(arms=["swinfuse", "nnunet"], pretraining={"collections": ["Pairs"], "steps": 1})
    workspace = Workspace(tmp_path, tmp_path / "results")
    assert encoder_of(experiment.arm("nnunet"), workspace) is None
    with pytest.raises(BenchmarkError, match="the pretraining of recipe swinfuse is not done"):
        encoder_of(experiment.arm("swinfuse"), workspace)
