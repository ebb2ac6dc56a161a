"""The report's first lines: classifiers under the strongest attack, without a defence and with it."""

from __future__ import annotations

import dataclasses

from ..results import Row, Table
from .comparison import STRONGEST, Comparison, attack_columns, eps_values, find_cell, is_bare, is_defended, judged

USUAL_EPS = 8  # the one that both data sets' tables have


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A classifier under the strongest attack, without the defence and with it."""

    network: str
    technique: str
    defence: str
    without: Comparison
    defended: Comparison


@dataclasses.dataclass(frozen=True)
class Headline:
    """The contrasts of one table at one eps. attacks: the labels of those that the strongest is the strongest of.
    on_defences: of these, those that no classifier without a defence has been measured under. judged: whether it is so
    of every image, by the protocol.
    """

    table: Table
    eps: int | None
    attacks: list[str]
    on_defences: list[str]
    contrasts: list[Contrast]
    judged: bool


def headline(table: Table) -> Headline | None:
    """A table's headline, or None where it has no strongest attack or no pair of rows that are both computed.

    At eps 8 where the table has that, or else at its smallest.
    """
    if STRONGEST not in {column.name for column in table.columns}:
        return None
    eps = USUAL_EPS if USUAL_EPS in eps_values(table) else eps_values(table)[0]

    def strongest(row: Row) -> Comparison | None:
        cell = find_cell(table, row.name, STRONGEST, eps)
        return None if cell is None else Comparison(cell)

    contrasts, bare = [], set()
    for row in table.rows:
        if is_defended(row, table):
            continue
        for other in table.rows:
            defence = defence_of(row, other, table)
            before, after = strongest(row), strongest(other)
            if defence and before and after:
                contrasts.append(Contrast(row.network, row.technique, defence, before, after))
                bare.add(row.name)
    columns = attack_columns(table)
    attacks = [column.label for column in columns]
    on_defences = [each.label for each in columns if not any(find_cell(table, row, each.name, eps) for row in bare)]
    return Headline(table, eps, attacks, on_defences, contrasts, judged(table)) if contrasts else None


def survivors(table: Table) -> list[tuple[str, Comparison]]:
    """What the strongest attack leaves of each defended row that has been computed, by technique."""
    rows = {
        row.name: row.technique + (" (a sanity check failed)" if row.failed else "")
        for row in table.rows
        if is_defended(row, table)
    }
    return [(rows[cell.row], Comparison(cell)) for cell in table.cells if cell.column == STRONGEST and cell.row in rows]


def defence_of(row: Row, other: Row, table: Table) -> str | None:
    """What ``other`` adds to ``row``, such as 'Adaptive PixelDefend', or None if it is another classifier."""
    if row.network != other.network or not is_defended(other, table):
        return None
    if is_bare(row):
        return other.technique
    base, _, added = (part.strip() for part in other.technique.rpartition("+"))
    return added if base.casefold() == row.technique.strip().casefold() else None
