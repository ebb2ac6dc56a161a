"""The referee: any purifier under one protocol of attacks that know it; several runs, budgets and sanity checks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..attacks import BlindPGD
from ..attacks.resumable import library_versions
from ..base.checks import check_count, check_eps, check_flag, check_instance, check_path, check_seed, check_text
from ..base.files import claimed, made_folder, whole_file
from ..base.progress import progress_of
from ..base.streams import note
from ..classifiers.inspection import check_classifier, check_module
from ..defences.defended import Defended
from ..tensors.batches import FIXED_BATCH
from ..tensors.store import Store, digest
from . import defences as kinds
from .given import Dataset, labelled_images, output_folder, place_of, renewed_report
from .judge import CLEAN, STRONGEST, Job, Judge
from .networks import ModelFiles, Models
from .preparation import Settings, density_paths, make_context
from .protocol import (
    ALONE,
    BLOCK,
    CHECK_IMAGES,
    RUNS,
    allowed,
    attack_of,
    beside,
    cell_of,
    check_labels,
    checking,
    from_alone,
    label_of,
    rates_of,
    transfer_label,
    transfers,
)
from .purifier_check import check_purifier
from .request import PROTOCOL, plain_name, requested_columns, requested_rows
from .results import NAME, UNDEFENDED, Column, Row, Table, table_path, write_table
from .specification import ColumnSpecification
from .table_run import machine
from .verdict import Verdict


def referee(
    classifier: nn.Module,
    purifier: nn.Module | str = "pixeldefend",
    dataset: Dataset = "cifar10",
    *,
    out: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    attacks: Iterable[str] | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    eps: int = 8,
    images: int = 64,
    check_images: int = CHECK_IMAGES,
    runs: int = RUNS,
    name: str | None = None,
    density: str | os.PathLike[str] | None = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    batch_size: int = BLOCK,
    seed: int = 0,
    report: bool = True,
    progress: bool = True,
) -> Verdict:
    """Judge a purifier: what is left of a classifier's accuracy behind it, under the strongest attack of every image.

    classifier: any module in eval mode that takes floating images (N, C, H, W) in [0, 1] and gives logits
    (N, classes). purifier: any module of the purifier protocol (:mod:`pxfast.defences.protocol`), or defences by name
    as :func:`pxfast.benchmark` takes them, such as 'pixeldefend:eps=16' or 'adp'. It is tried first. dataset, root,
    images: as in :func:`pxfast.benchmark`.
    attacks: as there; None: blind PGD (transfer from the undefended classifier), BPDA, BPDA + EOT, APGD through BPDA,
    full gradient, both joint attacks and SPSA, without those that the purifier does not allow. surrogates: other
    classifiers by name, such as an adversarially trained one, whose adversarial images are tried as well. eps: in
    0..255. runs: how often a random defence is evaluated; another one is evaluated once.
    check_images: how many of the images the sanity checks are made on, the first ones. name: of the purifier, as shown.
    density: of PixelDefend by name, as :func:`pxfast.load` takes it; None: the shipped one of the images' shape.
    batch_size: images predicted and kept at a time; attacked ones are kept as they are finished. seed: of all random
    numbers. The rest is as in :func:`pxfast.benchmark`.

    ``out`` keeps what is finished, so that a killed run goes on; it gets a table of the report, and the verdict in
    ``out``/verdicts. Raises TypeError or ValueError for bad input and for a classifier or purifier that breaks its
    contract, FileNotFoundError for data that are not there, BlockingIOError where another process does the same.
    """
    for what, value in (("report", report), ("progress", progress)):
        check_flag(what, value)
    check_module(classifier)
    if not isinstance(purifier, nn.Module):
        check_text("purifier", purifier)
    _check_density(density, purifier)
    place, folder = place_of(classifier, device), output_folder(out)
    bound, many, limit = check_eps(eps), check_count("runs", runs, 1), check_count("check_images", check_images, 1)
    shard, count = check_count("batch_size", batch_size, 1), check_count("images", images, 1)
    seed = check_seed(seed)
    columns = [each for each in requested_columns(PROTOCOL if attacks is None else attacks) if each.attack is not None]
    data = labelled_images(dataset, root, count)
    settings = Settings(
        images=count,
        model=density,
        train=False,
        device=str(place),
        engine=engine,
        precision=precision,
        threads=threads,
        shard=shard,
    )
    title, parts, views = _parts(purifier, tuple(data.images.shape[1:]), place, settings, name)
    others = {
        check_text("surrogates", key): check_instance(key, value, nn.Module)
        for key, value in (surrogates or {}).items()
    }
    note(f"checking {title} on {min(len(data.images), FIXED_BATCH)} images", quiet=not progress)
    first = data.images[:FIXED_BATCH]
    for network in (classifier, *others.values()):
        check_classifier(network, first, data.labels[:FIXED_BATCH], classes=data.classes)
    for part in parts:
        check_purifier(part, first)
    check_labels([*map(label_of, columns), *map(transfer_label, others)])
    store = Store(folder / "store")
    store.remove_leftovers()
    judge = Judge(store, data.images, data.labels, bound, seed, many, shard)
    defended = judge.target(Defended(classifier, parts, seed=seed, views=views))
    path = table_path(folder, f"referee-{data.name}-{title}"[:85].rstrip() + f"-{defended.key[:8]}")
    with made_folder(path.parent), claimed(path):
        chosen, absent = allowed(columns, parts)
        if not chosen:
            raise ValueError(f"no attack is left: {'; '.join(absent.values())}")
        static = judge.target(Defended(classifier, [nn.Identity()], seed=seed))
        own, alone = [from_alone(job, static) for job in _jobs(chosen)], _jobs(beside(columns)[0])
        jobs = [*own, *transfers({key: judge.target(Defended(each, [nn.Identity()])) for key, each in others.items()})]
        work = sum(judge.work(len(data.images), len(each)) for each in (jobs, alone))
        with progress_of(work + checking(len(data.images), limit), shown=progress) as bar:
            judge.bar = bar
            scores, found = judge.row(defended, jobs)
            without, _ = judge.row(static, alone)
            checks = judge.checks(defended, jobs, found, limit)
        kept = {
            "data": digest(data.images, data.labels),
            "attacks": {job.label: judge.described(job.attack) for job in jobs},
            "left out": absent,
            "seed": seed,
            "runs": judge.runs(defended),
            "sanity checks": [dataclasses.asdict(check) for check in checks],
            "device": str(place),
            "libraries": library_versions(),
        }
        kind = type(classifier).__name__
        facts = (kind, title, data.title, bound, judge.runs(defended), len(data.images))
        verdict = Verdict(*facts, scores, without, checks, kept, folder, path.stem, None)
        write_table(folder, _table(verdict, columns, data.name, defended.key, static.key))
    if report:
        verdict = dataclasses.replace(verdict, report=renewed_report(folder))
    written = folder / "verdicts" / f"{path.stem}.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(written) as temporary:
        temporary.write_text(verdict.to_json() + "\n", encoding="utf-8")
    return verdict


def _check_density(density: str | os.PathLike[str] | None, purifier: nn.Module | str) -> None:
    """TypeError or ValueError for a density model that is none, or that the purifier would not take."""
    if density is None:
        return
    check_path("density", density)
    if isinstance(purifier, nn.Module):
        got = f"a {type(purifier).__name__}"
    else:
        got = repr(purifier)
        if requested_rows((purifier,), "classifier", 3)[0].needs_density:
            return
    raise ValueError(f"density (--model) is of 'pixeldefend' by name: the purifier, {got}, takes none")


def _parts(
    purifier: nn.Module | str, shape: tuple[int, ...], place: torch.device, settings: Settings, name: str | None
) -> tuple[str, list[nn.Module], str]:
    """What the purifier is called, its modules in eval mode, and the views.

    ValueError for an unknown one, or a name of others.
    """
    if isinstance(purifier, nn.Module):
        title, parts, views = type(purifier).__name__, [purifier], "one"
    else:
        (row,) = requested_rows((purifier,), "classifier", shape[0])
        if not row.defences:
            raise ValueError("expected a purifier, got 'none': the classifier alone stands beside every purifier")
        path = None
        if row.needs_density:
            from ..pixelcnn.shipped import model_path

            path = model_path(settings.model, shape, "density")
        context = make_context(path, shape, str(place), settings)
        models = Models(ModelFiles({}, density_paths(path, context)), str(place), settings.threads)
        title, views = plain_name(row.technique), row.views
        parts = [kinds.build(kinds.describe(each, context), models) for each in row.defences]
    title = title if name is None else check_text("name", name)
    if not NAME.fullmatch(title):
        raise ValueError(f"name must be of letters, digits, spaces and any of _.+- alone, at most 100, got {title!r}")
    return title, parts, views


def _jobs(columns: list[ColumnSpecification]) -> list[Job]:
    return [Job(label_of(column), attack_of(column)) for column in columns]


def _table(verdict: Verdict, columns: list[ColumnSpecification], dataset: str, defended: str, static: str) -> Table:
    """The verdict as a table of the report. columns: of the attacks, those that were left out among them."""
    names = {CLEAN: plain_name(CLEAN), **{label_of(column): column.name for column in columns}}
    names |= {label: plain_name(label) for label in verdict.settings["attacks"] if label not in names}
    names = {label: name for label, name in names.items() if label == CLEAN or label in verdict.settings["attacks"]}
    names[STRONGEST] = "strongest"
    rows = {"defended": verdict.defended, "static": verdict.static}
    there = {score.attack for score in verdict.static}
    counted = f"by the majority of {verdict.runs} runs" if verdict.runs > 1 else "in one run"
    return Table(
        name=verdict.table,
        title=f"{verdict.dataset}: {verdict.purifier} before the referee",
        caption=f"Accuracy in % {counted}, on {verdict.images} images, eps {verdict.eps}.",
        dataset=dataset,
        images=verdict.images,
        source={},
        columns=[Column(name, label) for label, name in names.items()],
        rows=[
            Row("defended", verdict.classifier, verdict.purifier, checks=list(verdict.checks)),
            Row("static", verdict.classifier, UNDEFENDED),
        ],
        cells=[
            cell_of(row, names[score.attack], None if score.attack == CLEAN else verdict.eps, score)
            for row, scores in rows.items()
            for score in scores
        ],
        models=[
            {"role": "defended classifier", "name": verdict.classifier, "sha256": defended, "rows": ["defended"]},
            {"role": "classifier", "name": verdict.classifier, "sha256": static, "rows": ["static"]},
        ],
        settings={
            **verdict.settings,
            "attacks": {
                names[label]: {**settings, "knows the defences": settings["attack"] != BlindPGD.name}
                for label, settings in verdict.settings["attacks"].items()
            },
            "runs": {"defended": verdict.runs, "static": 1},
            "left out": {
                "defended": verdict.settings["left out"],
                "static": {name: ALONE for label, name in names.items() if label not in there},
            },
        },
        machine=machine(),
        rates=rates_of(verdict.defended),
        finished=True,
    )
