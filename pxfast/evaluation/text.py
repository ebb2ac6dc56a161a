"""A table as text: ours above, the published numbers below, in 120 columns."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence

from ..base.checks import check_instance
from .results import Cell, Row, Table
from .verdict import check_lines, row_scores, score_lines

WIDTH = 120
LABEL_WIDTH = 41
INTERVAL_LABEL_WIDTH = 48
LABEL_MOST = 13  # characters of a column's label on a line, or as many as its numbers are wide


def table_text(table: Table) -> str:
    """The table, its strongest attacks with intervals, what judged rows cost and their checks, and rows left out."""
    check_instance("table", table, Table)
    eps = sorted({cell.eps for cell in table.cells if cell.eps is not None})
    head = f"{table.title}; {table.images} images"
    bounds = f" Several numbers: eps {'/'.join(map(str, eps))}." if len(eps) > 1 else ""
    published = any(cell.published is not None for cell in table.cells)
    below = "the published one" if published else "its 95 % interval"
    lines = [head, f"Accuracy in %; below it {below}.{bounds}", ""]
    grid = {
        (row.name, column.name): [cell for cell in table.cells if (cell.row, cell.column) == (row.name, column.name)]
        for row in table.rows
        for column in table.columns
    }
    below_it = _published if published else _ranges
    numbers = [_width(below_it, [grid[row.name, column.name] for row in table.rows]) for column in table.columns]
    labels = [_wrapped(column.label, width) for column, width in zip(table.columns, numbers, strict=True)]
    widths = [max(width, *map(len, lines)) for width, lines in zip(numbers, labels, strict=True)]
    for block in _blocks(widths):
        columns = [table.columns[i] for i in block]
        sizes = [widths[i] for i in block]
        for words in itertools.zip_longest(*(labels[i] for i in block), fillvalue=""):
            lines.append(_line("", "", words, sizes))
        for row in table.rows:
            cells = [grid[row.name, column.name] for column in columns]
            if any(cells):
                ours, paper = ("ours", "paper") if published else ("", "")
                lines.append(_line(row.technique, ours, [_ours(found) for found in cells], sizes))
                lines.append(_line(f"  {row.network}", paper, [below_it(found) for found in cells], sizes))
    lines += _intervals(table)
    lines += _judged(table)
    lines += [f"left out: {row.network}, {row.technique}: {row.missing}" for row in table.rows if row.missing]
    if not table.finished:
        lines.append("The table is not finished: not every cell is there.")
    return "\n".join(lines)


def _blocks(widths: list[int]) -> list[list[int]]:
    """The columns' numbers, in groups that fit beside the labels."""
    blocks: list[list[int]] = [[]]
    used = LABEL_WIDTH + 6
    for i, width in enumerate(widths):
        if blocks[-1] and used + width > WIDTH:
            blocks.append([])
            used = LABEL_WIDTH + 6
        blocks[-1].append(i)
        used += width + 2
    return blocks


def _wrapped(label: str, width: int) -> list[str]:
    """The lines of a column's label, as wide as its numbers or its longest word."""
    longest = max(map(len, textwrap.wrap(label, 1, break_long_words=False)), default=0)
    return textwrap.wrap(label, max(width, min(longest, LABEL_MOST))) or [""]


def _width(below: Callable[[list[Cell]], str], cells: list[list[Cell]]) -> int:
    """Of the numbers of a column, by row."""
    texts = [text for found in cells for text in (_ours(found), below(found))]
    return max(5, *map(len, texts))


def _line(label: str, what: str, texts: Sequence[str], widths: list[int]) -> str:
    shown = "  ".join(f"{text:<{width}}" for text, width in zip(texts, widths, strict=True))
    return f"{label:<{LABEL_WIDTH - 1}} {what:<6}{shown}".rstrip()


def _ours(cells: list[Cell]) -> str:
    return "/".join(f"{100 * cell.accuracy:.0f}" for cell in cells)


def _published(cells: list[Cell]) -> str:
    numbers = ["-" if cell.published is None else f"{cell.published:.0f}" for cell in cells]
    return "/".join(numbers) if set(numbers) != {"-"} else ""


def _ranges(cells: list[Cell]) -> str:
    """The 95 % intervals, in %."""
    return "/".join(f"{100 * cell.interval[0]:.0f}-{100 * cell.interval[1]:.0f}" for cell in cells)


def _intervals(table: Table) -> list[str]:
    """A line for each row with a strongest attack: which one, and how far its accuracy is known."""
    strongest = {column.name for column in table.columns} & {"strongest"}
    rows: list[tuple[Row, list[Cell]]] = [
        (row, [cell for cell in table.cells if cell.row == row.name and cell.column in strongest]) for row in table.rows
    ]
    rows = [(row, cells) for row, cells in rows if cells]
    if not rows:
        return []
    eps = sorted({cell.eps for _, cells in rows for cell in cells if cell.eps is not None})
    title = "Strongest attack, % (95 % interval)"
    lines = ["", f"{title:<{INTERVAL_LABEL_WIDTH - 1}} {_spread([f'eps {bound}' for bound in eps])}"]
    for row, cells in rows:
        found = {cell.eps: cell for cell in cells}
        texts = [_with_interval(found.get(bound)) for bound in eps or (None,)]
        lines.append(f"{row.network + ', ' + row.technique:<{INTERVAL_LABEL_WIDTH - 1}} {_spread(texts)}")
    return [line.rstrip() for line in lines]


def _judged(table: Table) -> list[str]:
    """Of every row that the protocol has judged its scores, with budgets and rates, and its sanity checks."""
    lines = []
    for row in table.rows:
        if scores := row_scores(table, row):
            lines += ["", f"{row.network}, {row.technique}", *score_lines(scores)]
            lines += check_lines(row.checks) if row.checks else []
    return [*lines, ""] if lines else []


def _spread(texts: list[str]) -> str:
    return " ".join(f"{text:<23}" for text in texts)


def _with_interval(cell: Cell | None) -> str:
    """Accuracy, interval and the attack's name."""
    if cell is None:
        return ""
    low, high = (100 * bound for bound in cell.interval)
    attack, _, absent = (cell.notes or "").partition(";")
    return f"{100 * cell.accuracy:.1f} ({low:.0f}-{high:.0f}) {attack}{' so far' if absent else ''}"
