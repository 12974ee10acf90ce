import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.checkpoint import CHECKPOINT, TrainingState
from pretraining.interruption import Interrupted
from pretraining.processes import Processes
from pretraining.run import (
    Run,
    find_device,
    prepare_folder,
    publish,
    require_same_volumes,
    run_pretraining,
    should_resume,
)

from .synthetic import synthetic_collection, tiny


@pytest.fixture
def run(tmp_path):
    return Run(
        folder=tmp_path / "run",
        preprocessed=tmp_path / "preprocessed",
        configuration=tiny(),
        published=tmp_path / "swinfuse" / "encoder.pth",
        command="swinfuse_pretrain -d A",
        resume_command="swinfuse_pretrain -d A --c",
    )


def test_a_folder_is_prepared_with_its_settings_and_without_temporary_files(run):
    (run.folder / "panels").mkdir(parents=True)
    left = [run.folder / "checkpoint_latest.pth.1a.tmp.pth", run.folder / "panels" / "step_0.png.2b.tmp.png"]
    for file in left:
        file.touch()
    (run.folder / "log.txt").touch()
    prepare_folder(run, None)
    assert sorted(file.name for file in run.folder.rglob("*")) == ["configuration.json", "log.txt", "panels"]
    assert json.loads((run.folder / "configuration.json").read_text()) == tiny().to_dict()


def test_only_a_new_run_overwrites_its_folder(run):
    overwriting = Run(**{**vars(run), "overwrite": True})
    run.folder.mkdir()
    (run.folder / "old").touch()
    prepare_folder(overwriting, state="a checkpoint's")
    assert (run.folder / "old").exists()
    prepare_folder(overwriting, None)
    assert not (run.folder / "old").exists()


def test_publishing_replaces_the_file_at_once_or_not_at_all(run, tmp_path, monkeypatch):
    encoder = tmp_path / "encoder.pth"
    encoder.write_bytes(b"new")
    publish(encoder, run.published)
    assert run.published.read_bytes() == b"new"

    def fail(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(InputError, match=r"encoder\.pth: could not be written .*No space left"):
        publish(encoder, run.published)
    assert [file.name for file in run.published.parent.iterdir()] == ["encoder.pth"]
    assert run.published.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["run.write_facts", "run.train", "run.write_report"])
def test_a_full_disk_is_explained_wherever_a_run_meets_it(run, tmp_path, monkeypatch, number, place):
    def fill_up(*arguments):
        raise OSError(number, os.strerror(number), str(run.folder / "losses.jsonl"))

    def interrupt(*arguments):
        raise Interrupted("SIGINT at step 1")

    run = replace(run, preprocessed=synthetic_collection(tmp_path).folder)
    monkeypatch.setattr("pretraining.run.train", interrupt)
    monkeypatch.setattr(f"pretraining.{place}", fill_up)
    with pytest.raises(
        InputError, match=rf"{run.folder}: could not be written .*losses.*GiB are free.*resume with --c"
    ):
        run_pretraining(run)


def test_an_error_of_a_run_that_is_no_failed_write_keeps_its_traceback(run, tmp_path, monkeypatch):
    run = replace(run, preprocessed=synthetic_collection(tmp_path).folder)
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("a file that torch cannot read")):

        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr("pretraining.run.train", fail)
        with pytest.raises(type(error), match=r"Input|torch"):
            run_pretraining(run)


def test_a_restarted_command_resumes_where_there_is_a_checkpoint(run, monkeypatch):
    assert not should_resume(run.checkpoint, requested=False)
    assert should_resume(run.checkpoint, requested=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not should_resume(run.checkpoint, requested=False)
    run.folder.mkdir()
    (run.folder / CHECKPOINT).touch()
    assert should_resume(run.checkpoint, requested=False)


def test_a_run_is_resumed_only_on_its_volumes_at_its_spacing(run, tmp_path):
    volumes = synthetic_collection(tmp_path)
    identity = {"name": volumes.name, "hash": volumes.hash}
    state = TrainingState(2, {}, {}, {}, run.configuration, identity, tuple(volumes.spacing))
    require_same_volumes(run, state, volumes)
    with pytest.raises(InputError, match="with other volumes"):
        require_same_volumes(run, replace(state, collection={**identity, "hash": "another"}), volumes)
    with pytest.raises(InputError, match=r"started at 1 x 2 x 2 mm.*--spacing 1 2 2"):
        require_same_volumes(run, replace(state, spacing=(1.0, 2.0, 2.0)), volumes)
    split = {**identity, "split": volumes.split_hash}
    require_same_volumes(run, replace(state, collection=split), volumes)
    volumes.table.validation[:] = ~volumes.table.validation
    with pytest.raises(InputError, match="with other patients in validation"):
        require_same_volumes(run, replace(state, collection=split), volumes)
    # Checkpoints of earlier versions do not tell.
    require_same_volumes(run, state, volumes)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    assert find_device(tiny(device="cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(tiny(device="auto")) == torch.device("cpu")
    with pytest.raises(InputError, match="PyTorch sees no GPU"):
        find_device(tiny(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device(tiny(device="auto")) == torch.device("cuda")
    assert find_device(tiny(device="auto"), Processes(5, 8, 1)) == torch.device("cuda", 1)
