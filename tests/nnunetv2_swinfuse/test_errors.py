import os
import subprocess
import sys

import pytest

from nnunetv2_swinfuse.compatibility import VersionError
from nnunetv2_swinfuse.demo.volumes import DemoError
from nnunetv2_swinfuse.discovery.register import RegistrationError
from nnunetv2_swinfuse.errors import BenchmarkError, SwinFUSEError, errors_without_traceback
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
