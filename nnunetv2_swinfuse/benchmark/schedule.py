"""The order of an experiment's jobs: each pretraining just before the first cell that needs its encoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.experiment import PretrainingRun

Job = Cell | PretrainingRun


class Schedule:
    """What begins next. Cells keep their order, but one whose encoder is not there yet lets others pass.

    Args:
        cells: that are not done, in the order of running.
        needs: the pretraining of each cell that needs one.
        pretrained: names of the pretrainings that are done.

    Attributes:
        waiting: cells that have not begun.
    """

    def __init__(
        self, cells: Sequence[Cell], needs: Mapping[Cell, PretrainingRun], pretrained: Collection[str] = ()
    ) -> None:
        self.waiting = list(cells)
        self._needs = dict(needs)
        self._pretrained = set(pretrained)
        self._begun: set[str] = set()

    def take(self, fits: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """The next job, which begins now; None when none can, or none before a running pretraining ends.

        Args:
            fits: whether there is time for a job. One that does not fit lets others pass.
        """
        for cell in self.waiting:
            run = self._needs.get(cell)
            job: Job = cell if run is None or run.name in self._pretrained else run
            if isinstance(job, PretrainingRun) and job.name in self._begun:
                continue
            if fits(job):
                if isinstance(job, PretrainingRun):
                    self._begun.add(job.name)
                else:
                    self.waiting.remove(job)
                return job
        return None

    def mark_pretrained(self, run: PretrainingRun) -> None:
        """The pretraining is done: its cells may begin."""
        self._pretrained.add(run.name)

    def give_up(self, run: PretrainingRun) -> list[Cell]:
        """The pretraining failed: returns the cells that needed it, which wait no longer."""
        lost = [cell for cell in self.waiting if cell in self._needs and self._needs[cell].name == run.name]
        self.waiting = [cell for cell in self.waiting if cell not in lost]
        return lost
