import os

import pytest

from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessing.worker_pool import Workers


def square(number: int) -> int:
    return number * number


def refuse_odd(number: int) -> int:
    if number % 2:
        raise InputError(f"{number} is odd")
    return number


def fail(number: int) -> int:
    raise OSError(28, "No space left on device")


def die(number: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_the_order_and_problems_wait_for_the_others(processes):
    with Workers(processes) as workers:
        assert workers.run(square, range(5), "squares") == [0, 1, 4, 9, 16]
        with pytest.raises(InputError, match=r"numbers: 2 volume\(s\) cannot be used.*\n  1 is odd\n  3 is odd"):
            workers.run(refuse_odd, range(5), "numbers")
        with pytest.raises(OSError, match="No space left") as caught:
            workers.run(fail, range(2), "disk")
    assert caught.value.errno == 28


def test_a_worker_that_the_system_ended_is_explained():
    with Workers(2) as workers, pytest.raises(InputError, match=r"lack of memory.*-np 1"):
        workers.run(die, range(2), "reading volumes")


def test_no_process_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        Workers(0)
