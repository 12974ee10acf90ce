import multiprocessing
import os
import signal
import threading
import time

import pytest

from nnunetv2_swinfuse.benchmark.signals import interrupt, stop_on_termination


@pytest.fixture(autouse=True)
def termination():
    before = signal.getsignal(signal.SIGTERM)
    stop_on_termination()
    yield
    signal.signal(signal.SIGTERM, before)


def wait(ready):
    ready.set()
    time.sleep(60)


def forked():
    """How a forked process ends at SIGTERM: the negative number of the signal that killed it."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=wait, args=(ready,))
    process.start()
    assert ready.wait(30)
    process.terminate()
    process.join(30)
    return process.exitcode


def test_the_process_itself_is_interrupted():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_forked_process_is_ended_by_the_system():
    # With a handler of Python's it would end with the status 1 of an exception, or not at all.
    assert forked() == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is interrupt


def test_a_fork_in_another_thread_leaves_the_handler():
    thread = threading.Thread(target=forked)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is interrupt


def test_another_handler_is_left_to_its_owner():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
