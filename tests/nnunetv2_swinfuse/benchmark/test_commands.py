import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nnunetv2_swinfuse.benchmark import commands
from nnunetv2_swinfuse.benchmark.commands import CommandError, Processes, base_environment
from nnunetv2_swinfuse.benchmark.files import locked
from nnunetv2_swinfuse.errors import BenchmarkError


@pytest.fixture
def shell(monkeypatch):
    """`sh -c TEXT` in place of a console script of this environment."""
    monkeypatch.setattr(commands, "executable", lambda command: ["/bin/sh", "-c", command[0]])


def test_output_goes_to_the_log_below_the_command(shell, tmp_path):
    Processes().call(["echo out; echo err >&2"], os.environ, tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["out", "err"]


def test_a_failure_shows_the_end_of_the_log(shell, tmp_path):
    with pytest.raises(CommandError, match=r"(?s)ended with status 3\. The end of .*log\.txt:.*line 40$"):
        Processes().call(["for i in $(seq 40); do echo line $i; done; exit 3"], os.environ, tmp_path / "log.txt")


def test_a_program_that_is_not_installed_is_named():
    with pytest.raises(BenchmarkError, match="nnUNetv2_dance is not installed"):
        commands.executable(["nnUNetv2_dance"])


def test_stopping_ends_commands_and_their_children(shell, tmp_path, monkeypatch):
    processes = Processes()
    caught = []

    def run():
        try:
            processes.call(["sleep 60 & echo $! > pid; wait"], {**os.environ}, tmp_path / "log.txt")
        except KeyboardInterrupt:
            caught.append(True)

    monkeypatch.chdir(tmp_path)
    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    processes.stop()
    thread.join(10)
    assert caught == [True]
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail(f"the child {child} still runs: {state}")


def test_an_interrupted_preparation_ends_its_command(tmp_path):
    """Preparation waits for its commands in the main thread, which Ctrl-C and SIGTERM interrupt."""
    script = INTERRUPTED.replace("LOG", f"__import__('pathlib').Path({json.dumps(str(tmp_path / 'log.txt'))})")
    benchmark = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    while not (tmp_path / "begun").is_file():
        assert benchmark.poll() is None
        time.sleep(0.02)
    benchmark.send_signal(signal.SIGTERM)
    assert benchmark.wait() == 130
    deadline = time.monotonic() + 30
    while not (tmp_path / "stopped").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.02)


INTERRUPTED = """
import os, sys
from nnunetv2_swinfuse.benchmark import commands, signals
commands.executable = lambda command: ["/bin/sh", "-c", command[0]]
signals.stop_on_termination()
try:
    commands.Processes().call(["trap 'touch stopped; exit' TERM; touch begun; sleep 60 & wait"], os.environ, LOG)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_settings_of_the_user_are_not_taken(monkeypatch):
    monkeypatch.setenv("SWINFUSE_INITIAL_LR", "1")
    monkeypatch.setenv("BENCHMARK_SEED", "9")
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    environment = base_environment("cpu", 2)
    assert not any(name.startswith(("SWINFUSE_", "BENCHMARK_")) for name in environment)
    folders = environment["nnUNet_extTrainer"].split(os.pathsep)
    assert folders[0] == "/mine"
    assert [os.path.basename(os.path.dirname(folder)) for folder in folders[1:]] == ["benchmark", "discovery"]
    assert (environment["OMP_NUM_THREADS"], environment["nnUNet_n_proc_DA"]) == ("2", "0")
    assert "OMP_NUM_THREADS" not in {name for name in base_environment("cuda", 0) if name not in os.environ}


HOLDER = """
import json, os, sys
from nnunetv2_swinfuse.benchmark import commands
from nnunetv2_swinfuse.benchmark.files import locked
commands.executable = lambda command: ["/bin/sh", "-c", command[0]]
with locked(PATH) as lock:
    commands.Processes().call(["echo begun > begun; sleep 1.5; echo ended > ended"], os.environ, LOG, lock)
"""


def test_a_training_that_outlives_its_killed_benchmark_keeps_the_lock(tmp_path, capfd):
    lock = tmp_path / "lock"
    script = HOLDER.replace("PATH", f"__import__('pathlib').Path({json.dumps(str(lock))})")
    script = script.replace("LOG", f"__import__('pathlib').Path({json.dumps(str(tmp_path / 'log.txt'))})")
    holder = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    while not (tmp_path / "begun").is_file():
        assert holder.poll() is None
        time.sleep(0.02)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not (tmp_path / "ended").is_file()
    with locked(lock, "Waiting for its training to end."):
        assert (tmp_path / "ended").is_file()
    assert "Waiting for its training to end." in capfd.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux pins processes to cores")
def test_cores(shell, tmp_path):
    core = sorted(os.sched_getaffinity(0))[0]
    Processes().call(
        ["taskset -p $$ || true; nproc"], {"PATH": os.environ["PATH"]}, tmp_path / "log.txt", cores=(core,)
    )
    assert (tmp_path / "log.txt").read_text().split()[-1] == "1"
