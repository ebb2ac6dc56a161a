"""What an evaluation leaves behind: tables and figures as files that `pxfast report` reads, and their intervals.

An output folder has tables/NAME.json, a file per table, and figures/NAME.json, each beside the picture it speaks of.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar

from ..base.checks import check_path
from ..base.files import whole_file
from ..base.reading import parse_json, read_text
from ..base.records import record, shown

TABLE_FORMAT = "pxfast-table"
FIGURE_FORMAT = "pxfast-figure"
VERSION = 1
CONFIDENCE = 0.95
NAME = re.compile(r"\w[\w.+ -]{0,99}")  # of tables, rows and columns: of files, and in lists on the command line
UNDEFENDED = "No defence"  # the technique of a classifier alone, where there is nothing else to say of it
PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"  # outcomes of a check
MOST_IMAGES = 10**9
LONGEST = 1e12  # seconds
ROUNDING = 1e-6  # of accuracies in files

Kept = TypeVar("Kept", "Table", "Figure")


def wilson_interval(correct: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided Wilson score interval, in [0, 1], of a proportion of which ``correct`` of ``images`` were seen.

    Wilson 1927, without continuity correction. Raises ValueError unless 0 <= correct <= images, images > 0 and
    0 < confidence < 1.
    """
    if not (images > 0 and 0 <= correct <= images):
        raise ValueError(f"expected 0 <= correct <= images and images > 0, got {correct} of {images}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    proportion = correct / images
    centre = (proportion + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(proportion * (1 - proportion) / images + (z / (2 * images)) ** 2)
    # at 0 and 1 the bound is exact; rounding could miss it
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == images else centre + half)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: an attack, or the strongest one of each cell.

    name: in cells and options. label: as shown. note: how the attack differs from the published one.
    """

    name: str
    label: str
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """A sanity check. name: what should hold. outcome: 'passed', 'failed' or 'inconclusive'. numbers: what was seen."""

    name: str
    outcome: str
    numbers: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.name} ({self.numbers})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A classifier and what stands in front of it.

    name: in cells and options. network, technique: as shown. missing: why the row has no cells, if it was left out.
    checks: of a row that the protocol has judged.
    """

    name: str
    network: str
    technique: str
    missing: str | None = None
    checks: list[Check] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The names of the sanity checks that failed."""
        return [check.name for check in self.checks if check.outcome == FAILED]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One accuracy. row, column: names. eps: of the attack, in steps of the grid; None where the column has none.

    correct, images: counts. accuracy: their ratio in [0, 1], interval: its 95 % Wilson interval. seconds: what
    computing took, in whichever run that was. published: in %, as printed.
    published_note, notes: what there is to say of the published number and of ours; None: nothing.

    Of a cell that the protocol has judged, ``correct`` is by the majority of several runs. average: the mean over the
    runs, in [0, 1]. worst: how many images are right in every run. queries, gradients: the mean and the most that an
    image cost. Each is None where there is none.
    """

    row: str
    column: str
    eps: int | None
    correct: int
    images: int
    accuracy: float
    interval: tuple[float, float]
    seconds: float | None = None
    published: float | None = None
    published_note: str | None = None
    notes: str | None = None
    average: float | None = None
    worst: int | None = None
    queries: tuple[float, int] | None = None
    gradients: tuple[float, int] | None = None

    @classmethod
    def counted(cls, row: str, column: str, eps: int | None, correct: int, images: int, **rest: Any) -> Cell:
        """A cell with the accuracy and the interval that belong to the counts. ValueError for impossible counts."""
        return cls(row, column, eps, correct, images, correct / images, wilson_interval(correct, images), **rest)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of accuracies.

    name, title, caption: of the table. dataset: its name. images: how many each cell is of. source: title and where, of
    the published numbers. columns, rows, cells: in the order in which they are shown.

    models: role, name, sha256 and notes of every weights file. settings: what the cells depend on. machine: what they
    were computed on. rates: what, images_per_second and images, of what was computed, in this run or an earlier one.
    finished: whether every cell is there that could be.
    """

    name: str
    title: str
    caption: str
    dataset: str
    images: int
    source: dict[str, str]
    columns: list[Column]
    rows: list[Row]
    cells: list[Cell]
    models: list[dict[str, Any]]
    settings: dict[str, Any]
    machine: dict[str, Any]
    rates: list[dict[str, Any]]
    finished: bool

    def cell(self, row: str, column: str, eps: int | None) -> Cell | None:
        """The cell of a row and a column, by name, and of an eps, or None when it has not been computed."""
        return next((c for c in self.cells if (c.row, c.column, c.eps) == (row, column, eps)), None)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture and what it says.

    name, title, caption: of the figure. dataset: its name. file: the picture's name in the same folder. alt: the
    picture in words.

    source: title and where, of the published figure. settings: what it depends on. numbers: what was measured.
    """

    name: str
    title: str
    caption: str
    dataset: str
    source: dict[str, str]
    file: str
    alt: str
    settings: dict[str, Any]
    numbers: dict[str, Any]


def tables_folder(out: str | os.PathLike[str]) -> Path:
    """Where an output folder has its tables."""
    return check_path("an output folder", out) / "tables"


def figures_folder(out: str | os.PathLike[str]) -> Path:
    """Where an output folder has its figures."""
    return check_path("an output folder", out) / "figures"


def table_path(out: str | os.PathLike[str], name: str) -> Path:
    """The file of the table of this name in an output folder."""
    return tables_folder(out) / f"{name}.json"


def figure_path(out: str | os.PathLike[str], name: str) -> Path:
    """The file that describes the figure of this name in an output folder."""
    return figures_folder(out) / f"{name}.json"


def write_table(out: str | os.PathLike[str], table: Table) -> Path:
    """Write a table into an output folder, whole or not at all, over an earlier one. Returns its path."""
    return _write(table_path(out, table.name), TABLE_FORMAT, table)


def write_figure(out: str | os.PathLike[str], figure: Figure) -> Path:
    """Write a figure's description into an output folder, beside its picture. Returns its path."""
    return _write(figure_path(out, figure.name), FIGURE_FORMAT, figure)


def read_table(path: str | os.PathLike[str]) -> Table:
    """A table from its file, ``path``. ValueError, naming the file, when it is none; FileNotFoundError."""
    table = _read(path, TABLE_FORMAT, Table)
    _check(table, os.fspath(path))
    return table


def _check(table: Table, path: str) -> None:
    """ValueError, naming the file, for a table of right types that makes no sense."""
    if not NAME.fullmatch(table.name) or not 1 <= table.images <= MOST_IMAGES:
        raise ValueError(f"{path}: it has the name {shown(table.name)} and {shown(table.images)} images")
    rows, columns = {row.name for row in table.rows}, {column.name for column in table.columns}
    if len(rows) < len(table.rows) or len(columns) < len(table.columns):
        raise ValueError(f"{path}: each row and column must be there once")
    for cell in table.cells:
        place = f"{path}: the cell of {shown(cell.row)}, {shown(cell.column)}, {shown(cell.eps)}"
        if cell.row not in rows or cell.column not in columns:
            raise ValueError(f"{place} is of no row or column of the table")
        if not 0 <= cell.correct <= cell.images <= MOST_IMAGES or not cell.images:
            raise ValueError(f"{place} has impossible counts")
        told = (cell.correct / cell.images, *wilson_interval(cell.correct, cell.images))
        if not all(abs(a - b) <= ROUNDING for a, b in zip((cell.accuracy, *cell.interval), told, strict=True)):
            raise ValueError(f"{place} has an accuracy, or an interval, that is not of its counts")
        if not 0 <= (cell.worst or 0) <= cell.images or not 0 <= (cell.average or 0) <= 1:
            raise ValueError(f"{place} has an impossible average, or worst case")
        if not 0 <= (cell.published or 0) <= 100 or not 0 <= (cell.seconds or 0) < LONGEST:
            raise ValueError(f"{place} has an impossible published accuracy, or time")
    for model in table.models:
        record(_Model, model, f"{path}: models")
    for rate in table.rates:
        record(_Rate, rate, f"{path}: rates")


@dataclasses.dataclass(frozen=True)
class _Model:
    """What a table's file says of a weights file."""

    role: str
    name: str
    sha256: str
    notes: dict[str, Any] | None = None
    rows: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class _Rate:
    """What a table's file says of the speed of a step."""

    what: str
    images_per_second: float
    images: int


def read_figure(path: str | os.PathLike[str]) -> Figure:
    """A figure's description from its file, ``path``. ValueError, naming it, when it is none; FileNotFoundError."""
    return _read(path, FIGURE_FORMAT, Figure)


def read_tables(out: str | os.PathLike[str]) -> list[Table]:
    """All tables of an output folder, ``out``, by name. Raises what :func:`read_table` raises."""
    return [read_table(path) for path in sorted(tables_folder(out).glob("*.json"))]


def read_figures(out: str | os.PathLike[str]) -> list[Figure]:
    """All figures of an output folder, ``out``, by name. Raises what :func:`read_figure` raises."""
    return [read_figure(path) for path in sorted(figures_folder(out).glob("*.json"))]


def _write(path: Path, form: str, record: Table | Figure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN, so no value here may be one
    text = json.dumps({"format": form, "version": VERSION, **dataclasses.asdict(record)}, indent=1, allow_nan=False)
    with whole_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _read(path: str | os.PathLike[str], form: str, kind: type[Kept]) -> Kept:
    values = parse_json(read_text(path), os.fspath(path), finite=True)
    if not isinstance(values, dict) or values.get("format") != form or values.get("version") != VERSION:
        raise ValueError(f"{os.fspath(path)} is no file of format {form!r}, version {VERSION}")
    fields = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
    return record(kind, fields, os.fspath(path))
