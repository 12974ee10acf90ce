import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_swinfuse.compatibility import VersionError
from nnunetv2_swinfuse.demo.volumes import DemoError
from nnunetv2_swinfuse.discovery.register import RegistrationError
from nnunetv2_swinfuse.errors import BenchmarkError, InputError, SwinFUSEError, errors_without_traceback, reading
from nnunetv2_swinfuse.planning.planner import PlanningError
from nnunetv2_swinfuse.training.encoder_choice import EncoderChoiceError
from nnunetv2_swinfuse.training.plans import PlansError
from nnunetv2_swinfuse.training.settings import SettingsError
from nnunetv2_swinfuse.training.train import TrainingInputError
from nnunetv2_swinfuse.training.trainer import CheckpointError

ERRORS = [
    VersionError, DemoError, RegistrationError, PlanningError, EncoderChoiceError, PlansError, SettingsError,
    TrainingInputError, CheckpointError, BenchmarkError,
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_the_message_is_printed_without_a_traceback_and_the_status_is_2(error, capsys):
    with pytest.raises(SystemExit) as stopped, errors_without_traceback("program"):
        raise error("do this")
    assert stopped.value.code == 2
    assert stopped.value.__cause__ is None
    assert stopped.value.__suppress_context__
    assert capsys.readouterr().err == "program: do this\n"
    assert issubclass(error, SwinFUSEError)


def test_what_cannot_be_read_is_named_by_the_error_or_else_by_the_caller(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(No such file.*\); check"), reading(tmp_path):
        (tmp_path / "a.json").read_text()
    with pytest.raises(InputError, match=r"^b: cannot be read \(bad disk\); check"), reading(Path("b")):
        raise OSError("bad disk")
    with pytest.raises(KeyError), reading(tmp_path):
        raise KeyError("bug")


def test_other_errors_keep_their_traceback_unless_named():
    with pytest.raises(KeyError), errors_without_traceback("program"):
        raise KeyError("bug")
    with pytest.raises(SystemExit), errors_without_traceback("program", KeyError):
        raise KeyError("expected")


def test_a_name_in_any_encoding_can_be_printed():
    words = r"""
import os, sys
from nnunetv2_swinfuse.errors import InputError, errors_without_traceback
with errors_without_traceback("program"):
    print(os.fsdecode(b"M\xfcller"))
    raise InputError(os.fsdecode(b"M\xfcller"))
"""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout.split()) == (2, [rb"M\udcfcller"])
    assert done.stderr.split() == [b"program:", rb"M\udcfcller"]
