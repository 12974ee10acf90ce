"""The order of an experiment's jobs: each pretraining just before the first cell that needs its encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.experiment import PretrainingRun

Job = Cell | PretrainingRun


class Schedule:
    """What begins next. Cells keep their order, but one whose encoder is still being pretrained lets others pass.

    Args:
        cells: that are not done, in the order of running.
        needs: the pretraining of each cell that needs one.
        pretrained: names of the pretrainings that are done.
    """

    def __init__(
        self, cells: Sequence[Cell], needs: Mapping[Cell, PretrainingRun], pretrained: Collection[str] = ()
    ) -> None:
        self.waiting = list(cells)
        self._needs = dict(needs)
        self._pretrained = set(pretrained)
        self._begun: set[str] = set()

    def next(self) -> Job | None:
        """The next job; None when there is none, or none until a running pretraining ends."""
        for cell in self.waiting:
            run = self._needs.get(cell)
            if run is None or run.name in self._pretrained:
                return cell
            if run.name not in self._begun:
                return run
        return None

    def begin(self, job: Job) -> None:
        if isinstance(job, Cell):
            self.waiting.remove(job)
        else:
            self._begun.add(job.name)

    def pretrained(self, run: PretrainingRun) -> None:
        """The pretraining is done: its cells may begin."""
        self._pretrained.add(run.name)

    def give_up(self, run: PretrainingRun) -> list[Cell]:
        """The pretraining failed: returns the cells that needed it, which wait no longer."""
        lost = [cell for cell in self.waiting if self._needs.get(cell) == run]
        self.waiting = [cell for cell in self.waiting if cell not in lost]
        return lost

    def stop(self) -> list[Cell]:
        """Nothing more begins; returns the cells that are left."""
        left, self.waiting = self.waiting, []
        return left
