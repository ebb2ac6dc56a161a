"""What a table is: rows, columns, eps and published numbers, declared in a TOML file.

The tables of the package lie in ``tables/``; a file of one's own has the same form::

    name = "mine"                        # of the result's file
    title = "..."
    caption = "..."                      # optional
    dataset = "cifar10"                  # or 'fashion-mnist', or a folder of images with classes
    images = 200                         # unless the command says otherwise
    attack_eps = [2, 8, 16]              # in steps of the grid
    source = { title = "...", where = "Table 2" }     # of the published numbers; optional

    [[columns]]
    name = "fgsm"
    label = "FGSM"
    attack = "fgsm"                      # a name that `pxfast attack` knows; none: clean images
    options = { label_rule = "given" }   # the attack's own; optional
    knows_defences = false               # true: it attacks the whole row, not the classifier behind it
    note = "..."                         # optional

    [[columns]]
    name = "strongest"
    label = "Strongest attack"
    strongest = true                     # the least accuracy of the row, for each eps

    [[rows]]
    name = "resnet-purified"
    network = "ResNet"                   # as shown
    technique = "Normal + PixelDefend"   # as shown
    architecture = "resnet62"
    training = "normal"                  # fgsm, bim or label-smoothing
    defences = [{ kind = "purifier", eps = 16 }]
    published = { fgsm = [73, 46, 24] }  # %, for each eps; one number where there is no eps
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..attacks import find_attack
from ..base.checks import check_eps
from ..classifiers.architectures import ARCHITECTURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRAININGS = ("normal", "fgsm", "bim", "label-smoothing")
TABLES = ("table1", "table2", "reproduction", "adaptive", "adaptive-fashion-mnist")  # of the package


@dataclasses.dataclass(frozen=True)
class ColumnSpecification:
    """A column of a table.

    name: in results and options. label: as shown. attack: a name that ``pxfast attack`` knows; None: clean images.
    options: the attack's own. knows_defences: whether it attacks the whole row, or the classifier behind the defences.
    strongest: the least accuracy of the row, for each eps. note: how the attack differs from the published one.
    """

    name: str
    label: str
    attack: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    knows_defences: bool = False
    strongest: bool = False
    note: str | None = None

    def eps(self, attack_eps: tuple[int, ...]) -> tuple[int | None, ...]:
        """The eps of this column's cells, of a table with ``attack_eps``: None alone where the column has none."""
        if self.attack is None and not self.strongest:
            return (None,)
        if self.attack is not None and not find_attack(self.attack).bounded:
            return (None,)
        return attack_eps or (None,)


@dataclasses.dataclass(frozen=True)
class RowSpecification:
    """A row of a table.

    name: in results and options. network, technique: as shown. architecture: a name that
    :func:`pxfast.classifiers.architecture` knows. training: 'normal', 'fgsm', 'bim' or 'label-smoothing'. defences: of
    each its kind and settings, in the order in which an image meets them. published: by column, in %, for each eps, or
    a single number. published_notes: by column.
    """

    name: str
    network: str
    technique: str
    architecture: str
    training: str = "normal"
    defences: tuple[dict[str, Any], ...] = ()
    published: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    published_notes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TableSpecification:
    """A table.

    name: of the result's file. title, caption: as shown. dataset: 'cifar10', 'fashion-mnist' or a folder of images with
    classes. images: how many of the test images, the first ones. columns, rows: in the order in which they are shown.
    attack_eps: in steps of the grid. source: title and where, of the published numbers. seed: of random attacks.
    """

    name: str
    title: str
    dataset: str
    images: int
    columns: tuple[ColumnSpecification, ...]
    rows: tuple[RowSpecification, ...]
    attack_eps: tuple[int, ...] = ()
    caption: str = ""
    source: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def published(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> float | None:
        """The published accuracy in %, or None, of the cell of a row, a column and an eps of the attack."""
        values = row.published.get(column.name)
        if not values:
            return None
        return values[0] if eps is None else values[self.attack_eps.index(eps)]

    def published_note(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> str | None:
        """What there is to say, or None, of the published number of a row, a column and an eps."""
        values, note = row.published.get(column.name, ()), row.published_notes.get(column.name)
        if eps is None and len(set(values)) > 1:
            printed = "/".join(f"{value:g}" for value in values)
            note = "; ".join(filter(None, (f"printed as {printed}, the first of which stands here", note)))
        return note

    def chosen(self, rows: Iterable[str] | None, columns: Iterable[str] | None) -> TableSpecification:
        """The table with these rows and columns alone; None: all. ValueError for a name that is not there."""
        return dataclasses.replace(
            self, rows=_named("row", self.rows, rows), columns=_named("column", self.columns, columns)
        )


Named = TypeVar("Named", ColumnSpecification, RowSpecification)
Specification = TypeVar("Specification", ColumnSpecification, RowSpecification, TableSpecification)


def _named(kind: str, entries: tuple[Named, ...], names: Iterable[str] | None) -> tuple[Named, ...]:
    if names is None:
        return entries
    wanted, known = list(names), [entry.name for entry in entries]
    for name in wanted:
        if name not in known:
            raise ValueError(f"the table has no {kind} {name!r}; it has: {', '.join(known)}")
    return tuple(entry for entry in entries if entry.name in wanted)


def load_table(name_or_path: str | os.PathLike[str]) -> TableSpecification:
    """A table of the package, or one from a TOML file.

    name_or_path: one of ``TABLES``, or a path.
    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    if isinstance(name_or_path, str) and name_or_path in TABLES:
        path = Path(str(resources.files("pxfast.evaluation") / "tables" / f"{name_or_path}.toml"))
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(f"no such table file: {path}; tables of the package: {', '.join(TABLES)}")
    try:
        return parse_table(tomllib.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_table(values: dict[str, Any]) -> TableSpecification:
    """A table from the ``values`` that a TOML file has. Raises TypeError or ValueError."""
    rows = [_made(RowSpecification, row, "row") for row in values.get("rows", ())]
    columns = [_made(ColumnSpecification, column, "column") for column in values.get("columns", ())]
    rest = {name: value for name, value in values.items() if name not in ("rows", "columns")}
    table = _made(TableSpecification, {**rest, "rows": tuple(rows), "columns": tuple(columns)}, "table")
    _check(table)
    return table


def _made(kind: type[Specification], values: dict[str, Any], what: str) -> Specification:
    """A specification's dataclass from a TOML table, with tuples for arrays."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    name = values.get("name", "without a name")
    if unknown := set(values) - set(fields):
        raise ValueError(f"{what} {name!r}: unknown {', '.join(sorted(unknown))}; known: {', '.join(fields)}")
    needed = {
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := needed - set(values):
        raise ValueError(f"{what} {name!r} lacks {', '.join(sorted(missing))}")
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "published" in made:
        made["published"] = {
            column: tuple(numbers) if isinstance(numbers, list) else (numbers,)
            for column, numbers in made["published"].items()
        }
    return kind(**made)


def _check(table: TableSpecification) -> None:
    """Raise TypeError or ValueError for a table that makes no sense."""
    if table.images < 1:
        raise ValueError(f"images must be positive, got {table.images}")
    if not table.rows or not table.columns:
        raise ValueError("a table needs at least one row and one column")
    for kind, names in (
        ("row", [row.name for row in table.rows]),
        ("column", [column.name for column in table.columns]),
        ("eps", [check_eps(eps) for eps in table.attack_eps]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"each {kind} must be there once, got {', '.join(map(str, names))}")
    for column in table.columns:
        if column.attack is not None:
            try:
                attack = find_attack(column.attack, **column.options)
            except (TypeError, ValueError) as error:
                raise type(error)(f"column {column.name!r}: {error}") from None
            if attack.bounded and not table.attack_eps:
                raise ValueError(f"column {column.name!r} needs attack_eps")
        if column.strongest and column.attack is not None:
            raise ValueError(f"column {column.name!r} is the strongest attack, and can't have one of its own")
    counts = {column.name: len(column.eps(table.attack_eps)) for column in table.columns}
    for row in table.rows:
        if row.architecture not in ARCHITECTURES:
            raise ValueError(
                f"row {row.name!r}: unknown architecture {row.architecture!r}; known: {', '.join(ARCHITECTURES)}"
            )
        if row.training not in TRAININGS:
            raise ValueError(f"row {row.name!r}: training must be one of {', '.join(TRAININGS)}, got {row.training!r}")
        for name, values in row.published.items():
            if name not in counts:
                raise ValueError(f"row {row.name!r} has published numbers of an unknown column {name!r}")
            if len(values) != counts[name] and not (counts[name] == 1 and len(values) == len(table.attack_eps)):
                raise ValueError(f"row {row.name!r}, column {name!r}: {len(values)} numbers for {counts[name]} cells")
            if any(isinstance(value, bool) or not 0 <= value <= 100 for value in values):
                raise ValueError(f"row {row.name!r}, column {name!r}: accuracies are in %, got {values}")
