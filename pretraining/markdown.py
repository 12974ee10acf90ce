"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; numbers with three decimals, None as an empty cell."""
    rows = [list(header), *([_cell(value) for value in line] for line in lines)]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(header))]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
