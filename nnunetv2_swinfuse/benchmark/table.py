"""The per-case table, long: one row for each cell, case, class and metric; what is kept between sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_swinfuse.benchmark.files import locked, write_json, write_text
from nnunetv2_swinfuse.errors import BenchmarkError

TABLE, KEPT, LOCK = "cases.csv", "cells.json", ".lock"
# `cell` first: rows of one cell stay together. `empty`: see metrics.py.
COLUMNS = ("cell", "arm", "dataset", "labels", "seed", "fold", "case", "class", "metric", "value", "empty")
TEXT = {"cell": str, "arm": str, "dataset": str, "labels": str, "case": str, "class": str, "metric": str, "empty": str}


def read_table(path: Path) -> pd.DataFrame:
    """Raises BenchmarkError for a file that is no per-case table."""
    try:
        table = pd.read_csv(path, dtype=TEXT, keep_default_na=False, na_values={"value": [""]})
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); expected a table with {', '.join(COLUMNS)}") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise BenchmarkError(f"{path}: no columns {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """CSV with seven significant digits; a value that is not defined is empty."""
    write_text(path, table.to_csv(index=False, columns=list(COLUMNS), float_format="%.7g", lineterminator="\n"))


def read_kept(results: Path) -> dict[str, dict[str, Any]]:
    """The records of the cells of earlier sessions, by name.

    Raises:
        BenchmarkError: when the table lacks one of them.
    """
    listing, table = results / KEPT, results / TABLE
    if not listing.is_file() and not table.is_file():
        return {}
    try:
        kept = json.loads(listing.read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"{listing}: cannot be read ({error}); {TABLE} and {KEPT} are written and committed together"
        ) from error
    # An empty list comes before the first table.
    if missing := set(kept) - set(read_table(table)["cell"].unique() if kept else []):
        raise BenchmarkError(
            f"{table}: no rows of {', '.join(sorted(missing)[:3])}, which {KEPT} lists: take both from one commit"
        )
    return kept


def keep(results: Path, finished: Mapping[str, tuple[dict[str, Any], pd.DataFrame]]) -> None:
    """Adds finished cells to the kept ones; several processes may do so at once."""
    with locked(results / LOCK):
        kept = read_kept(results)
        new = {name: content for name, content in finished.items() if name not in kept}
        if not new:
            return
        tables = [table for _, table in new.values()]
        if (results / TABLE).is_file():
            before = read_table(results / TABLE)
            unlisted = sorted(set(before["cell"]) - set(kept))
            if unlisted:
                # Left by a process that was killed between the two files.
                print(f"{results / TABLE}: rows that {KEPT} does not list are dropped: {', '.join(unlisted)}")
            tables.insert(0, before[before["cell"].isin(list(kept))])
        whole = pd.concat(tables, ignore_index=True)
        whole = whole.sort_values(["cell", "case", "class", "metric"], kind="stable")
        kept |= {name: content for name, (content, _) in new.items()}
        # The list last: rows without an entry in it do not count. A table without a list is refused, so there is one
        # before the first table, also for others that read in between.
        if not (results / KEPT).is_file():
            write_json(results / KEPT, {})
        write_table(whole, results / TABLE)
        write_json(results / KEPT, {name: kept[name] for name in sorted(kept)})


def read_rows(results: Path) -> pd.DataFrame:
    """The rows of the cells that are kept."""
    kept = read_kept(results)
    if not kept:
        return rows_frame([])
    table = read_table(results / TABLE)
    return table[table["cell"].isin(list(kept))].reset_index(drop=True)


def rows_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS))
