"""Runs an experiment: what cells share, then the cells, several at a time, as far as the budget goes."""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from nnunetv2_swinfuse.benchmark.cell_run import CellRun, Place
from nnunetv2_swinfuse.benchmark.cells import CASES, RESULT, Cell, Workspace, all_cells, measured_seconds, read_results
from nnunetv2_swinfuse.benchmark.commands import Processes
from nnunetv2_swinfuse.benchmark.experiment import Experiment
from nnunetv2_swinfuse.benchmark.preparation import Dataset, Preparation, find_dataset
from nnunetv2_swinfuse.benchmark.splits import Split, draw_splits, key, store_splits
from nnunetv2_swinfuse.benchmark.table import keep, read_kept, read_table
from nnunetv2_swinfuse.errors import BenchmarkError

Finished = tuple[dict[str, Any], pd.DataFrame]


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

    def prepare(self) -> None:
        """Splits, plans, preprocessed data and encoders."""
        store_splits(self.workspace.results, self.splits)
        threads = limited(len(available_cores())) if self.experiment.device == "cpu" else 0
        preparation = Preparation(self.experiment, self.workspace, self.processes, threads, self.test_images())
        for dataset in self.datasets.values():
            for planner in dict.fromkeys(arm.planner for arm in self.experiment.arms):
                preparation.preprocess(dataset, planner)
        for pretraining in self.experiment.pretraining_runs:
            preparation.pretrain(pretraining)

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

    def run(self, cells: Sequence[Cell], minutes: float | None = None) -> Outcome:
        """Runs the cells that are not done. A failed cell is reported; the others run.

        Args:
            cells: of this experiment.
            minutes: the budget. No cell begins that would exceed it, judging by finished cells of its kind.
        """
        start = time.monotonic()
        results = read_results(self.workspace, self.cells)
        waiting = [cell for cell in cells if cell.name not in results]
        self._keep_finished()
        outcome = Outcome()
        places: queue.SimpleQueue[Place] = queue.SimpleQueue()
        for place in self.places():
            places.put(place)
        seconds = measured_seconds(self.cells, results)
        running: dict[Future[Finished], Cell] = {}
        # No bar where the output is not a terminal, which keeps the log of a cluster's job readable.
        with ThreadPoolExecutor(self.workers) as pool, tqdm(total=len(waiting), unit="cell", disable=None) as bar:
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        spent = time.monotonic() - start
                        if minutes is not None and spent + seconds.get(waiting[0].kind, 0.0) >= minutes * 60:
                            outcome.left, waiting = waiting, []
                            break
                        cell = waiting.pop(0)
                        running[pool.submit(self._run_cell, cell, places)] = cell
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        cell = running.pop(future)
                        self._note(cell, future, outcome, results)
                        seconds = measured_seconds(self.cells, results)
                        bar.update()
            except BaseException:
                self.processes.stop()
                raise
        return outcome

    def places(self) -> list[Place]:
        """One for each worker: a GPU each in turn, or a share of the cores."""
        if self.experiment.device == "cuda":
            gpus = visible_gpus()
            return [Place(gpu=gpus[worker % len(gpus)] if len(gpus) > 1 else "") for worker in range(self.workers)]
        cores = available_cores()
        if self.workers == 1:
            return [Place(threads=limited(len(cores)))]
        share = max(1, len(cores) // self.workers)
        numbers = [[cores[(worker * share + i) % len(cores)] for i in range(share)] for worker in range(self.workers)]
        return [Place(limited(share), tuple(own)) for own in numbers]

    def _run_cell(self, cell: Cell, places: queue.SimpleQueue[Place]) -> Finished:
        place = places.get()
        try:
            return self.cell_run(cell).run(self.processes, place)
        finally:
            places.put(place)

    def cell_run(self, cell: Cell) -> CellRun:
        """A cell with its dataset and splits."""
        return CellRun(self.experiment, self.workspace, cell, self.datasets[cell.dataset], self.splits_of(cell))

    def splits_of(self, cell: Cell) -> dict[int, Split]:
        """The splits of the cell's labels and seed, by fold."""
        drawn = self.splits[cell.dataset]
        return {fold: drawn[key(cell.labels, cell.seed, fold)] for fold in (self.experiment.folds or (0,))}

    def _note(self, cell: Cell, future: Future[Finished], outcome: Outcome, results: dict[str, Any]) -> None:
        try:
            finished = future.result()
        except BenchmarkError as error:
            outcome.failed[cell] = str(error)
            tqdm.write(f"FAILED {cell.name}: {error}")
            return
        keep(self.workspace.results, {cell.name: finished})
        results[cell.name] = finished[0]
        outcome.done.append(cell)
        tqdm.write(f"done   {cell.name}: Dice {finished[0]['foreground_mean']:.3f}, {finished[0]['seconds']:.0f} s")

    def _keep_finished(self) -> None:
        """Adds cells that a killed runner had finished, but not yet added, to the kept results."""
        kept = read_kept(self.workspace.results)
        finished: dict[str, Finished] = {}
        for cell in self.cells:
            folder = self.workspace.cell(cell)
            if cell.name not in kept and (folder / RESULT).is_file():
                finished[cell.name] = json.loads((folder / RESULT).read_text()), read_table(folder / CASES)
        keep(self.workspace.results, finished)


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def limited(threads: int) -> int:
    """This number of threads, or OMP_NUM_THREADS if that is smaller."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(asked)) if asked.isdigit() and int(asked) else threads


def visible_gpus() -> list[str]:
    """Identifiers for CUDA_VISIBLE_DEVICES.

    Raises:
        BenchmarkError: when there is none.
    """
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if named:
        return named
    import torch

    if not torch.cuda.is_available():
        raise BenchmarkError('device is cuda, but PyTorch sees no GPU here; set "device": "cpu" or -device cpu')
    return [str(index) for index in range(torch.cuda.device_count())]
