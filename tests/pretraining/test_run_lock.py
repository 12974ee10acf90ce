import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from nnunetv2_swinfuse.errors import InputError
from pretraining import run_lock
from pretraining.run_lock import hold_run


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(run_lock, "END_SECONDS", 0)


def test_a_run_has_its_folder_to_itself_and_gives_it_back(tmp_path):
    folder = tmp_path / "SynthRAD" / "swinfuse__tiny"
    with hold_run(folder):
        with pytest.raises(InputError, match=r"swinfuse__tiny: another swinfuse_pretrain .*\.swinfuse__tiny\.lock"):
            with hold_run(folder):
                pass
        with hold_run(folder.with_name("swinfuse__tiny_ct")):
            pass
        # --overwrite deletes the folder while it is held.
        assert not folder.exists()
    with hold_run(folder):
        pass


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_lock_of_a_killed_run_ends_with_it(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pretraining.run_lock import hold_run\n"
        "with hold_run(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another swinfuse_pretrain"), hold_run(tmp_path / "run"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with hold_run(tmp_path / "run"):
        pass


def test_a_folder_for_results_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"\.run\.lock: cannot be written.*nnUNet_results"):
        with hold_run(tmp_path / "file" / "run"):
            pass


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with hold_run(tmp_path / "run"), hold_run(tmp_path / "run"):
        pass
