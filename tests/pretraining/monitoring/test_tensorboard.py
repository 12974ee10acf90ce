import sys

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.monitoring.log import RunLog
from pretraining.monitoring.tensorboard import FOLDER, require_tensorboard


def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install tensorboard"):
        require_tensorboard()


def test_nothing_is_written_unless_asked_for(tmp_path):
    RunLog(tmp_path).record(1, "train", {"total": 1.0})
    assert not (tmp_path / FOLDER).exists()


def test_records_are_written_as_scalars_and_steps_taken_again_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        log.record(step, "train", {"total": step / 2})
    log.record(3, "validation", {"cka": 0.25})
    log.close()
    log = RunLog(tmp_path, step=1, tensorboard=True)
    log.record(2, "train", {"total": 7.0})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("total/train")] == [(1, 0.5), (2, 7.0)]
    assert events.Scalars("cka/validation") == []
