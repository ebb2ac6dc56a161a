"""``pxfast evaluate``: the paper's tables, computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evaluate_adaptive import ADAPTIVE, adaptive
from .evaluate_classifier import classifier
from .evaluate_settings import (
    RowsOption,
    TrainBudgetOption,
    TrainOption,
    print_table,
    settings_of,
)
from .groups import add_command, command_group
from .options import (
    BatchSizeOption,
    ClassifiersOption,
    ColumnsOption,
    DeviceOption,
    DownloadOption,
    EngineOption,
    JsonOption,
    LbfgsImagesOption,
    LbfgsStartsOption,
    ModelOption,
    OptionalImagesOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    RunnerOption,
    ThreadsOption,
    TrainImagesOption,
    parse_names,
)

if TYPE_CHECKING:
    from ..evaluation.preparation import Settings

REPRODUCTION = "reproduction"
FIGURES = {"cifar10": "table2", "fashion-mnist": "table1"}  # the tables whose attacks are drawn, by data set
TABLES = {
    "table1": "The paper's Table 1: Fashion-MNIST, eps 8 and 25, purification with eps 32.",
    "table2": "The paper's Table 2: CIFAR-10, eps 2, 8 and 16, purification with eps 16.",
    REPRODUCTION: "The reproduction's ten attacks on CIFAR-10, and violins of bits/dim by attack.",
}

app: typer.Typer = command_group(
    """Compute the paper's tables and figures, beside the published numbers.

    Results go to OUT/tables and OUT/figures; whatever took time to compute is kept in OUT/store and never computed
    twice, so that a killed run goes on where it was, and a run over more images takes up those that are there. Another
    --batch-size computes anew.
    """
)


def named_table(
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
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runner: RunnerOption = "local",
    batch_size: BatchSizeOption = 64,
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
        batch_size=batch_size,
    )
    run_table(
        str(context.info_name), root, out, settings, rows, columns, download=download, as_json=as_json, quiet=quiet
    )


def table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table's file, TOML.")],
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
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runner: RunnerOption = "local",
    batch_size: BatchSizeOption = 64,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """A table of one's own; its form is described in pxfast/evaluation/specification.py."""
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
        batch_size=batch_size,
    )
    run_table(file, root, out, settings, rows, columns, download=download, as_json=as_json, quiet=quiet)


def figures(
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    dataset: Annotated[
        list[str] | None, typer.Option(help="cifar10 or fashion-mnist; may be repeated. Default: both.")
    ] = None,
    images: OptionalImagesOption = None,
    classifiers: ClassifiersOption = None,
    model: ModelOption = None,
    columns: ColumnsOption = None,
    train_images: TrainImagesOption = 1000,
    lbfgs_images: LbfgsImagesOption = 10,
    lbfgs_starts: LbfgsStartsOption = 1,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runner: RunnerOption = "local",
    batch_size: BatchSizeOption = 64,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The paper's figures: images, bits/dim, errors, p-values, ROC curves, samples, L-BFGS-B; from the tables' work.

    The columns are the attacks to draw. A --model is of one data set.
    """
    from ..data.datasets import fetch_dataset, load_dataset
    from ..evaluation.figures.evaluate import check_figures, evaluate_figures
    from ..evaluation.specification import load_table
    from .output import print_files

    for name in dataset or FIGURES:
        if name not in FIGURES:
            raise ValueError(f"unknown data set {name!r}; known: {', '.join(FIGURES)}")
    settings = settings_of(
        images=images,
        model=model,
        classifiers=classifiers,
        train=False,
        engine=engine,
        precision=precision,
        device=device,
        threads=threads,
        runner=runner,
        batch_size=batch_size,
    )
    names = list(dict.fromkeys(dataset or FIGURES))
    for name in names:  # of all of them, before the first one's work
        check_figures(load_table(FIGURES[name]), out, settings, parse_names(columns), lbfgs_images)
    for name in names if download else ():
        fetch_dataset(name, root, progress=not quiet)
    if len(names) > 1:
        for name in names:
            load_dataset(name, root, train=False)
    written = []
    for name in names:
        written += evaluate_figures(
            load_table(FIGURES[name]),
            root,
            out,
            settings,
            columns=parse_names(columns),
            train_images=train_images,
            lbfgs_images=lbfgs_images,
            lbfgs_starts=lbfgs_starts,
            progress=not quiet,
        )
    print_files(written, as_json=as_json)


def run_table(
    table: str | Path,
    root: Path | None,
    out: Path,
    settings: Settings,
    rows: str | None,
    columns: str | None,
    *,
    download: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute a table, by name or of a file, and print it."""
    from ..data.datasets import fetch_dataset
    from ..evaluation.run import evaluate_table
    from ..evaluation.specification import load_table

    specification = load_table(table)
    if download:
        fetch_dataset(specification.dataset, root, progress=not quiet)
    result = evaluate_table(
        specification,
        root,
        out,
        settings,
        rows=parse_names(rows),
        columns=parse_names(columns),
        progress=not quiet,
    )
    print_table(result, out, as_json=as_json)
    if table == REPRODUCTION and result.finished:
        from ..evaluation.figures.evaluate import evaluate_violins

        evaluate_violins(specification, root, out, settings, progress=not quiet)


for _name, _help in TABLES.items():
    add_command(app, _name, named_table, help=_help)
for _name, _help in ADAPTIVE.items():
    add_command(app, _name, adaptive, help=_help)
add_command(app, "table", table)
add_command(app, "classifier", classifier)
add_command(app, "figures", figures)
