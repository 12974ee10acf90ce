import os
import signal

import pytest

from pretraining.interruption import ignore_stop_signals, stop_signals


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handlers during a test: processes started in the background ignore SIGINT."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_is_noted_instead_of_ending_the_program(number):
    with stop_signals() as received:
        assert received == []
        os.kill(os.getpid(), number)
        assert received == [number.name]


def test_a_second_signal_ends_the_program_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_loading_processes_ignore_stop_signals():
    ignore_stop_signals(0)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
