"""What a table is: rows, columns, eps and published numbers, declared in a TOML file.

The tables of the package lie in ``tables/``; a file of one's own has the same form::

    name = "mine"                        # of the result's file: letters, digits, spaces and any of _.+-
    title = "..."
    caption = "..."                      # optional
    dataset = "cifar10"                  # or 'fashion-mnist', or a folder of images with classes
    images = 200                         # unless the command says otherwise
    attack_eps = [2, 8, 16]              # in steps of the grid
    runs = 10                            # optional: the rows are judged by the protocol, a random one in so many runs
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
    strongest = true                     # the least accuracy of the row, for each eps; with runs, of each image

    [[rows]]
    name = "resnet-purified"
    network = "ResNet"                   # as shown
    technique = "Normal + PixelDefend"   # as shown
    architecture = "resnet62"
    training = "normal"                  # fgsm, bim or label-smoothing
    defences = [{ kind = "purifier", eps = 16 }]
    views = "flip"                       # the mirror image too, as pxfast.Defended has it; optional
    through = { fgsm = [{ kind = "feature-squeezing" }] }   # defences that an attack goes through, by column; optional
    published = { fgsm = [73, 46, 24] }  # %, for each eps; one number where there is no eps

A table with ``runs`` (:mod:`pxfast.evaluation.judged_table`) has one eps, a column of clean images, a strongest one and
attacks on the row with its defences, and a row without defences for every classifier.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..attacks import BlindPGD, find_attack
from ..base.checks import check_eps, check_instance, check_names, check_path, grid_conversion
from ..base.reading import check_depth, read_text
from ..base.records import record, shown
from ..classifiers.architectures import ARCHITECTURES
from ..defences.defended import VIEWS
from .defences import check_defence, find_kind
from .results import NAME

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_FILE = 1 << 18  # bytes; the tables of the package have 5 thousand
MOST_DOTS = 100  # of a line: tomllib takes memory with the square of the parts of a dotted name
MOST_IMAGES = 10**9
MOST_RUNS = 10_000
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

    def applies_to(self, row: RowSpecification) -> bool:
        """Whether the row has a cell here: not where the attack is one on defences other than the row's."""
        if self.attack is None or not self.knows_defences:
            return True
        attack = find_attack(self.attack, **self.options)
        try:
            attack.check_defences([find_kind(defence["kind"]).example() for defence in row.defences])
        except ValueError:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class RowSpecification:
    """A row of a table.

    name: in results and options. network, technique: as shown. architecture: a name that
    :func:`pxfast.classifiers.architecture` knows. training: 'normal', 'fgsm', 'bim' or 'label-smoothing'. defences: of
    each its kind and settings, in the order in which an image meets them. published: by column, in %, for each eps, or
    a single number. published_notes: by column. views: 'one' or 'flip', as :class:`pxfast.Defended` takes
    them. through: by column, the defences that its attack goes through in this row, where it is on the classifier in
    the others.
    """

    name: str
    network: str
    technique: str
    architecture: str
    training: str = "normal"
    defences: tuple[dict[str, Any], ...] = ()
    published: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    published_notes: dict[str, str] = dataclasses.field(default_factory=dict)
    views: str = "one"
    through: dict[str, tuple[dict[str, Any], ...]] = dataclasses.field(default_factory=dict)

    @property
    def needs_density(self) -> bool:
        """Whether a density model is in one of its defences, or in what an attack goes through."""
        return any(each["kind"] == "purifier" for each in itertools.chain(self.defences, *self.through.values()))


@dataclasses.dataclass(frozen=True)
class TableSpecification:
    """A table.

    name: of the result's file. title, caption: as shown. dataset: 'cifar10', 'fashion-mnist' or a folder of images with
    classes. images: how many of the test images, the first ones. columns, rows: in the order in which they are shown.
    attack_eps: in steps of the grid. source: title and where, of the published numbers. seed: of random attacks.
    runs: how often a random row is evaluated by the protocol that judges the rows; None: the table is not of it.
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
    runs: int | None = None

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

    def check_installed(self) -> None:
        """ImportError, naming the extra, where a library that an attack calls is not there."""
        for column in self.columns:
            if column.attack is not None:
                find_attack(column.attack, **column.options).check_installed()

    def chosen(self, rows: Iterable[str] | None, columns: Iterable[str] | None) -> TableSpecification:
        """The table with these rows and columns alone; None: all. ValueError for a name that is not there."""
        return dataclasses.replace(
            self, rows=_named("row", self.rows, rows), columns=_named("column", self.columns, columns)
        )

    def at_eps(self, eps: int) -> TableSpecification:
        """The table with this eps in 0..255 alone, and the published numbers that are of it, or of no eps."""
        bounded = {column.name for column in self.columns if column.eps(self.attack_eps) != (None,)}
        place = self.attack_eps.index(eps) if eps in self.attack_eps else None

        def at(row: RowSpecification) -> RowSpecification:
            kept: dict[str, tuple[float, ...]] = {}
            for name, values in row.published.items():
                if name not in bounded:
                    kept[name] = values
                elif place is not None:
                    kept[name] = (values[place],)
            notes = {name: note for name, note in row.published_notes.items() if name in kept}
            return dataclasses.replace(row, published=kept, published_notes=notes)

        return dataclasses.replace(self, attack_eps=(check_eps(eps),), rows=tuple(map(at, self.rows)))


Named = TypeVar("Named", ColumnSpecification, RowSpecification)
Specification = TypeVar("Specification", ColumnSpecification, RowSpecification)


def _named(kind: str, entries: tuple[Named, ...], names: Iterable[str] | None) -> tuple[Named, ...]:
    if names is None:
        return entries
    wanted, known = check_names(f"{kind}s", names), [entry.name for entry in entries]
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
        path = check_path("a table", name_or_path)
        if not path.exists():
            raise FileNotFoundError(f"no such table file: {path}; tables of the package: {', '.join(TABLES)}")
    text = read_text(path, LARGEST_FILE)
    if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
        raise ValueError(f"{path}: no line may have more than {MOST_DOTS} dots")
    try:
        values = tomllib.loads(text)
        check_depth(values, "it")
        return parse_table(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} has too many lists and tables in each other") from None


def parse_table(values: dict[str, Any]) -> TableSpecification:
    """A table from the ``values`` that a TOML file has. Raises TypeError or ValueError.

    Every field is checked, those of rows, columns and defences as well, and the options of attacks by the attacks.
    """
    check_instance("values", values, dict)
    given = values.get("attack_eps")
    for eps in given if isinstance(given, list) else ():
        if grid_conversion("eps", eps):
            check_eps(eps, "attack_eps")
    rows = [_entry(RowSpecification, row, "row") for row in _tables(values, "rows")]
    columns = [_entry(ColumnSpecification, column, "column") for column in _tables(values, "columns")]
    table = record(TableSpecification, {**values, "rows": rows, "columns": columns}, f"table {_name_of(values)}")
    _check(table)
    return table


def _tables(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"{key} must be tables, written [[{key}]], got {shown(found)}")
    return found


def _name_of(values: dict[str, Any]) -> str:
    return shown(values.get("name", "without a name"))


def _entry(kind: type[Specification], values: dict[str, Any], what: str) -> Specification:
    """A row or a column from its TOML table."""
    where = f"{what} {_name_of(values)}"
    published = values.get("published")
    if isinstance(published, dict):  # a number alone, where the column has no eps
        as_lists = {name: given if isinstance(given, list) else [given] for name, given in published.items()}
        values = {**values, "published": as_lists}
    return record(kind, values, where)


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the name of a {what} must begin with a letter or digit, and have letters, digits, spaces and any of _.+- "
            f"alone, at most 100, got {shown(name)}"
        )


def _check(table: TableSpecification) -> None:
    """Raise TypeError or ValueError for a table that makes no sense."""
    _check_name("table", table.name)  # which becomes a file's name
    if not 1 <= table.images <= MOST_IMAGES:
        raise ValueError(f"images must be positive, at most {MOST_IMAGES}, got {shown(table.images)}")
    if not 0 <= table.seed < 1 << 63:
        raise ValueError(f"seed must be an integer in 0..2^63 - 1, got {shown(table.seed)}")
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
        _check_column(table, column)
    labels = [column.label for column in table.columns]
    if twice := [label for number, label in enumerate(labels) if label in labels[:number]]:
        raise ValueError(f"each label must be there once, got {shown(twice[0])} twice")
    if table.runs is not None:
        _check_judged(table, table.runs)
    ours = {column.name for column in table.columns if column.attack is not None and not column.knows_defences}
    counts = {column.name: len(column.eps(table.attack_eps)) for column in table.columns}
    for row in table.rows:
        _check_row(table, row, counts)
        if unknown := row.through.keys() - ours:
            raise ValueError(
                f"row {row.name!r}: through is of columns whose attack is on the classifier, got {shown(min(unknown))}"
            )


def _check_column(table: TableSpecification, column: ColumnSpecification) -> None:
    _check_name("column", column.name)
    if ";" in column.label:  # behind which a strongest attack's notes say what is missing
        raise ValueError(f"column {column.name!r}: its label must have no semicolon, got {shown(column.label)}")
    if column.attack is not None:
        try:
            attack = find_attack(column.attack, **column.options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"column {column.name!r}: {error}") from None
        if attack.knows_defences and not column.knows_defences:
            raise ValueError(f"column {column.name!r}: {column.attack} is on defences: it needs knows_defences = true")
        if attack.bounded and not table.attack_eps:
            raise ValueError(f"column {column.name!r} needs attack_eps")
    elif column.options:
        raise ValueError(f"column {column.name!r} has options, and no attack to take them")
    if column.strongest and column.attack is not None:
        raise ValueError(f"column {column.name!r} is the strongest attack, and can't have one of its own")
    if column.strongest != (column.name == "strongest"):
        raise ValueError(f"column {column.name!r}: that of the strongest attack, and it alone, is called 'strongest'")


def _check_judged(table: TableSpecification, runs: int) -> None:
    """Raise ValueError for a table with runs that the protocol cannot judge."""
    if not 1 <= runs <= MOST_RUNS:
        raise ValueError(f"runs must be in 1..{MOST_RUNS}, got {shown(runs)}")
    if len(table.attack_eps) != 1:
        raise ValueError(f"a table with runs needs one attack_eps, got {shown(list(table.attack_eps))}")
    kinds = [(column.attack is None, column.strongest) for column in table.columns]
    for what, kind in (("of clean images", (True, False)), ("of the strongest attack", (True, True))):
        if kinds.count(kind) != 1:
            raise ValueError(f"a table with runs needs one column {what}, got {kinds.count(kind)}")
    for column in table.columns:
        if column.attack is None:
            continue
        if not find_attack(column.attack).bounded:
            raise ValueError(f"column {column.name!r}: {column.attack} has no eps, and a table with runs has one")
        if not column.knows_defences and column.attack != BlindPGD.name:
            raise ValueError(
                f"column {column.name!r}: in a table with runs every attack but {BlindPGD.name} is on the whole row: "
                "it needs knows_defences = true"
            )
    if through := [row.name for row in table.rows if row.through]:
        raise ValueError(f"row {through[0]!r}: a table with runs takes no through")
    alone = {(row.architecture, row.training) for row in table.rows if not row.defences}
    for row in table.rows:
        if (row.architecture, row.training) not in alone:
            raise ValueError(f"row {row.name!r}: a table with runs needs a row of the same classifier without defences")


def _check_row(table: TableSpecification, row: RowSpecification, counts: dict[str, int]) -> None:
    """counts: how many cells each column has."""
    _check_name("row", row.name)
    if row.architecture not in ARCHITECTURES:
        raise ValueError(
            f"row {row.name!r}: unknown architecture {shown(row.architecture)}; known: {', '.join(ARCHITECTURES)}"
        )
    if row.training not in TRAININGS:
        raise ValueError(f"row {row.name!r}: training must be one of {', '.join(TRAININGS)}, got {shown(row.training)}")
    if row.views not in VIEWS:
        raise ValueError(f"row {row.name!r}: views must be one of {', '.join(VIEWS)}, got {shown(row.views)}")
    for defence in (*row.defences, *itertools.chain(*row.through.values())):
        try:
            check_defence(defence)
        except (TypeError, ValueError) as error:
            raise type(error)(f"row {row.name!r}: {error}") from None
    for name, values in row.published.items():
        if name not in counts:
            raise ValueError(f"row {row.name!r} has published numbers of an unknown column {shown(name)}")
        if len(values) != counts[name] and not (counts[name] == 1 and len(values) == len(table.attack_eps)):
            raise ValueError(f"row {row.name!r}, column {name!r}: {len(values)} numbers for {counts[name]} cells")
        if any(not 0 <= value <= 100 for value in values):
            raise ValueError(f"row {row.name!r}, column {name!r}: accuracies are in %, got {shown(list(values))}")
    if unknown := row.published_notes.keys() - counts.keys():
        raise ValueError(f"row {row.name!r} has notes on numbers of an unknown column {shown(min(unknown))}")
