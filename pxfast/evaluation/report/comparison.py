"""Tables as the report shows them: a panel for each eps, ours beside the published number in every cell."""

from __future__ import annotations

import dataclasses
import string

from ..results import UNDEFENDED, Cell, Column, Row, Table

STRONGEST = "strongest"  # the column of the minimum over a row's attacks
WIDEST = 8  # columns; a table with more is transposed
SMALL, LARGE = 5.0, 15.0  # points of difference between the shades of a cell


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A computed cell, in %. marks: its footnotes'. attack: which one the strongest attack is, in its column.

    interval: 95 %. difference: ours minus the published value, in points, or None. within: whether the published value
    lies in our interval.
    """

    cell: Cell
    marks: str = ""
    attack: str = ""

    @property
    def ours(self) -> float:
        return 100.0 * self.cell.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        low, high = self.cell.interval
        return 100.0 * low, 100.0 * high

    @property
    def published(self) -> float | None:
        return self.cell.published

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.ours - self.published

    @property
    def within(self) -> bool:
        low, high = self.interval
        return self.published is not None and low <= self.published <= high

    @property
    def verdict(self) -> str:
        """'none' without a published value, 'same' within the interval, or else 'higher' or 'lower'."""
        if self.difference is None:
            return "none"
        if self.within:
            return "same"
        return "higher" if self.difference > 0 else "lower"

    @property
    def shade(self) -> str:
        """The name of the cell's colour: its verdict, and from 1 to 3 how far the values are apart."""
        if self.difference is None or self.within:
            return self.verdict
        distance = abs(self.difference)
        return f"{self.verdict}-{1 if distance < SMALL else 2 if distance < LARGE else 3}"


@dataclasses.dataclass(frozen=True)
class Heading:
    """A row's or column's title. over: what stands small above it. marks: its footnotes'. missing: why it is empty.
    warning: what stands below it where its numbers are not to be trusted.
    """

    label: str
    over: str = ""
    marks: str = ""
    strong: bool = False
    begins: bool = False
    missing: str | None = None
    warning: str | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """What a table shows for one eps (None: the attacks have none): ``cells[row][column]``; a text says why there will
    be none, None that it is not computed yet.
    """

    eps: int | None
    rows: list[Heading]
    columns: list[Heading]
    cells: list[list[Comparison | str | None]]


class Notes:
    """The footnotes of a table: each text once, marked a, b, c, ..."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, *texts: str | None) -> str:
        """The marks of these texts, those that are None or empty apart."""
        marks = []
        for text in filter(None, texts):
            if text not in self.texts:
                self.texts.append(text)
            marks.append(letter(self.texts.index(text)))
        return ",".join(marks)

    def marked(self) -> list[tuple[str, str]]:
        return [(letter(i), text) for i, text in enumerate(self.texts)]


def letter(index: int) -> str:
    """a to z, then aa, ab, ..."""
    letters = string.ascii_lowercase
    return (letter(index // 26 - 1) if index >= 26 else "") + letters[index % 26]


@dataclasses.dataclass(frozen=True)
class TableView:
    """A table ready to be laid out. computed, planned: how many cells there are, and will be. judged: whether its rows
    are judged by the protocol of several runs.
    """

    table: Table
    panels: list[Panel]
    notes: list[tuple[str, str]]
    left_out: list[Row]
    turned: bool
    has_published: bool
    computed: int
    planned: int
    judged: bool = False

    @property
    def seconds(self) -> float:
        return sum(cell.seconds or 0.0 for cell in self.table.cells)


def is_defended(row: Row, table: Table) -> bool:
    """Whether PixelDefend, in any form, stands in front of the row's classifier, or another defence beside a row of the
    same classifier without any.
    """
    beside = any(is_bare(other) and other.network == row.network for other in table.rows)
    bare = row.technique.strip().casefold().startswith(UNDEFENDED.casefold())  # with two views, too
    return "pixeldefend" in row.technique.casefold() or (beside and not bare)


def is_bare(row: Row) -> bool:
    """Whether the row is said to have no defence."""
    return row.technique.strip().casefold() == UNDEFENDED.casefold()


def attack_columns(table: Table) -> list[Column]:
    """The columns of attacks; the others are clean images and the strongest attack."""
    return [column for column in table.columns if column.name in table.settings.get("attacks", {})]


def knows_defences(table: Table, column: Column) -> bool:
    """Whether a column is of an attack on defences, which has no cell where there are none."""
    return table.settings.get("attacks", {}).get(column.name, {}).get("knows the defences") is True


def title_of(row: Row) -> str:
    return f"{row.network}, {row.technique}"


def eps_values(table: Table) -> list[int | None]:
    """The eps of a table's panels, in order: those of its settings and cells, or [None] where there are none."""
    planned = table.settings.get("attack eps", [])
    return sorted({*planned, *(cell.eps for cell in table.cells if cell.eps is not None)}) or [None]


def judged(table: Table) -> bool:
    """Whether the table's rows are judged by the protocol of several runs."""
    return "left out" in table.settings


def left_out(table: Table, row: Row, column: Column) -> str | None:
    """Why a judged row gets no cell in a column, or None."""
    reason = table.settings.get("left out", {}).get(row.name, {}).get(column.name)
    return None if reason is None else str(reason)


def find_cell(table: Table, row: str, column: str, eps: int | None) -> Cell | None:
    """The cell for this eps, or the one of a column that has no eps, which stands in every panel."""
    return table.cell(row, column, eps) or table.cell(row, column, None)


def view_table(table: Table) -> TableView:
    """Lay a table out. ValueError for a cell of a row or column that the table does not have."""
    notes = Notes()
    turned = len(table.columns) > WIDEST and len(table.rows) < len(table.columns)
    columns = [
        Heading(column.label, marks=notes.mark(column.note), strong=column.name == STRONGEST)
        for column in table.columns
    ]
    shown = [row for row in table.rows if not (turned and row.missing)]
    first_defended = next((i for i, row in enumerate(shown) if is_defended(row, table)), 0)
    rows = [
        Heading(
            row.technique,
            over=row.network,
            missing=row.missing,
            begins=0 < first_defended == i,
            warning=f"a sanity check failed: {'; '.join(row.failed)}" if row.failed else None,
        )
        for i, row in enumerate(shown)
    ]
    panels = []
    for eps in eps_values(table):
        cells = [[find_cell(table, row.name, column.name, eps) for column in table.columns] for row in shown]
        compared = [
            [
                left_out(table, row, column) if cell is None else compare(cell, notes)
                for column, cell in zip(table.columns, line, strict=True)
            ]
            for row, line in zip(shown, cells, strict=True)
        ]
        if turned:
            across = [list(line) for line in zip(*compared, strict=True)]
            panels.append(Panel(eps, columns, rows, across))
        else:
            panels.append(Panel(eps, rows, columns, compared))
    attacks = {column.name for column in attack_columns(table)} - {
        cell.column for cell in table.cells if cell.eps is None
    }
    defended = table.settings.get("defences", {})
    planned = sum(
        len(panels) if column.name in {*attacks, STRONGEST} else 1
        for row in table.rows
        for column in table.columns
        if not row.missing
        and (row.name in defended or not knows_defences(table, column) or judged(table))
        and left_out(table, row, column) is None
    )
    return TableView(
        table,
        panels,
        notes.marked(),
        [row for row in table.rows if row.missing],
        turned,
        any(cell.published is not None for cell in table.cells),
        len(table.cells),
        planned,
        judged(table),
    )


def compare(cell: Cell, notes: Notes) -> Comparison:
    """The cell with its footnotes, whose texts go to ``notes``; the strongest attack's name is none of them."""
    attack, text = "", cell.notes
    if cell.column == STRONGEST and text:
        attack, _, text = text.partition("; ")
    return Comparison(cell, notes.mark(cell.published_note, text), attack)


@dataclasses.dataclass(frozen=True)
class Shortfall:
    """A cell in which ours is below the published number."""

    table: Table
    row: str
    column: str
    compared: Comparison


def shortfalls(tables: list[Table]) -> list[Shortfall]:
    """Every cell that is below its published number, the farthest below first."""
    found = []
    for table in tables:
        rows = {row.name: title_of(row) for row in table.rows}
        columns = {column.name: column.label for column in table.columns}
        for cell in table.cells:
            compared = Comparison(cell)
            if compared.difference is not None and compared.difference < 0:
                found.append(Shortfall(table, rows[cell.row], columns[cell.column], compared))
    return sorted(found, key=lambda each: each.compared.difference or 0.0)
