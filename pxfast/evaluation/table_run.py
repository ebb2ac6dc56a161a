"""A table in the making: every cell by itself, and what it was computed from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

from ..attacks import find_attack
from ..attacks.resumable import library_versions
from ..base.files import file_digest
from ..base.machine import processor_name, usable_processors
from ..base.progress import Progress, progress_of
from ..base.streams import shown_name
from ..base.version import __version__
from ..pixelcnn.files import read_metadata
from ..tensors.store import digest
from .defences import Description, describe
from .pipeline import Computed, Pipeline, attack_code, hidden
from .preparation import Prepared
from .results import Cell, Column, Row, Table, read_table, table_path
from .specification import ColumnSpecification, RowSpecification, TableSpecification

NETWORKS = "networks"  # the setting that says which network a row is of


@contextlib.contextmanager
def progress_bars(pipeline: Pipeline, cells: int, progress: bool) -> Iterator[Progress]:
    """Show how far so many cells are, which is to be told, and below it the images of the step at hand."""
    with (
        progress_of(cells, "cell", shown=progress) as outer,
        progress_of(None, shown=progress, leave=False) as inner,
    ):
        pipeline.report = lambda what, done, total: inner.turn_to(f"  {what}", done, total)
        yield outer


def earlier_table(specification: TableSpecification, out: str | os.PathLike[str]) -> Table | None:
    """The table that an earlier run left, or None when there is none, or none that can be read."""
    try:
        return read_table(table_path(out, specification.name))
    except (FileNotFoundError, ValueError):
        return None


class TableRun:
    """A table in the making: its cells, and what they were computed from."""

    def __init__(self, specification: TableSpecification, prepared: Prepared) -> None:
        self.specification = specification
        self.prepared = prepared
        self.cells: dict[tuple[str, str, int | None], Cell] = {}
        self.missing: dict[str, str] = dict(prepared.missing)
        self.defences: dict[str, list[Description]] = {}
        self.through: dict[str, dict[str, list[Description]]] = {}  # by row and column
        context = prepared.pipeline.context
        for row in specification.rows:
            try:
                self.defences[row.name] = [describe(each, context) for each in row.defences]
                if row.through:
                    self.through[row.name] = {
                        column: [describe(each, context) for each in parts] for column, parts in row.through.items()
                    }
            except FileNotFoundError as error:  # of a network that a defence needs
                self.missing[row.name] = str(error)
        self.models: list[dict[str, Any]] = [*_density_entries(prepared), *_classifier_entries(prepared)]
        self.settings: dict[str, Any] = self._settings()
        self.earlier_rates: list[dict[str, Any]] = []
        self.earlier_rows: set[str] = set()  # that an earlier run has computed, and this one is not to

    def places(self, chosen: TableSpecification) -> Iterator[tuple[RowSpecification, ColumnSpecification, int | None]]:
        """The cells that can be computed, row by row, each row's strongest attacks last."""
        for row in chosen.rows:
            if row.name not in self.missing:
                for column in sorted(chosen.columns, key=lambda column: column.strongest):
                    if not column.applies_to(row):
                        continue
                    for eps in column.eps(chosen.attack_eps):
                        if not column.strongest or self._attacks(row, eps):
                            yield row, column, eps

    def adopt(self, earlier: Table | None, chosen: TableSpecification) -> None:
        """Take over what an earlier run of the same settings says of cells that this one is not to compute.

        Rows and columns that the table no longer has are left behind, rows that were of another network too, and
        published numbers are those of now.
        """
        if earlier is None or earlier.images != len(self.prepared.images):
            return
        if _without_networks(earlier.settings) != _without_networks(self.settings):
            return
        now_of = self.settings[NETWORKS]
        networks = earlier.settings.get(NETWORKS, now_of)  # older tables do not tell
        own_rows = {row.name: row for row in self.specification.rows if networks.get(row.name) == now_of.get(row.name)}
        own_columns = {column.name: column for column in self.specification.columns}
        classifiers = {row: model["sha256"] for model in earlier.models for row in model.get("rows") or ()}
        now = {row: file.key for row, file in self.prepared.classifiers.items()}
        rows, columns = ({entry.name for entry in entries} for entries in (chosen.rows, chosen.columns))
        for cell in earlier.cells:
            same = cell.row not in rows or (
                cell.column not in columns and now.get(cell.row) == classifiers.get(cell.row)
            )
            if same and cell.row in own_rows and cell.column in own_columns:
                published = self._published(own_rows[cell.row], own_columns[cell.column], cell.eps)
                self.cells[cell.row, cell.column, cell.eps] = dataclasses.replace(cell, **published)
        left = self.earlier_rows = own_rows.keys() - rows
        self.missing |= {row.name: row.missing for row in earlier.rows if row.missing and row.name in left}
        for model in earlier.models:
            kept = [row for row in model.get("rows") or () if row in left]
            if kept:
                self.models.append({**model, "rows": kept})
        self.earlier_rates = earlier.rates

    def compute(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> None:
        """Add a cell. A strongest attack needs the row's attacks of this eps to be there."""
        published = self._published(row, column, eps)
        place = row.name, column.name, eps
        if column.strongest:
            if (cell := self._strongest(row, eps)) is not None:
                self.cells[place] = dataclasses.replace(cell, column=column.name, **published)
            return
        correct, seconds = self._correct(row, column, eps)
        self.cells[place] = Cell.counted(*place, correct, len(self.prepared.images), seconds=seconds, **published)

    def _published(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> dict[str, Any]:
        """What a cell says of its published number."""
        return {
            "published": self.specification.published(row, column, eps),
            "published_note": self.specification.published_note(row, column, eps),
        }

    def renew_strongest(self) -> None:
        """Find the strongest attacks that are there once more: other cells of their rows may have come."""
        for row, column, eps in self.places(self.specification):
            if column.strongest and (row.name, column.name, eps) in self.cells:
                self.compute(row, column, eps)

    def _correct(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> tuple[int, float]:
        """How many images are classified rightly, and the seconds that finding out took, in whichever run."""
        prepared, pipeline = self.prepared, self.prepared.pipeline
        classifier, defences = prepared.classifiers[row.name], self.defences[row.name]
        views = {"views": row.views}
        through = defences if column.knows_defences else self.through.get(row.name, {}).get(column.name, ())
        steps = [Computed(prepared.images, 0.0)]
        if column.attack is not None:
            steps.append(
                pipeline.attacked(
                    prepared.images,
                    prepared.labels,
                    classifier,
                    column.attack,
                    eps,
                    options=column.options,
                    seed=self.specification.seed,
                    through=through,
                    **(views if column.knows_defences else {}),
                )
            )
        defended, rest = steps[-1], defences
        if row.views == "one":  # else each view is purified by itself
            defended, rest = pipeline.defended(steps[-1].values, defences)
            steps.append(defended)
        predicted = pipeline.predicted(defended.values, classifier, rest, **views)
        correct = int((predicted.values == prepared.labels).sum())
        return correct, round(sum(step.seconds for step in (*steps, predicted)), 3)

    def _attacks(self, row: RowSpecification, eps: int | None) -> list[ColumnSpecification]:
        """The columns of attacks of this eps that can be made on the row."""
        return [
            column
            for column in self.specification.columns
            if column.attack is not None and column.applies_to(row) and eps in column.eps(self.specification.attack_eps)
        ]

    def _strongest(self, row: RowSpecification, eps: int | None) -> Cell | None:
        """The row's cell of the attack that leaves the least accuracy, saying which one it is; None without attacks."""
        attacks = self._attacks(row, eps)
        there = [column for column in attacks if (row.name, column.name, eps) in self.cells]
        if not there:
            return None
        strongest = min(there, key=lambda column: self.cells[row.name, column.name, eps].correct)
        notes = strongest.label
        if absent := [column.label for column in attacks if column not in there]:
            notes += f"; without {', '.join(absent)}, not computed yet"
        return dataclasses.replace(self.cells[row.name, strongest.name, eps], seconds=None, notes=notes)

    def rates(self) -> list[dict[str, Any]]:
        """What this run did or found, as a table has it."""
        return self.prepared.pipeline.rates()

    def table(self) -> Table:
        """The table as far as it is."""
        specification = self.specification
        everything = list(self.places(specification))
        order = {(row.name, column.name, eps): i for i, (row, column, eps) in enumerate(everything)}
        cells = [self.cells[place] for place in sorted(self.cells, key=lambda place: order.get(place, -1))]
        rates = self.rates()
        names = {rate["what"] for rate in rates}
        return Table(
            name=specification.name,
            title=specification.title,
            caption=specification.caption,
            dataset=shown_name(specification.dataset),
            images=len(self.prepared.images),
            source=specification.source,
            columns=[Column(column.name, column.label, column.note) for column in specification.columns],
            rows=[Row(row.name, row.network, row.technique, self.missing.get(row.name)) for row in specification.rows],
            cells=cells,
            models=self.models,
            settings=self.settings,
            machine=machine(),
            rates=[*(rate for rate in self.earlier_rates if rate["what"] not in names), *rates],
            finished=all(place in self.cells for place in order),
        )

    def _settings(self) -> dict[str, Any]:
        """What all cells depend on but for the classifiers' weights, JSON-able."""
        specification, pipeline = self.specification, self.prepared.pipeline
        return {
            NETWORKS: {
                row.name: f"{row.architecture}, {row.training}" for row in specification.rows if row.architecture
            },
            "data": digest(self.prepared.images, self.prepared.labels),
            "attack eps": list(specification.attack_eps),
            "attacks": {
                column.name: {
                    "attack": column.attack,
                    "options": column.options,
                    "knows the defences": column.knows_defences,
                    "source": find_attack(column.attack).source,
                    "code": attack_code(column.attack),
                    **hidden(find_attack(column.attack, **column.options), tuple(self.prepared.images.shape[1:])),
                }
                for column in specification.columns
                if column.attack is not None
            },
            "defences": {name: defences for name, defences in self.defences.items() if defences},
            "views": {row.name: row.views for row in specification.rows if row.views != "one"},
            "through": self.through,
            "seed": specification.seed,
            "device": pipeline.context.device,
            "libraries": library_versions(),
        }


def _without_networks(settings: dict[str, Any]) -> dict[str, Any]:
    """What a row's cells depend on besides its own network."""
    return {name: value for name, value in settings.items() if name != NETWORKS}


def _density_entries(prepared: Prepared) -> list[dict[str, Any]]:
    """That of the density model, where there is one."""
    if prepared.density is None:
        return []
    _, notes = read_metadata(prepared.density)
    sha256 = file_digest(prepared.density)
    return [{"role": "density model", "name": prepared.density.stem, "sha256": sha256, "notes": notes}]


def _classifier_entries(prepared: Prepared) -> list[dict[str, Any]]:
    """An entry for each classifier, with the rows that it stands in."""
    rows: dict[str, list[str]] = {}
    for row, classifier in prepared.classifiers.items():
        rows.setdefault(classifier.key, []).append(row)
    found = {classifier.key: classifier for classifier in prepared.classifiers.values()}
    return [
        {
            "role": "classifier",
            "name": found[key].name,
            "sha256": key,
            "rows": names,
            "notes": found[key].notes(),
        }
        for key, names in rows.items()
    ]


def machine() -> dict[str, Any]:
    """What this is computed on, JSON-able."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": processor_name(),
        "cores": usable_processors(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pxfast": __version__,
    }
