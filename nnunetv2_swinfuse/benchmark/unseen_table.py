"""The table of models that were tested on another dataset than their own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunetv2_swinfuse.benchmark.files import locked
from nnunetv2_swinfuse.benchmark.runner import Runner
from nnunetv2_swinfuse.benchmark.table import read_table, rows_frame, write_table

TABLE = "unseen.csv"
METRIC = "Dice"
SEPARATOR = " on "
RESCALED = " rescaled"


def both_datasets(trained: str, tested: str, rescale: bool) -> str:
    """What the column `dataset` says."""
    return trained + SEPARATOR + tested + (RESCALED if rescale else "")


def read_rows(path: Path) -> pd.DataFrame:
    return read_table(path) if path.is_file() else rows_frame([])


def add_rows(path: Path, rows: pd.DataFrame) -> None:
    """Adds rows to the table; several processes may do so at once."""
    with locked(path.with_suffix(".lock")):
        table = pd.concat([read_table(path), rows], ignore_index=True) if path.is_file() else rows
        unique = ["cell", "dataset", "case", "class"]
        write_table(table.drop_duplicates(unique, keep="last").sort_values(unique, kind="stable"), path)


def rows_of_experiment(table: pd.DataFrame, runner: Runner, rescale: bool) -> pd.DataFrame:
    """The rows of the experiment's cells, with rescaled intensities or without.

    The table may have those of seeds or arms that it had before.
    """
    wanted = [(c.name, both_datasets(c.dataset, tested, rescale)) for c in runner.cells for tested in runner.datasets]
    return table[pd.MultiIndex.from_frame(table[["cell", "dataset"]]).isin(wanted)]
