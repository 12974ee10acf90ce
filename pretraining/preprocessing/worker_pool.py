"""Worker processes that finish all tasks before the failed ones are reported."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from nnunetv2_swinfuse.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """Spawned processes that are kept from one :meth:`run` to the next, since each takes seconds to import torch.

    Args:
        processes: how many, at least 1; with 1, no process is started and this one does the work.
    """

    def __init__(self, processes: int):
        if processes < 1:
            raise InputError(f"{processes} processes; expected at least 1 (-np)")
        # Tasks are submitted a few at a time, so that memory does not grow with their number.
        self._max_submitted = 4 * processes
        context = multiprocessing.get_context("spawn")
        self._pool = (
            ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupts)
            if processes > 1
            else None
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task], title: str) -> list[Result]:
        """Results in the order of the tasks, with a progress bar.

        Raises:
            InputError: with the messages of all tasks that raised one, after the other tasks are done; or when the
                system has killed a worker.
        """
        tasks = list(tasks)
        results: dict[int, Result] = {}
        problems: list[str] = []
        try:
            for index, future in tqdm(self._completed(function, tasks), title, len(tasks)):
                try:
                    results[index] = future.result()
                except InputError as error:
                    problems.append(str(error))
        except BrokenProcessPool as error:
            raise InputError(
                f"{title}: the system killed a worker process, most likely for lack of memory. Complete volumes are "
                "kept: run the same command again with fewer processes (-np 1)"
            ) from error
        if problems:
            listing = "\n  ".join(sorted(problems))
            raise InputError(
                f"{title}: {len(problems)} volume(s) cannot be used. All others are done and are kept: repair or "
                f"remove these and run the same command again:\n  {listing}"
            )
        return [results[index] for index in range(len(tasks))]

    def _completed(self, function: Callable[[Task], Result], tasks: list[Task]) -> Iterator[tuple[int, Future[Result]]]:
        if self._pool is not None:
            remaining = enumerate(tasks)
            running: dict[Future[Result], int] = {}
            while True:
                for index, task in islice(remaining, self._max_submitted - len(running)):
                    running[self._pool.submit(function, task)] = index
                if not running:
                    return
                completed, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in completed:
                    yield running.pop(future), future
        for index, task in enumerate(tasks):
            finished: Future[Result] = Future()
            try:
                finished.set_result(function(task))
            except Exception as error:
                finished.set_exception(error)
            yield index, finished


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal, but only the parent handles it; workers finish their task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
