import json

import pytest
from matplotlib.figure import Figure

from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT, TrainingState, save_checkpoint
from pretraining.model import PretrainingModel
from pretraining.monitoring.log import RunLog
from pretraining.monitoring.report import FACTS, REPORT, main, write_facts, write_report

from ..synthetic import CPU, synthetic_collection, tiny
from .test_page import Document

COMMAND = "swinfuse_pretrain -d 'A & B' <here>"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return synthetic_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def folder(tmp_path, collection):
    """A run's folder, without training one."""
    configuration = tiny(steps=8)
    (tmp_path / "configuration.json").write_text(json.dumps(configuration.to_dict()))
    write_facts(tmp_path, COMMAND, collection, CPU)
    log = RunLog(tmp_path)
    for step in range(1, 9):
        log.record(step, "train", {"total": 4.0 / step, "rotation": 1.0})
    log.record(4, "validation", {"total": 2.0, "dim_change": 0.2, "probe_accuracy": 0.9})
    log.record(8, "validation", {"total": 1.0, "dim_change": 1e-6, "probe_accuracy": float("nan")})
    for step in (4, 8):
        (tmp_path / "panels").mkdir(exist_ok=True)
        Figure(figsize=(1, 1)).savefig(tmp_path / "panels" / f"step_{step:07d}.png")
    return tmp_path


def text_of(folder):
    return " ".join(Document((folder / REPORT).read_text()).text)


@pytest.mark.slow
def test_it_tells_of_the_run_its_data_machine_and_settings(folder, collection):
    model, configuration = PretrainingModel(tiny()), tiny(steps=8)
    state = TrainingState(8, model.state_dict(), {}, {}, configuration, {"name": "X", "hash": "h"}, (1.0,) * 3, 600.0)
    save_checkpoint(state, folder / CHECKPOINT)
    text = text_of(write_report(folder).parent)
    for words in (
        "Finished: 8 of 8 steps, 10 min of training", "SynthRAD", collection.hash, "4 CT, 4 MR", "registered pairs",
        "trained on", "torch", "learning_rate", COMMAND, "nnUNetv2_train DATASET_ID", str(folder / "encoder.pth"),
        "Step 8", "Step 4", "CKA of CT and MR (no co-located crops)",
    ):  # fmt: skip
        assert words in text, words
    assert not list(folder.glob("*.tmp"))


def test_warnings_of_the_last_validation_stand_on_top(folder):
    text = text_of(write_report(folder).parent)
    assert text.index("Warnings at the last validation, step 8") < text.index("Health")
    assert "the DIM does not change its input" in text
    assert "tells CT from MR" not in text


def test_pictures_of_patients_can_be_left_out(folder):
    write_report(folder)
    with_pictures = Document((folder / REPORT).read_text())
    main([str(folder), "--without_pictures"])
    without = Document((folder / REPORT).read_text())
    assert with_pictures.tags.count("img") == without.tags.count("img") + 2
    assert "Reconstructions" not in without.text


def test_a_run_that_stopped_before_any_validation_has_a_report(folder):
    RunLog(folder)
    text = text_of(write_report(folder, "SIGTERM at step 0 <&>").parent)
    assert "Not finished: 0 of 8 steps" in text
    assert "SIGTERM at step 0 <&>" in text
    assert "No validation has run yet" in text


def test_another_folder_is_an_error_that_says_what_to_give(folder, tmp_path, capsys):
    (folder / FACTS).unlink()
    with pytest.raises(InputError, match=r"no run to report on.*run\.json"):
        write_report(folder)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "give the folder of a run" in capsys.readouterr().err
