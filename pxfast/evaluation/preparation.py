"""What a table is computed from: its settings, the images, the classifiers and the way to results."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from torch import Tensor, nn

from ..base.checks import (
    check_count,
    check_flag,
    check_number,
    check_optional_count,
    check_path,
    check_precision,
    check_text,
    put,
)
from ..base.files import check_encodable
from ..base.machine import parse_device
from ..classifiers.inspection import check_classifier
from ..data.datasets import class_count, first_images, load_dataset
from ..engines.registry import check_engine
from ..engines.settings import DecodeSettings
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.shipped import SHIPPED, model_for, model_path
from ..tensors.batches import FIXED_BATCH
from ..tensors.store import Store
from .classifier_needs import TRAIN_BUDGET, ClassifierNeed
from .defences import Context
from .given import function_key
from .networks import ClassifierFile, ClassifierModule, EvaluatedClassifier, ModelFiles
from .pipeline import SHARD, Pipeline
from .runners import RUNNERS, make_runner
from .specification import TableSpecification


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
    has one, why the others have none, the density model's file, None where no defence can have one, the way to
    results, and where the networks lie.
    """

    images: Tensor
    labels: Tensor
    classifiers: dict[str, EvaluatedClassifier]
    missing: dict[str, str]
    density: Path | None
    pipeline: Pipeline
    files: ModelFiles


def prepare(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings,
    progress: bool = False,
    given: nn.Module | None = None,
) -> Prepared:
    """Load the data and find or train the classifiers. Raises ValueError or FileNotFoundError for what is not there.

    given: a classifier that all rows take instead of their own; it is tried first.
    """
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
    images, labels = (first_images(specification.dataset, each, count) for each in (images, labels))
    shape = tuple(images.shape[1:])
    density = None
    try:
        density = model_path(settings.model, shape)
    except ValueError:  # none is shipped of such images
        if settings.model is not None or any(row.needs_density for row in specification.rows):
            raise
    folder = Path(out) / "classifiers" if settings.classifiers is None else Path(settings.classifiers)
    if given is None:
        classifiers, missing, files = _found(specification, root, folder, shape, settings, progress)
    else:
        module = _tried(given, images, labels, specification.dataset, Path(out) / "store")
        classifiers, missing = {row.name: module for row in specification.rows}, {}
        files = ModelFiles({}, {}, {module.key: given})
    context = make_context(density, shape, device, settings)
    pipeline = make_pipeline(out, files, density, context, settings)
    files = dataclasses.replace(files, densities=density_paths(density, context))
    return Prepared(images, labels, classifiers, missing, density, pipeline, files)


def _found(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    folder: Path,
    shape: tuple[int, ...],
    settings: Settings,
    progress: bool,
) -> tuple[dict[str, EvaluatedClassifier], dict[str, str], ModelFiles]:
    """The rows' classifiers from the folder, trained where they are missing; why rows have none; and their files."""
    files: dict[ClassifierNeed, ClassifierFile] = {}
    classifiers: dict[str, EvaluatedClassifier] = {}
    missing: dict[str, str] = {}
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
            need.check(path)
        classifiers[row.name] = files[need]
    return classifiers, missing, ModelFiles({file.key: str(file.path) for file in files.values()}, {})


def _tried(given: nn.Module, images: Tensor, labels: Tensor, dataset: str, store: Path) -> ClassifierModule:
    """A classifier of one's own, tried on the first images."""
    first = images[:FIXED_BATCH]
    logits = check_classifier(given, first, labels[:FIXED_BATCH], classes=class_count(dataset))
    return ClassifierModule(given, function_key(given, first, logits, Store(store)), type(given).__name__)


def make_context(density: Path | None, shape: tuple[int, ...], device: str, settings: Settings) -> Context:
    """What defences share. density: the density model's file, or None. shape: (C, H, W) of the images. device: where
    networks run, 'cpu', 'cuda' or 'cuda:N'; that of the settings may be 'auto'.
    """
    fingerprint = None if density is None else model_fingerprint(model_for(density, shape))
    return Context(fingerprint, shape[0], settings.engine, settings.precision, device)


def density_paths(density: Path | None, context: Context) -> dict[str, str]:
    """The density model's file by the name that recipes give it; empty where there is none."""
    return {} if density is None or context.density is None else {context.density: str(density)}


def make_pipeline(
    out: str | os.PathLike[str], classifiers: ModelFiles, density: Path | None, context: Context, settings: Settings
) -> Pipeline:
    """The way to results that are kept in ``out``/store. classifiers: without density models."""
    files = dataclasses.replace(classifiers, densities=density_paths(density, context))
    runner = make_runner(settings.runner, files, context.device, settings.threads)
    store = Store(Path(out) / "store")
    store.remove_leftovers()
    return Pipeline(store, runner, context, shard=settings.shard)
