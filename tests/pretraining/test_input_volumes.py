import json
import shutil

import pytest
import torch

from nnunetv2_swinfuse.architecture.encoder_file import load_encoder
from pretraining.cli import main
from pretraining.loop import CHECKPOINT
from pretraining.preprocessed.reader_locks import hold_volumes

from .command_line import command, contents, fails, run_folder, volumes_folder
from .nnunet_plans import CT, write_plans

pytestmark = pytest.mark.slow


def test_the_encoder_records_the_ct_intensities_of_the_dataset_it_is_made_for(root, capsys):
    write_plans(root / "preprocessed")
    index = root / "preprocessed" / "SynthRAD" / "swinfuse" / "index.json"
    spacing = [str(distance) for distance in json.loads(index.read_text())["spacing"]]
    words = ["-d", "SynthRAD", "-p", "tiny", "-np", "1", "--for", "511", "--spacing", *spacing, "--preprocess_only"]
    error = fails(capsys, *words)
    assert "CT normalised with the intensities of the collection in the folder" in error
    assert "--own_normalisation" in error
    main([*words, "--own_normalisation"])
    main([*words, "--overwrite"])
    assert json.loads(index.read_text())["normalisation"]["ct"] == CT
    assert "CT normalised with" in fails(capsys, *command("--train_only", "--overwrite"))
    main(command("--train_only", "--overwrite", "--ct_intensities", json.dumps(CT)))
    assert load_encoder(root / "results" / "swinfuse" / "encoder.pth").details["normalisation"]["ct"] == CT


def test_volumes_that_a_run_reads_are_not_deleted(root, capsys):
    before = contents(root)
    with hold_volumes(volumes_folder(root)):
        for more in (["--preprocess_only"], ["--recipe", "inpainting"]):
            assert "a run is training on these volumes" in fails(capsys, *command("--overwrite", *more))
    assert contents(root) == before


def test_an_unknown_collection_lists_the_known_ones_and_mentions_the_demo(root, capsys):
    error = fails(capsys, "-d", "Nothing")
    assert "SynthRAD" in error
    assert "swinfuse_demo --data_only" in error


@pytest.mark.usefixtures("without_pictures")
def test_preprocessing_in_parts_and_train_only_give_the_same_run(root, capsys, monkeypatch):
    before = torch.load(run_folder(root) / CHECKPOINT, weights_only=True)["network_weights"]
    shutil.rmtree(root / "preprocessed" / "SynthRAD")
    shutil.rmtree(root / "results" / "SynthRAD")
    for part in ("1", "0"):
        main(command("--preprocess_only", "-num_parts", "2", "-part_id", part))
    out = capsys.readouterr().out
    assert "Part 1 of 2 is done" in out
    assert "Train with: swinfuse_pretrain -d SynthRAD -p tiny --crop_size 16 16 16 --train_only" in out
    assert not (root / "results" / "SynthRAD").exists()
    monkeypatch.delenv("nnUNet_raw")
    main(command("--train_only"))
    after = torch.load(run_folder(root) / CHECKPOINT, weights_only=True)["network_weights"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_train_only_refuses_volumes_of_other_settings_and_missing_ones(root, capsys):
    error = fails(capsys, *command("--train_only", "--overwrite", "--spacing", "9", "9", "9"))
    assert "spacing 3.6 x 4 x 4 mm in the folder, 9 x 9 x 9 mm now" in error
    assert run_folder(root).is_dir()
    assert "available: SynthRAD" in fails(capsys, "-d", "501", "--train_only")
    (root / "preprocessed" / "SynthRAD" / "swinfuse" / "index.json").unlink()
    assert "preprocessing has not been completed" in fails(capsys, *command("--train_only", "--overwrite"))


def test_a_collection_of_one_domain_is_preprocessed_but_not_trained_on(root, capsys):
    source = root / "raw" / "SynthRAD"
    for path in source.rglob("ct.nii.gz"):
        path.unlink()
    assert "no CT volume" in fails(capsys, *command("--overwrite"))
    main(command("--preprocess_only", "--overwrite"))
    assert "--train_only" not in capsys.readouterr().out
    assert "no CT volume" in fails(capsys, *command("--train_only", "--overwrite"))
