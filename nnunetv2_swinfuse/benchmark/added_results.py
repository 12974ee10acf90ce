"""Takes over finished cells from the results folder of another experiment with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.comparability import check_records, check_rows
from nnunetv2_swinfuse.benchmark.experiment import load_experiment
from nnunetv2_swinfuse.benchmark.kept_experiment import EXPERIMENT, changed_fields
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.splits import key, read_splits, store_splits
from nnunetv2_swinfuse.benchmark.table import KEPT, keep, read_kept, read_rows
from nnunetv2_swinfuse.benchmark.unseen_table import TABLE, add_rows, rows_of_experiment
from nnunetv2_swinfuse.benchmark.unseen_table import read_rows as read_unseen
from nnunetv2_swinfuse.errors import BenchmarkError


def add_results(folder: Path, runner: Runner, cells: Sequence[Cell]) -> list[Cell]:
    """Adds what another results folder has of these cells; what is kept already stays.

    The other experiment may have other arms, labels, seeds, folds, datasets and comparisons. Rows of models on the
    unseen modality come with their cells.

    Args:
        folder: the other results folder.
        runner: of this experiment.
        cells: of this experiment, those that may be added.

    Returns:
        The cells that were added.

    Raises:
        BenchmarkError: where a cell would be another training here, on another split, or there is none to add.
    """
    there = read_kept(folder)
    shared = [cell for cell in cells if cell.name in there]
    if not shared:
        raise BenchmarkError(
            f"{folder}: none of the {len(cells)} cells of {runner.experiment.name} is in its {KEPT}; expected the "
            "results folder of an experiment with some of its arms, datasets, labels and seeds"
        )
    before = load_experiment(folder / EXPERIMENT).to_dict()
    now = runner.experiment.to_dict()
    if changed := changed_fields(before, now, lambda: [there[cell.name] for cell in shared]):
        raise BenchmarkError(
            f"{folder}: its results are of an experiment that differs in {', '.join(changed)}; name cells that do not "
            "depend on that with --cell, such as 'scratch__*' with another budget of pretraining"
        )
    check_records(runner.experiment, shared, there)
    splits = read_splits(folder)
    for cell in shared:
        name = key(cell.labels, cell.seed, cell.fold)
        if splits.get(cell.dataset, {}).get(name) != runner.splits[cell.dataset][name]:
            raise BenchmarkError(
                f"{folder}: the split of {cell.name} is another one than here; expected the same test cases"
            )
    rows = read_rows(folder)
    check_rows(rows, shared, folder)
    results = runner.workspace.results
    kept = read_kept(results)
    new = [cell for cell in shared if cell.name not in kept]
    store_splits(results, runner.splits)
    keep(results, {cell.name: (there[cell.name], rows[rows["cell"] == cell.name]) for cell in new})
    unseen = read_unseen(folder / TABLE)
    unseen = unseen[unseen["cell"].isin([cell.name for cell in new])]
    for rescale in (False, True):
        if len(added := rows_of_experiment(unseen, runner, rescale)):
            add_rows(results / TABLE, added)
    return new
