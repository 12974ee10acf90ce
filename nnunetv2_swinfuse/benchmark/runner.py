"""Runs an experiment: its encoders and cells, several at a time, as far as the budget goes."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from nnunetv2_swinfuse.benchmark.cell_run import CellRun
from nnunetv2_swinfuse.benchmark.cells import (
    CASES,
    FAILURE,
    RESULT,
    Cell,
    Workspace,
    all_cells,
    measured_seconds,
    read_results,
)
from nnunetv2_swinfuse.benchmark.commands import Processes
from nnunetv2_swinfuse.benchmark.encoder_records import pretraining_seconds
from nnunetv2_swinfuse.benchmark.experiment import Experiment, PretrainingRun
from nnunetv2_swinfuse.benchmark.files import write_json
from nnunetv2_swinfuse.benchmark.places import Place, share_machine, whole_machine
from nnunetv2_swinfuse.benchmark.preparation import Preparation
from nnunetv2_swinfuse.benchmark.raw_dataset import Dataset, find_dataset
from nnunetv2_swinfuse.benchmark.schedule import Job, Schedule
from nnunetv2_swinfuse.benchmark.splits import Split, draw_splits, key, store_splits
from nnunetv2_swinfuse.benchmark.table import keep, read_kept, read_table
from nnunetv2_swinfuse.errors import BenchmarkError, SwinFUSEError

Finished = tuple[dict[str, Any], pd.DataFrame]
Places = queue.SimpleQueue[Place]


@dataclass
class Outcome:
    """The result of a session: cells done, cells that failed (with the message), cells left for the next session."""

    done: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    left: list[Cell] = field(default_factory=list)


class Runner:
    """Runs the cells of an experiment. All state is on disk: after a kill, a new runner continues."""

    def __init__(self, experiment: Experiment, workspace: Workspace, workers: int = 1) -> None:
        self.experiment = experiment
        self.workspace = workspace
        self.workers = workers
        self.processes = Processes()
        self.datasets: dict[str, Dataset] = {}
        for number in experiment.datasets:
            dataset = find_dataset(number)
            self.datasets[dataset.name] = dataset
        self.splits = {name: draw_splits(experiment, name, list(d.label)) for name, d in self.datasets.items()}
        self.cells = all_cells(experiment, list(self.datasets))
        self.preparation = Preparation(experiment, workspace, self.processes, self.test_images())

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Splits, plans and preprocessed data; refuses what these cells and their encoders cannot be trained on."""
        store_splits(self.workspace.results, self.splits)
        for dataset in self.datasets.values():
            for planner in dict.fromkeys(arm.planner for arm in self.experiment.arms):
                self.preparation.preprocess(dataset, planner, whole_machine(self.experiment.device))
        for cell in cells:
            self.cell_run(cell).changed_plans()
        self.preparation.check(self._pretrainings(cells).values())

    def test_images(self) -> list[Path]:
        """The image files of all test cases."""
        files = {
            path: None
            for name, drawn in self.splits.items()
            for split in drawn.values()
            for case in split.test
            for path in self.datasets[name].images[case]
        }
        return list(files)

    def pretrain(self, cells: Sequence[Cell]) -> None:
        """The encoders that the cells begin with, as many at a time as there are workers.

        Raises:
            BenchmarkError: when one fails or several do, after the others have ended.
        """
        runs = {run.name: run for run in self._pretrainings(cells).values()}
        if not runs:
            return
        places = self._places()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                futures = [pool.submit(self._run_job, run, places) for run in runs.values()]
                wait(futures)
            except BaseException:
                self.processes.stop()
                raise
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            unexpected = [error for error in errors if not isinstance(error, SwinFUSEError)]
            raise unexpected[0] if unexpected else BenchmarkError("\n".join(map(str, errors)))

    def run(self, cells: Sequence[Cell], minutes: float | None = None) -> Outcome:
        """Runs the cells that are not done, and the pretrainings that they need.

        Failed cells are reported and the others run; if a pretraining fails, so do all cells that need it.

        Args:
            cells: of this experiment.
            minutes: the budget. Nothing begins that would exceed it, as estimated from finished jobs of the same kind,
                except the first job of a session: one that is longer than the budget would never begin.
        """
        start = time.monotonic()
        results = read_results(self.workspace, self.cells)
        waiting = [cell for cell in cells if cell.name not in results]
        self.keep_finished()
        schedule = Schedule(waiting, self._pretrainings(waiting), self.preparation.finished_pretrainings())
        outcome = Outcome()
        places = self._places()
        running: dict[Future[Finished | None], Job] = {}
        begun = False
        # Of finished cells, by kind; read for every job that waits.
        measured = measured_seconds(self.cells, results)

        def fits(job: Job) -> bool:
            if minutes is None or not begun:
                return True
            return time.monotonic() - start + self._seconds(job, measured) < minutes * 60

        # No bar where the output is not a terminal, which keeps the log of a cluster's job readable.
        with ThreadPoolExecutor(self.workers) as pool, tqdm(total=len(waiting), unit="cell", disable=None) as bar:
            try:
                while True:
                    while len(running) < self.workers and (job := schedule.take(fits)) is not None:
                        running[pool.submit(self._run_job, job, places)] = job
                        begun = True
                    if not running:
                        break
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._record_end(running.pop(future), future, schedule, outcome, results)
                        bar.update(len(outcome.done) + len(outcome.failed) - bar.n)
                    measured = measured_seconds(self.cells, results)
            except BaseException:
                self.processes.stop()
                raise
        outcome.left = schedule.waiting
        return outcome

    def keep_finished(self) -> None:
        """Adds cells that a killed runner had finished, but not yet added, to the kept results."""
        kept = read_kept(self.workspace.results)
        finished: dict[str, Finished] = {}
        for cell in self.cells:
            folder = self.workspace.cell(cell)
            if cell.name not in kept and (folder / RESULT).is_file():
                finished[cell.name] = json.loads((folder / RESULT).read_text()), read_table(folder / CASES)
        if finished:
            # Not there where the results folder is a new one; a table without it says nothing.
            store_splits(self.workspace.results, self.splits)
        keep(self.workspace.results, finished)

    def cell_run(self, cell: Cell) -> CellRun:
        """A cell with its dataset and splits."""
        return CellRun(self.experiment, self.workspace, cell, self.datasets[cell.dataset], self.splits_of(cell))

    def splits_of(self, cell: Cell) -> dict[int, Split]:
        """The splits of the cell's labels and seed, by fold."""
        drawn = self.splits[cell.dataset]
        return {fold: drawn[key(cell.labels, cell.seed, fold)] for fold in self.experiment.trained_folds}

    def _pretrainings(self, cells: Sequence[Cell]) -> dict[Cell, PretrainingRun]:
        """The pretraining of each cell that needs one."""
        runs = {cell: self.experiment.pretraining_run(self.experiment.arm(cell.arm), cell.seed) for cell in cells}
        return {cell: run for cell, run in runs.items() if run is not None}

    def _places(self) -> Places:
        places: Places = queue.SimpleQueue()
        for place in share_machine(self.experiment.device, self.workers):
            places.put(place)
        return places

    def _run_job(self, job: Job, places: Places) -> Finished | None:
        place = places.get()
        try:
            if isinstance(job, Cell):
                return self.cell_run(job).run(self.processes, place)
            self.preparation.pretrain(job, place)
            return None
        finally:
            places.put(place)

    def _seconds(self, job: Job, measured: Mapping[tuple[str, str], float]) -> float:
        """How long a job takes, from those of its kind that are done; 0 when that is not known."""
        if isinstance(job, Cell):
            return measured.get(job.kind, 0.0)
        return pretraining_seconds(self.experiment, self.workspace, job) or 0.0

    def _record_end(
        self,
        job: Job,
        future: Future[Finished | None],
        schedule: Schedule,
        outcome: Outcome,
        results: dict[str, Any],
    ) -> None:
        """Keeps the result of a job that ended, or reports why it failed."""
        try:
            finished = future.result()
        except SwinFUSEError as error:
            if isinstance(job, Cell):
                lost, what = [job], job.name
            else:
                lost = schedule.give_up(job)
                what = f"pretraining {job.name}, needed by {len(lost)} {'cell' if len(lost) == 1 else 'cells'}"
                for cell in lost:
                    write_json(self.workspace.cell(cell) / FAILURE, {"message": str(error)})
            outcome.failed |= dict.fromkeys(lost, str(error))
            tqdm.write(f"FAILED {what}: {error}")
            return
        if isinstance(job, PretrainingRun):
            schedule.mark_pretrained(job)
            return
        assert finished is not None
        keep(self.workspace.results, {job.name: finished})
        results[job.name] = finished[0]
        outcome.done.append(job)
        tqdm.write(f"done   {job.name}: Dice {finished[0]['foreground_mean']:.3f}, {finished[0]['seconds']:.0f} s")
