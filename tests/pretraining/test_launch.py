import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pretraining.checkpoint import load_checkpoint
from pretraining.cli import main
from pretraining.interruption import Interrupted
from pretraining.launch import SHUTDOWN_SECONDS, SHUTDOWN_VARIABLE, launch
from pretraining.loop import CHECKPOINT
from pretraining.monitoring.log import read_records
from pretraining.run import Run

from .synthetic import synthetic_collection, tiny, tiny_arguments

STEPS = 12
SETTINGS = {"steps": STEPS, "batch_size": 2, "drop_path_rate": 0.0, "validate_every": STEPS, "checkpoint_every": 4}
# Two processes import torch one after the other on a busy machine.
PATIENCE = 240


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """nnU-Net's folders with a preprocessed collection and a run of one process."""
    root = tmp_path_factory.mktemp("nnunet")
    synthetic_collection(root)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in paths(root, "single").items():
            patch.setenv(name, value)
        main(arguments())
    return root


def paths(root, results):
    return {"nnUNet_preprocessed": str(root / "preprocessed"), "nnUNet_results": str(root / results)}


def arguments(*more):
    return ["-d", "SynthRAD", "-p", "tiny", "--train_only", *tiny_arguments(**SETTINGS), *more]


def run_folder(root, results):
    return root / results / "SynthRAD" / "swinfuse__tiny"


def start(root, results, command):
    environment = {**os.environ, **paths(root, results), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def swinfuse_pretrain(*more):
    return [sys.executable, "-m", "pretraining", *arguments(*more)]


def wait_for_step(process, folder, step):
    limit = time.monotonic() + PATIENCE
    while len(read_records(folder)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "the run does not begin"
        time.sleep(0.02)


def ranks(process):
    """Identifiers of the training processes below a launcher."""
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main|-m pretraining"], capture_output=True, text=True
    ).stdout.split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [child for child, line in lines.items() if "resource_tracker" not in line]


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def same_as_single_process(root, results):
    """Every step is recorded once, with the losses of one process, and the weights are its weights."""
    records, expected = (read_records(run_folder(root, name)) for name in (results, "single"))
    assert [(r["step"], r["kind"]) for r in records] == [(r["step"], r["kind"]) for r in expected]
    for ours, theirs in zip(records, expected, strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=1e-2)
    ours, theirs = (load_checkpoint(run_folder(root, name) / CHECKPOINT) for name in (results, "single"))
    assert ours.step == theirs.step == STEPS
    assert (root / results / "swinfuse" / "encoder.pth").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="finds the processes in Linux's /proc")
@pytest.mark.parametrize("launcher", ["num_gpus", "torchrun"])
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(root, launcher):
    command = swinfuse_pretrain("-num_gpus", "2")
    if launcher == "torchrun":
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
        command = [sys.executable, "-m", *torchrun, "-m", "pretraining", *arguments()]
    process = start(root, launcher, command)
    wait_for_step(process, run_folder(root, launcher), 6)
    os.kill(ranks(process)[-1], signal.SIGKILL)
    status, output = finish(process)
    assert status == 0, output
    steps = [int(step) for step in re.findall(r"Resuming at step (\d+) of", output)]
    assert len(steps) == 1
    assert steps[0] in (4, 8)
    same_as_single_process(root, launcher)


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_can_be_resumed(root):
    process = start(root, "interrupted", swinfuse_pretrain("-num_gpus", "2"))
    wait_for_step(process, run_folder(root, "interrupted"), 2)
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == 130, output
    assert "Resume with: swinfuse_pretrain" in output
    saved = load_checkpoint(run_folder(root, "interrupted") / CHECKPOINT)
    assert saved.step == len(read_records(run_folder(root, "interrupted")))
    # One process may resume a run of two.
    status, output = finish(start(root, "interrupted", swinfuse_pretrain("--c")))
    assert status == 0, output
    same_as_single_process(root, "interrupted")


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize(
    "failure",
    [
        SignalException("stopped", signal.SIGTERM),
        ChildFailedError("run_process", {1: ProcessFailure(1, 2, 130, "no file")}),
    ],
    ids=["signal", "process"],
)
def test_a_checkpoint_is_reported_as_saved_only_when_it_was(tmp_path, monkeypatch, saves, failure):
    configs = []

    def launched(config, function):
        configs.append(config)

        def run(run, restarted, saved):
            if saves:
                saved.set()
            raise failure

        return run

    monkeypatch.setattr("pretraining.launch.elastic_launch", launched)
    run = Run(tmp_path, tmp_path, tiny(), tmp_path / "encoder.pth", "swinfuse_pretrain", "swinfuse_pretrain --c")
    run.checkpoint.touch()
    words = f"; saved {run.checkpoint}" if saves else "before they could save; .* is of an earlier step"
    with pytest.raises(Interrupted, match=words):
        launch(run, 2)
    monkeypatch.setenv(SHUTDOWN_VARIABLE, "45")
    with pytest.raises(Interrupted, match=words):
        launch(run, 2)
    if hasattr(configs[0], "shutdown_timeout"):
        assert [config.shutdown_timeout for config in configs] == [SHUTDOWN_SECONDS, 45]


def test_more_gpus_than_the_machine_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = Run(
        tmp_path, tmp_path, tiny(device="cuda"), tmp_path / "encoder.pth", "swinfuse_pretrain", "swinfuse_pretrain --c"
    )
    with pytest.raises(ValueError, match="-num_gpus is 4, but PyTorch sees 2"):
        launch(run, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "more", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, [], "Preprocess first"),
        ({}, ["--train_only", "-num_gpus", "3"], "batch_size is 2 and counts the pairs of all"),
        ({}, ["--train_only", "-num_gpus", "0"], "-num_gpus is 0"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(root, monkeypatch, capsys, variables, more, words):
    for name, value in {**paths(root, "refused"), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main(["-d", "SynthRAD", "-p", "tiny", *tiny_arguments(**SETTINGS), *more])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
