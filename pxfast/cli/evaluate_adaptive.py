"""``pxfast evaluate adaptive``: purifiers judged by the protocol, those of a table or one of the user's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evaluate_settings import RowsOption, TrainBudgetOption, TrainOption, print_table, settings_of
from .options import (
    ClassifierOption,
    ClassifiersOption,
    ColumnsOption,
    DeviceOption,
    DownloadOption,
    EngineOption,
    EpsOption,
    JsonOption,
    ModelOption,
    OptionalBatchSizeOption,
    OptionalEvaluatedDatasetOption,
    OptionalImagesOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    RunnerOption,
    ThreadsOption,
    parse_names,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..evaluation.preparation import Settings
    from ..evaluation.results import Table
    from ..evaluation.specification import TableSpecification

BLOCK = 256  # images predicted and kept at a time
TABLES = {"cifar10": "adaptive", "fashion-mnist": "adaptive-fashion-mnist"}  # by data set
_PROTOCOL = """

Every row is judged by one protocol: several runs of what is random, the strongest attack of every image, the classifier
without a defence beside it, budgets and sanity checks. With --purifier the table has this one row.

--columns takes attacks with options, too: bpda:steps=100,spsa. --classifier and --surrogate may be module:name. Without
--purifier --dataset chooses the table, of cifar10 or of fashion-mnist.
"""
ADAPTIVE = {
    "adaptive": "CIFAR-10: PixelDefend and ADP under attackers who know them, with eps 8; or --purifier, any purifier."
    + _PROTOCOL,
    "adaptive-fashion-mnist": "Fashion-MNIST: the same as adaptive --dataset fashion-mnist." + _PROTOCOL,
}

PurifierOption = Annotated[
    str | None,
    typer.Option(
        help="Judge this purifier instead: package.module:name, a function that gives it, a class or the module; or "
        "pixeldefend:eps=16, adp ..."
    ),
]
SurrogateOption = Annotated[
    list[str] | None,
    typer.Option("--surrogate", help="Another classifier to transfer from, a file or module:name. May be repeated."),
]
RunsOption = Annotated[int | None, typer.Option(min=1, help="Evaluations of a random purifier; by default 10.")]


def adaptive(
    context: typer.Context,
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    images: OptionalImagesOption = None,
    classifiers: ClassifiersOption = None,
    train: TrainOption = True,
    train_budget: TrainBudgetOption = None,
    model: ModelOption = None,
    rows: RowsOption = None,
    columns: ColumnsOption = None,
    purifier: PurifierOption = None,
    dataset: OptionalEvaluatedDatasetOption = None,
    classifier: ClassifierOption = None,
    surrogates: SurrogateOption = None,
    eps: EpsOption = None,
    runs: RunsOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runner: RunnerOption = "local",
    batch_size: OptionalBatchSizeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    settings = settings_of(
        images=images,
        model=model,
        classifiers=classifiers,
        train=train,
        train_budget=train_budget,
        engine=engine,
        precision=precision,
        device=device,
        threads=threads,
        runner=runner,
        batch_size=batch_size or BLOCK,
    )
    if runner != "local":
        raise ValueError(f"the protocol runs here: --runner must be local, got {runner}")
    if classifier is not None and classifiers is not None:
        raise ValueError("--classifier stands in for all of --classifiers: pass one of them")
    if classifier is not None and train_budget is not None:
        raise ValueError("--classifier stands in for all that could be trained: it takes no --train-budget")
    unused = {"--rows": rows, "--classifiers": classifiers, "--train-budget": train_budget}
    for flag, value in unused.items():
        if purifier is not None and value is not None:
            raise ValueError(f"{flag} is of the table: --purifier takes no {flag}")
    specification, images_of = table_of(str(context.info_name), dataset, judged=purifier is not None)
    specification = specification if eps is None else specification.at_eps(eps)
    specification = specification if runs is None else dataclasses.replace(specification, runs=runs)
    if download:
        from ..data.datasets import fetch_dataset

        fetch_dataset(images_of, root, progress=not quiet)
    names = parse_names(columns)
    if purifier is None:
        table = judged_rows(specification, root, out, settings, parse_names(rows), names, classifier, surrogates, quiet)
    else:
        table = judged_purifier(
            purifier, specification, images_of, root, out, settings, names, classifier, surrogates, quiet
        )
    print_table(table, out, as_json=as_json)


def table_of(command: str, dataset: str | None, *, judged: bool) -> tuple[TableSpecification, str]:
    """The table that a command judges, and the data set. judged: whether a purifier is given, to which only the table's
    eps, runs and number of images matter. ValueError for a data set that there is no table of.
    """
    from ..evaluation.specification import load_table

    own = next(name for name, table in TABLES.items() if table == command)
    if dataset is None or dataset == own:
        return load_table(command), own
    if command != TABLES["cifar10"]:
        raise ValueError(f"{command} is of {own}: it takes no --dataset {dataset}")
    if dataset not in TABLES and not judged:
        raise ValueError(f"--dataset {dataset} needs --purifier: there are tables of {' and '.join(TABLES)} alone")
    return load_table(TABLES.get(dataset, command)), dataset


def judged_rows(
    specification: TableSpecification,
    root: Path | None,
    out: Path,
    settings: Settings,
    rows: list[str] | None,
    columns: list[str] | None,
    classifier: str | None,
    surrogates: list[str] | None,
    quiet: bool,
) -> Table:
    """The rows of a table."""
    from ..base.machine import parse_device
    from ..evaluation.run import evaluate_table

    place = parse_device(settings.device)
    return evaluate_table(
        specification,
        root,
        out,
        settings,
        rows=rows,
        columns=columns,
        classifier=None if classifier is None else network(classifier).to(place),
        surrogates=networks(surrogates or [], place),
        progress=not quiet,
    )


def judged_purifier(
    purifier: str,
    specification: TableSpecification,
    dataset: str,
    root: Path | None,
    out: Path,
    settings: Settings,
    columns: list[str] | None,
    classifier: str | None,
    surrogates: list[str] | None,
    quiet: bool,
) -> Table:
    """A purifier and the classifier alone. specification: whose eps, runs and number of images are taken."""
    from ..base.machine import parse_device
    from ..data.datasets import image_shape
    from ..evaluation.protocol import RUNS
    from ..evaluation.referee import referee
    from ..evaluation.request import PROTOCOL
    from ..evaluation.results import read_table, table_path
    from .attack import default_classifier
    from .own_module import load_model

    place = parse_device(settings.device)
    module = load_model(purifier).to(place) if named_module(purifier) else purifier
    if classifier is None:
        classifier = default_classifier(dataset, image_shape(dataset))
    own = {text.partition(":")[0]: text for text in PROTOCOL}
    verdict = referee(
        network(classifier).to(place),
        module,
        dataset,
        out=out,
        root=root,
        attacks=None if columns is None else [own.get(name, name) for name in columns],
        surrogates=networks(surrogates or [], place),
        eps=specification.attack_eps[0],
        images=specification.images if settings.images is None else settings.images,
        runs=specification.runs or RUNS,
        density=settings.model,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        batch_size=settings.shard,
        report=False,
        progress=not quiet,
    )
    return read_table(table_path(out, verdict.table))


def networks(texts: list[str], place: torch.device) -> dict[str, nn.Module]:
    """Classifiers by name, on a device. ValueError for two of one name."""
    names = [each if named_module(each) else Path(each).stem for each in texts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"expected surrogates of different names, got {twice[0]!r} twice")
    return {name: network(each).to(place) for name, each in zip(names, texts, strict=True)}


def named_module(text: str) -> bool:
    """Whether a text names something in a Python module, not a defence with settings nor a file that is there."""
    from ..evaluation.request import NAMED_DEFENCES

    return ":" in text and "=" not in text and text.partition(":")[0] not in NAMED_DEFENCES and not Path(text).exists()


def network(text: str) -> nn.Module:
    """A classifier in eval mode: of a Python module, or shipped, or of a file."""
    from ..classifiers import load_classifier
    from .own_module import load_model

    return load_model(text) if named_module(text) else load_classifier(text)
