"""What the protocol found of a table's rows beside their numbers: runs, budgets and sanity checks."""

from __future__ import annotations

import dataclasses

from ..results import Check, Table
from ..verdict import Score, row_scores
from .comparison import title_of


@dataclasses.dataclass(frozen=True)
class JudgedRow:
    """A row that was judged. title: of the row. runs: how often it was evaluated. scores: of clean images, the attacks
    and the strongest one, in the table's order.
    """

    title: str
    runs: int
    scores: list[Score]
    checks: list[Check]


def judged_rows(table: Table) -> list[JudgedRow]:
    """The rows of a table that the protocol has judged."""
    runs = table.settings.get("runs")
    return [
        JudgedRow(title_of(row), runs.get(row.name, 1) if isinstance(runs, dict) else 1, scores, row.checks)
        for row in table.rows
        if (scores := row_scores(table, row))
    ]
