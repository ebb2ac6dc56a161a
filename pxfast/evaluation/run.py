"""Computing a table: every cell by itself, the table's file written anew after each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import find_attack
from ..attacks.resumable import library_versions
from ..base.checks import (
    check_count,
    check_flag,
    check_instance,
    check_number,
    check_optional_count,
    check_path,
    check_precision,
    check_text,
    put,
)
from ..base.files import check_encodable, claimed, file_digest, made_folder
from ..base.machine import parse_device, processor_name, usable_processors
from ..base.progress import Progress, progress_of
from ..base.streams import shown_name
from ..base.version import __version__
from ..classifiers.weights import read_notes
from ..data.datasets import load_dataset
from ..engines.registry import check_engine
from ..engines.settings import DecodeSettings
from ..pixelcnn.files import read_metadata
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.shipped import SHIPPED, model_for, model_path
from .classifier_needs import TRAIN_BUDGET, ClassifierNeed
from .defences import Context, Description, describe
from .networks import ClassifierFile, ModelFiles
from .pipeline import SHARD, Computed, Pipeline, attack_code
from .preflight import check_libraries, check_table
from .results import Cell, Column, Row, Table, read_table, table_path, write_table
from .runners import RUNNERS, make_runner
from .specification import ColumnSpecification, RowSpecification, TableSpecification
from .store import Store, digest


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a table is computed, where its specification leaves that open.

    images: how many of the test images, the first ones; None: the specification's number. model: as
    :func:`pxfast.load` takes it; None: the shipped one of the images' shape. classifiers: the folder of classifiers;
    None: a folder of that name in the output folder. train: whether missing classifiers are trained, for
    ``train_budget`` seconds each. device, engine, precision: for networks and purification. threads: of the CPU
    engine. runner: a name that :data:`pxfast.evaluation.runners.RUNNERS` knows. shard: images computed and kept at a
    time. Raises TypeError or ValueError for other values.
    """

    images: int | None = None
    model: str | os.PathLike[str] | None = None
    classifiers: str | os.PathLike[str] | None = None
    train: bool = True
    train_budget: float = TRAIN_BUDGET
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    runner: str = "local"
    shard: int = SHARD

    def __post_init__(self) -> None:
        parse_device(self.device)
        if check_text("runner", self.runner) not in RUNNERS:
            raise ValueError(f"unknown runner {self.runner!r}; known: {', '.join(RUNNERS)}")
        for name in ("model", "classifiers"):
            if getattr(self, name) is not None:
                check_path(name, getattr(self, name))
        if self.model is not None:
            SHIPPED.path(self.model)
        put(
            self,
            images=check_optional_count("images", self.images, 1),
            train=check_flag("train", self.train),
            train_budget=check_number("train_budget", self.train_budget, 0.0, ends="()"),
            engine=check_engine(self.engine),
            precision=check_precision(self.precision),
            threads=DecodeSettings(threads=self.threads).threads,
            shard=check_count("shard", self.shard, 1),
        )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What cells are computed from: images uint8 (N, C, H, W) and labels int64 (N,), the classifier of each row that
    has one, why the others have none, the density model's file, and the way to results.
    """

    images: Tensor
    labels: Tensor
    classifiers: dict[str, ClassifierFile]
    missing: dict[str, str]
    density: Path
    pipeline: Pipeline


def prepare(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings,
    progress: bool = False,
) -> Prepared:
    """Load the data and find or train the classifiers. Raises ValueError or FileNotFoundError for what is not there."""
    count = specification.images if settings.images is None else settings.images
    if count < 1:
        raise ValueError(f"images must be positive, got {count}")
    check_encodable(out)
    device = str(parse_device(settings.device))
    images, labels = load_dataset(specification.dataset, root, train=False)
    if count > len(images):
        raise ValueError(f"{specification.dataset} has {len(images)} test images, and {count} were asked for")
    if bool((labels < 0).any()):
        raise ValueError(f"{specification.dataset} has no labels: an evaluation needs a subfolder for each class")
    images, labels = images[:count], labels[:count]
    shape = tuple(images.shape[1:])
    density = model_path(settings.model, shape)
    fingerprint = model_fingerprint(model_for(density, shape))
    folder = Path(out) / "classifiers" if settings.classifiers is None else Path(settings.classifiers)
    files: dict[ClassifierNeed, ClassifierFile] = {}
    classifiers, missing = {}, {}
    for row in specification.rows:
        need = ClassifierNeed.of(specification.dataset, row)
        if need not in files:
            path = need.find(folder)
            if path is None and settings.train:
                path = need.train(root, folder, settings.train_budget, settings.device, progress)
            if path is None:
                missing[row.name] = f"there is no {need.file_name}"
                continue
            files[need] = ClassifierFile.of(path, shape, specification.dataset)
        classifiers[row.name] = files[need]
    model_files = ModelFiles({file.key: str(file.path) for file in files.values()}, {fingerprint: str(density)})
    context = Context(fingerprint, shape[0], settings.engine, settings.precision, device)
    runner = make_runner(settings.runner, model_files, device, settings.threads)
    store = Store(Path(out) / "store")
    store.remove_leftovers()
    pipeline = Pipeline(store, runner, context, shard=settings.shard)
    return Prepared(images, labels, classifiers, missing, density, pipeline)


def evaluate_table(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
    progress: bool = False,
) -> Table:
    """Compute a table's cells, and write them to ``out``/tables/NAME.json after each; give the table.

    specification: of the table. root: torchvision's root folder. out: the output folder, made when it isn't there.
    settings: None for the defaults. rows, columns: names of those to compute; None: all. progress: show bars.

    What an earlier run of the same settings wrote for other rows and columns stays in the file;
    a table of other settings is replaced, since the store still has everything it was made of.
    Raises ValueError, TypeError or FileNotFoundError for bad input, BlockingIOError where another process computes the
    same table.
    """
    check_instance("specification", specification, TableSpecification)
    settings = Settings() if settings is None else check_instance("settings", settings, Settings)
    check_path("out", out)
    check_libraries(settings.runner)
    check_table(specification.chosen(rows, columns), out)
    chosen = specification.chosen(rows, columns)
    prepared = prepare(chosen, root, out, settings, check_flag("progress", progress))
    path = table_path(out, specification.name)
    with made_folder(path.parent), claimed(path):  # two runs of other cells would each drop the other's
        run = TableRun(specification, prepared)
        run.adopt(earlier_table(specification, out), chosen)
        places = list(run.places(chosen))
        with progress_bars(prepared.pipeline, len(places), progress) as cells:
            write_table(out, run.table())
            for row, column, eps in places:
                cells.entitle(f"{row.name}, {column.name}" + ("" if eps is None else f", eps {eps}"))
                run.compute(row, column, eps)
                write_table(out, run.table())
                cells.advance()
        return run.table()


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
        for row in specification.rows:
            try:
                self.defences[row.name] = [describe(each, prepared.pipeline.context) for each in row.defences]
            except FileNotFoundError as error:  # of a network that a defence needs
                self.missing[row.name] = str(error)
        self.models: list[dict[str, Any]] = [_density_entry(prepared), *_classifier_entries(prepared)]
        self.settings: dict[str, Any] = self._settings()
        self.earlier_rates: list[dict[str, Any]] = []

    def places(self, chosen: TableSpecification) -> Iterator[tuple[RowSpecification, ColumnSpecification, int | None]]:
        """The cells that can be computed, row by row, each row's strongest attacks last."""
        for row in chosen.rows:
            if row.name not in self.missing:
                for column in sorted(chosen.columns, key=lambda column: column.strongest):
                    for eps in column.eps(chosen.attack_eps):
                        yield row, column, eps

    def adopt(self, earlier: Table | None, chosen: TableSpecification) -> None:
        """Take over what an earlier run of the same settings says of cells that this one is not to compute."""
        if earlier is None or earlier.settings != self.settings or earlier.images != len(self.prepared.images):
            return
        classifiers = {row: model["sha256"] for model in earlier.models for row in model.get("rows") or ()}
        now = {row: file.key for row, file in self.prepared.classifiers.items()}
        rows, columns = ({entry.name for entry in entries} for entries in (chosen.rows, chosen.columns))
        for cell in earlier.cells:
            same = cell.row not in rows or (
                cell.column not in columns and now.get(cell.row) == classifiers.get(cell.row)
            )
            if same:
                self.cells[cell.row, cell.column, cell.eps] = cell
        self.missing |= {row.name: row.missing for row in earlier.rows if row.missing and row.name not in rows}
        for model in earlier.models:
            kept = [row for row in model.get("rows") or () if row not in rows]
            if kept:
                self.models.append({**model, "rows": kept})
        self.earlier_rates = earlier.rates

    def compute(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> None:
        """Add a cell. A strongest attack needs the row's attacks of this eps to be there."""
        published: dict[str, Any] = {
            "published": self.specification.published(row, column, eps),
            "published_note": self.specification.published_note(row, column, eps),
        }
        place = row.name, column.name, eps
        if column.strongest:
            if (cell := self._strongest(row, eps)) is not None:
                self.cells[place] = dataclasses.replace(cell, column=column.name, **published)
            return
        correct, seconds = self._correct(row, column, eps)
        self.cells[place] = Cell.counted(*place, correct, len(self.prepared.images), seconds=seconds, **published)

    def _correct(self, row: RowSpecification, column: ColumnSpecification, eps: int | None) -> tuple[int, float]:
        """How many images are classified rightly, and the seconds that finding out took, in whichever run."""
        prepared, pipeline = self.prepared, self.prepared.pipeline
        classifier, defences = prepared.classifiers[row.name], self.defences[row.name]
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
                    through=defences if column.knows_defences else (),
                )
            )
        defended, rest = pipeline.defended(steps[-1].values, defences)
        predicted = pipeline.predicted(defended.values, classifier, rest)
        correct = int((predicted.values == prepared.labels).sum())
        return correct, round(sum(step.seconds for step in (*steps, defended, predicted)), 3)

    def _strongest(self, row: RowSpecification, eps: int | None) -> Cell | None:
        """The row's cell of the attack that leaves the least accuracy, saying which one it is; None without attacks."""
        attacks = [column for column in self.specification.columns if column.attack is not None]
        attacks = [column for column in attacks if eps in column.eps(self.specification.attack_eps)]
        there = [column for column in attacks if (row.name, column.name, eps) in self.cells]
        if not there:
            return None
        cells = {column.label: self.cells[row.name, column.name, eps] for column in there}
        label = min(cells, key=lambda label: cells[label].correct)
        notes = label
        if absent := [column.label for column in attacks if column not in there]:
            notes += f"; without {', '.join(absent)}, not computed yet"
        return dataclasses.replace(cells[label], seconds=None, notes=notes)

    def table(self) -> Table:
        """The table as far as it is."""
        specification = self.specification
        everything = list(self.places(specification))
        order = {(row.name, column.name, eps): i for i, (row, column, eps) in enumerate(everything)}
        cells = [self.cells[place] for place in sorted(self.cells, key=lambda place: order.get(place, -1))]
        rates = self.prepared.pipeline.rates()
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
        """What all cells depend on but for the classifiers, JSON-able."""
        specification, pipeline = self.specification, self.prepared.pipeline
        return {
            "data": digest(self.prepared.images, self.prepared.labels),
            "attack eps": list(specification.attack_eps),
            "attacks": {
                column.name: {
                    "attack": column.attack,
                    "options": column.options,
                    "knows the defences": column.knows_defences,
                    "source": find_attack(column.attack).source,
                    "code": attack_code(column.attack),
                }
                for column in specification.columns
                if column.attack is not None
            },
            "defences": {name: defences for name, defences in self.defences.items() if defences},
            "seed": specification.seed,
            "device": pipeline.context.device,
            "libraries": library_versions(),
        }


def _density_entry(prepared: Prepared) -> dict[str, Any]:
    _, notes = read_metadata(prepared.density)
    return {
        "role": "density model",
        "name": prepared.density.stem,
        "sha256": file_digest(prepared.density),
        "notes": notes,
    }


def _classifier_entries(prepared: Prepared) -> list[dict[str, Any]]:
    """An entry for each classifier's file, with the rows that it stands in."""
    rows: dict[ClassifierFile, list[str]] = {}
    for row, file in prepared.classifiers.items():
        rows.setdefault(file, []).append(row)
    return [
        {
            "role": "classifier",
            "name": file.path.stem,
            "sha256": file.key,
            "rows": names,
            "notes": read_notes(file.path),
        }
        for file, names in rows.items()
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
