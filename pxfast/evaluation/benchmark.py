"""Any classifier behind the defences and under the attacks: a table of accuracies with intervals."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attacks import find_attack
from ..base.checks import (
    check_count,
    check_flag,
    check_names,
    check_path,
    check_seed,
    check_text,
)
from ..base.streams import note
from ..classifiers.contract import class_labels
from ..classifiers.inspection import check_classifier, check_module
from ..pixelcnn.shipped import model_path
from ..tensors.batches import FIXED_BATCH
from ..tensors.store import Store
from . import defences as kinds
from .given import Dataset, function_key, labelled_images, output_folder, place_of, renewed_report
from .networks import ClassifierModule, EvaluatedClassifier, ModelFiles, Models
from .pipeline import SHARD
from .preparation import Prepared, Settings, density_paths, make_context, make_pipeline
from .request import DEFAULT_ATTACKS, DEFAULT_DEFENCES, requested_columns, requested_eps, requested_rows
from .results import NAME, Table, read_tables
from .run import compute
from .specification import RowSpecification, TableSpecification
from .text import table_text


@dataclasses.dataclass(frozen=True)
class BenchmarkTable(Table):
    """What :func:`pxfast.benchmark` gives: a :class:`Table` that prints itself, and where it is kept.

    out: the output folder. report: the page of all tables in it; None where none was written.
    """

    out: Path
    report: Path | None

    def __str__(self) -> str:
        return table_text(self)

    def to_json(self) -> str:
        """The table as JSON: the fields of :class:`Table`, ``columns``, ``rows`` and ``cells`` among them."""
        fields = {field.name for field in dataclasses.fields(Table)}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name in fields}
        return json.dumps(values, indent=1, allow_nan=False)


def benchmark(
    model: nn.Module,
    dataset: Dataset = "cifar10",
    *,
    out: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    defences: Iterable[str] | None = None,
    attacks: Iterable[str] | None = None,
    eps: int | Sequence[int] | None = None,
    images: int = 1000,
    name: str | None = None,
    density: str | os.PathLike[str] | None = None,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    batch_size: int = SHARD,
    seed: int = 0,
    report: bool = True,
    progress: bool = True,
) -> BenchmarkTable:
    """How accurate a classifier is, clean and attacked, without defences and behind them, with 95 % intervals.

    model: the classifier, any module in eval mode that takes floating images (N, C, H, W) in [0, 1], with its
    preprocessing inside, and gives logits (N, classes). What it gives is checked first
    (:func:`pxfast.classifiers.check_classifier`). It stays as it is.
    dataset: 'cifar10' or 'fashion-mnist', whose test images lie under ``root``, torchvision's root folder; a folder of
    image files with a folder for each class; or images (N, C, H, W), uint8 or floating in [0, 1], of 1 or 3 channels,
    and their labels, integers (N,). images: how many of them, the first ones, or of a folder evenly spread ones; all,
    where there are fewer.
    defences: rows of the table, each 'none', 'pixeldefend', 'adaptive-pixeldefend', 'adp' or 'feature-squeezing', with
    settings as in 'pixeldefend:eps=8', several joined by '+' in the order in which images meet them, with 'flip' as the
    last for two views (:class:`pxfast.Defended`). None: these five, but for those that images of this shape have no
    network for.
    attacks: columns, each a name of :data:`pxfast.attacks.ATTACKS`, with options as in 'bim:steps=20', or 'paper' or
    'adaptive' for those of the tables. None: fgsm, bim, deepfool, blind-pgd and bpda-eot. Attacks on defences know
    those of their row; others are made on the classifier alone, unless their options have knows_defences=true. The
    table has clean images and the strongest attack, too. eps: of the attacks, in 0..255, one or several; None: 8. For
    attacks of which none is bounded it has to be None.
    out: the output folder, made when it isn't there. Every step is kept in it, under a key of all that it depends on,
    the model's weights and code included: a killed run goes on where it was, and no other model gets its results.
    Several may share a folder. name: of the model, as shown; None: its class's.
    density: of PixelDefend, as :func:`pxfast.load` takes it; None: the shipped one of the images' shape. device:
    'auto' is where the model is; another one is an error. engine, precision, threads: of PixelDefend. batch_size:
    images computed and kept at a time; another one computes anew. seed: of random attacks. report: whether
    ``out``/report.html is written, with all tables of the folder. progress: show bars and what is being checked.

    Raises TypeError or ValueError for bad input and for a model that breaks the contract, FileNotFoundError for data
    that are not there, ImportError where an attack needs an extra, and BlockingIOError where another process computes
    the same table; all of these before work starts.
    """
    for what, value in (("report", report), ("progress", progress)):
        check_flag(what, value)
    check_module(model)
    place = place_of(model, device)
    folder = output_folder(out)
    title = type(model).__name__ if name is None else check_text("name", name)
    if not NAME.fullmatch(title):
        raise ValueError(f"name must be of letters, digits, spaces and any of _.+- alone, at most 100, got {title!r}")
    settings = Settings(
        images=check_count("images", images, 1),
        model=None if density is None else check_path("density", density),
        train=False,
        device=str(place),
        engine=engine,
        precision=precision,
        threads=threads,
        shard=check_count("batch_size", batch_size, 1),
    )
    columns = requested_columns(DEFAULT_ATTACKS if attacks is None else attacks)
    used = [find_attack(column.attack, **column.options) for column in columns if column.attack is not None]
    bounded = any(attack.bounded for attack in used)
    if eps is not None and not bounded:
        names = ", ".join(column.name for column in columns if column.attack is not None)
        raise ValueError(f"eps must be None where no attack is bounded, got {eps!r} for {names or 'no attacks'}")
    bounds = requested_eps(8 if eps is None else eps) if bounded else ()
    chosen = DEFAULT_DEFENCES if defences is None else check_names("defences", defences)
    requested_rows(chosen, title, 3)  # their names and settings, before any file is read; eps by channels comes later
    check_seed(seed)
    data = labelled_images(dataset, root, images)
    rows = requested_rows(chosen, title, data.images.shape[1])
    specification = TableSpecification(
        name="benchmark",
        title=f"{data.title}: {title}",
        caption=f"Accuracy in % of {title} on {len(data.images)} images. Attacks change a value by at most eps of 255, "
        "and are made on the classifier alone, unless their notes say otherwise.",
        dataset=data.name,
        images=len(data.images),
        columns=columns,
        rows=rows,
        attack_eps=bounds,
        seed=seed,
    )
    specification.check_installed()
    note(f"checking {title} on {min(len(data.images), FIXED_BATCH)} images", quiet=not progress)
    logits = check_classifier(
        model,
        data.images[:FIXED_BATCH],
        data.labels[:FIXED_BATCH],
        classes=data.classes,
        gradients=any(attack.needs_gradient for attack in used),
    )
    class_labels(data.labels, len(data.labels), classes=logits.shape[1])
    shape = tuple(data.images.shape[1:])
    path = _density(density, shape, rows, chosen=defences is not None)
    context = make_context(path, shape, str(place), settings)
    missing = _missing(
        rows,
        context,
        ModelFiles({}, density_paths(path, context)),
        threads,
        data.images[:1],
        chosen=defences is not None,
    )
    if report and folder.is_dir():
        read_tables(folder)  # a broken one would end the report, after all the work
    key = function_key(model, data.images[:FIXED_BATCH], logits, Store(folder / "store"))
    classifier = ClassifierModule(model, key, title)
    files = ModelFiles({}, density_paths(path, context), {key: model})
    pipeline = make_pipeline(folder, files, path, context, settings)
    classifiers: dict[str, EvaluatedClassifier] = {row.name: classifier for row in rows if row.name not in missing}
    prepared = Prepared(data.images, data.labels, classifiers, missing, path, pipeline, files)
    specification = dataclasses.replace(specification, name=f"{data.name}-{title}"[:90].rstrip() + f"-{key[:8]}")
    table = compute(specification, specification, prepared, folder, progress)
    page = renewed_report(folder) if report else None
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(Table)}
    return BenchmarkTable(**fields, out=folder, report=page)


def _density(
    density: str | os.PathLike[str] | None, shape: tuple[int, ...], rows: Sequence[RowSpecification], *, chosen: bool
) -> Path | None:
    """The density model's file; None where no row needs one, or none is there for rows that nobody has chosen."""
    if density is None and not any(row.needs_density for row in rows):
        return None
    try:
        return model_path(density, shape, "density")
    except ValueError:
        if chosen or density is not None:
            raise
        return None


@torch.no_grad()
def _missing(
    rows: Sequence[RowSpecification],
    context: kinds.Context,
    files: ModelFiles,
    threads: int | None,
    image: Tensor,
    *,
    chosen: bool,
) -> dict[str, str]:
    """Why rows can't be computed, by name. Each row's defences are tried on an image; ``chosen`` ones raise errors."""
    models = Models(files, context.device, threads)
    found = {}
    for row in rows:
        defended = image.to(models.device).float() / 255.0
        try:
            for defence in row.defences:
                defended = kinds.build(kinds.describe(defence, context), models)(defended)
        except (ValueError, FileNotFoundError) as error:
            if chosen:
                raise
            found[row.name] = str(error)
    return found
