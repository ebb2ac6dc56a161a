"""Tables whose rows are judged by the protocol: row by row, the table's file written anew after each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..attacks import BlindPGD
from ..base.files import claimed, made_folder
from ..base.progress import progress_of
from ..classifiers.inspection import check_classifier
from ..data.datasets import class_count
from ..defences.defended import Defended
from ..defences.protocol import is_stochastic
from ..tensors.batches import FIXED_BATCH
from . import protocol
from .defences import build, find_kind
from .judge import Job, Judge, Target
from .networks import Models
from .preparation import Prepared, Settings, prepare
from .request import plain_name
from .results import Check, Table, table_path, write_table
from .specification import ColumnSpecification, RowSpecification, TableSpecification
from .table_run import TableRun, earlier_table


def with_classifiers_alone(specification: TableSpecification, chosen: TableSpecification) -> TableSpecification:
    """The chosen rows, and beside them those of the same classifiers without a defence."""
    names = {row.name for row in chosen.rows}
    needs = {(row.architecture, row.training) for row in chosen.rows}
    rows = [
        row
        for row in specification.rows
        if row.name in names or (not row.defences and (row.architecture, row.training) in needs)
    ]
    return dataclasses.replace(chosen, rows=tuple(rows))


def with_transfers(specification: TableSpecification, names: list[str]) -> TableSpecification:
    """The table with a column for each surrogate, before the strongest attack. ValueError for a name that is there."""
    own = [
        ColumnSpecification(plain_name(protocol.transfer_label(name)), protocol.transfer_label(name), BlindPGD.name)
        for name in names
    ]
    columns = list(specification.columns)
    place = next(i for i, column in enumerate(columns) if column.strongest)
    columns[place:place] = own
    protocol.check_labels(column.label for column in columns if column.attack is not None)
    protocol.check_labels(column.name for column in columns)
    return dataclasses.replace(specification, columns=tuple(columns))


def judge_table(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    rows: list[str] | None,
    classifier: nn.Module | None,
    surrogates: Mapping[str, nn.Module],
    progress: bool,
) -> Table:
    """Judge the rows of a table with runs; see :func:`pxfast.evaluation.evaluate_table`."""
    specification = with_transfers(specification, list(surrogates))
    if classifier is not None:
        kind = type(classifier).__name__
        named = tuple(dataclasses.replace(row, network=kind) for row in specification.rows)
        specification = dataclasses.replace(specification, rows=named)
    chosen = with_classifiers_alone(specification, specification.chosen(rows, None))
    prepared = prepare(chosen, root, out, settings, progress, classifier)
    first, labels = prepared.images[:FIXED_BATCH], prepared.labels[:FIXED_BATCH]
    for network in surrogates.values():
        check_classifier(network, first, labels, classes=class_count(specification.dataset))
    path = table_path(out, specification.name)
    with made_folder(path.parent), claimed(path):  # two runs of other rows would each drop the other's
        run = JudgedRun(specification, prepared, settings, surrogates, given=classifier is not None)
        run.adopt(earlier_table(specification, out), chosen)
        todo = [row for row in chosen.rows if row.name not in run.missing]
        with progress_of(sum(map(run.work, todo)), shown=progress) as bar:
            run.judge.bar = bar
            write_table(out, run.table())
            for row in todo:
                bar.entitle(row.name)
                run.judge_row(row)
                write_table(out, run.table())
        return run.table()


class JudgedRun(TableRun):
    """A table in the making whose rows are judged, each as a whole.

    surrogates: other classifiers, whose columns the table has. given: whether all rows have one classifier instead of
    their own.
    """

    def __init__(
        self,
        specification: TableSpecification,
        prepared: Prepared,
        settings: Settings,
        surrogates: Mapping[str, nn.Module],
        *,
        given: bool,
    ) -> None:
        super().__init__(specification, prepared)
        self.checks: dict[str, list[Check]] = {}
        self.own_rates: list[dict[str, Any]] = []
        self.networks: Models = Models(prepared.files, prepared.pipeline.context.device, settings.threads)
        self.eps: int = specification.attack_eps[0]
        most, seed = specification.runs or 1, specification.seed
        store = prepared.pipeline.store
        self.judge: Judge = Judge(store, prepared.images, prepared.labels, self.eps, seed, most, settings.shard)
        self.sources: dict[str, Target] = {}  # by the names of their columns
        for name, network in surrogates.items():
            target = self.judge.target(Defended(network, [nn.Identity()]))
            self.sources[plain_name(protocol.transfer_label(name))] = target
            self.models.append({"role": "surrogate", "name": name, "sha256": target.key})
        attacks = [column for column in specification.columns if column.attack and column.name not in self.sources]
        self.strongest: str = next(column.name for column in specification.columns if column.strongest)
        others = (column for column in specification.columns if not column.strongest)
        self.clean: str = next(column.name for column in others if column.attack is None)
        self.attacks: dict[str, list[ColumnSpecification]] = {}  # that can be made on each row
        absent: dict[str, dict[str, str]] = {}
        runs: dict[str, int] = {}
        for row in specification.rows:
            examples = [find_kind(each["kind"]).example() for each in row.defences]
            found = protocol.allowed(attacks, examples) if examples else protocol.beside(attacks)
            self.attacks[row.name], absent[row.name] = found
            if not examples:
                absent[row.name] |= dict.fromkeys(self.sources, protocol.ALONE)
            if not self.jobs_on(row):
                absent[row.name][self.strongest] = "no attack is left"
            runs[row.name] = most if any(map(is_stochastic, examples)) else 1
        self.settings.update(
            {
                "runs": runs,
                "left out": absent,
                "sanity checks on": min(protocol.CHECK_IMAGES, len(prepared.images)),
                "surrogates": {name: target.key for name, target in self.sources.items()},
            }
        )
        if given:
            self.settings["one classifier"] = next(iter(prepared.classifiers.values())).key

    def places(self, chosen: TableSpecification) -> Iterator[tuple[RowSpecification, ColumnSpecification, int | None]]:
        """The cells of the rows that can be judged."""
        for row in chosen.rows:
            if row.name not in self.missing:
                for column in chosen.columns:
                    if column.name not in self.settings["left out"][row.name]:
                        yield row, column, None if column.name == self.clean else self.eps

    def jobs_on(self, row: RowSpecification) -> dict[str, Job]:
        """The attacks on a row, by the names of their columns."""
        columns = {column.name: column for column in self.specification.columns}
        jobs = {column.name: Job(column.label, protocol.attack_of(column)) for column in self.attacks[row.name]}
        if row.defences:
            jobs |= {name: Job(columns[name].label, BlindPGD(), source) for name, source in self.sources.items()}
        return jobs

    def work(self, row: RowSpecification) -> int:
        """How many images are attacked and predicted for a row."""
        count, jobs = len(self.prepared.images), self.jobs_on(row)
        return self.judge.work(count, len(jobs)) + (protocol.checking(count) if row.defences and jobs else 0)

    def judge_row(self, row: RowSpecification) -> None:
        """Add a row's cells and, where it has defences, its sanity checks."""
        classifier = self.networks.classifier(self.prepared.classifiers[row.name].key)
        parts = [build(each, self.networks) for each in self.defences[row.name]]
        target = self.judge.target(
            Defended(classifier, parts or [nn.Identity()], seed=self.judge.seed, views=row.views)
        )
        columns = {column.name: column for column in self.specification.columns}
        jobs = self.jobs_on(row)
        if row.defences:
            alone = self.judge.target(Defended(classifier, [nn.Identity()], seed=self.judge.seed))
            jobs = {name: protocol.from_alone(job, alone) for name, job in jobs.items()}
        scores, found = self.judge.row(target, list(jobs.values()))
        names = (self.clean, *jobs, self.strongest)
        for name, score in zip(names, scores, strict=True) if jobs else [(self.clean, scores[0])]:
            eps = None if name == self.clean else self.eps
            self.cells[row.name, name, eps] = protocol.cell_of(
                row.name,
                name,
                eps,
                score,
                **self._published(row, columns[name], eps),
            )
        self.own_rates += protocol.rates_of(scores, f"{row.technique}, ")
        self.checks[row.name] = []
        if parts and jobs:
            self.checks[row.name] += self.judge.checks(target, list(jobs.values()), found, protocol.CHECK_IMAGES)

    def adopt(self, earlier: Table | None, chosen: TableSpecification) -> None:
        super().adopt(earlier, chosen)
        if earlier is not None:
            self.checks |= {row.name: row.checks for row in earlier.rows if row.name in self.earlier_rows}

    def rates(self) -> list[dict[str, Any]]:
        return self.own_rates

    def table(self) -> Table:
        table = super().table()
        rows = [dataclasses.replace(row, checks=self.checks.get(row.name, [])) for row in table.rows]
        return dataclasses.replace(table, rows=rows)
