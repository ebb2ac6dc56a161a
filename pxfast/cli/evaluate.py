"""``pxfast evaluate``: the paper's tables, computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evaluate_classifier import classifier
from .evaluate_purifier import PurifierOption, RunsOption, SurrogateOption, judge
from .groups import add_command, command_group
from .options import (
    BatchSizeOption,
    ClassifierOption,
    ClassifiersOption,
    ColumnsOption,
    DeviceOption,
    DownloadOption,
    EngineOption,
    EpsOption,
    EvaluatedDatasetOption,
    JsonOption,
    LbfgsImagesOption,
    LbfgsStartsOption,
    ModelOption,
    OptionalBatchSizeOption,
    OptionalImagesOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    RunnerOption,
    ThreadsOption,
    TrainImagesOption,
    parse_budget,
    parse_names,
)

if TYPE_CHECKING:
    from ..evaluation.preparation import Settings

REPRODUCTION = "reproduction"
TRAIN_BUDGET = "30m"
SHARD, BLOCK = 64, 256  # images computed at a time, in a table and by the referee
FIGURES = {"cifar10": "table2", "fashion-mnist": "table1"}  # the tables whose attacks are drawn, by data set
TABLES = {
    "table1": "The paper's Table 1: Fashion-MNIST, eps 8 and 25, purification with eps 32.",
    "table2": "The paper's Table 2: CIFAR-10, eps 2, 8 and 16, purification with eps 16.",
    "adaptive-fashion-mnist": "Fashion-MNIST: the table of adaptive.",
    REPRODUCTION: "The reproduction's ten attacks on CIFAR-10, and violins of bits/dim by attack.",
}

app: typer.Typer = command_group(
    """Compute the paper's tables and figures, beside the published numbers.

    Results go to OUT/tables and OUT/figures; whatever took time to compute is kept in OUT/store and never computed
    twice, so that a killed run goes on where it was, and a run over more images takes up those that are there. Another
    --batch-size computes anew.
    """
)

TrainOption = Annotated[
    bool, typer.Option("--train/--no-train", help="Train missing classifiers first, or leave their rows out.")
]
TrainBudgetOption = Annotated[str, typer.Option(help="Training time of each missing classifier, such as 45m or 2h.")]
RowsOption = Annotated[str | None, typer.Option(help="Only these rows of the table, by name: a,b.")]


def named_table(
    context: typer.Context,
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    images: OptionalImagesOption = None,
    classifiers: ClassifiersOption = None,
    train: TrainOption = True,
    train_budget: TrainBudgetOption = TRAIN_BUDGET,
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


def adaptive(
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    images: OptionalImagesOption = None,
    classifiers: ClassifiersOption = None,
    train: TrainOption = True,
    train_budget: TrainBudgetOption = TRAIN_BUDGET,
    model: ModelOption = None,
    rows: RowsOption = None,
    columns: ColumnsOption = None,
    purifier: PurifierOption = None,
    dataset: EvaluatedDatasetOption = "cifar10",
    classifier: ClassifierOption = None,
    surrogates: SurrogateOption = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option("--only", help="With --purifier: only this attack, such as bpda:steps=100. May be repeated."),
    ] = None,
    eps: EpsOption = None,
    runs: RunsOption = 10,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    runner: RunnerOption = "local",
    batch_size: OptionalBatchSizeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """CIFAR-10: PixelDefend and ADP under attacks that know them, with eps 8; or --purifier, any purifier.

    With --purifier a protocol judges it: several runs of what is random, the strongest attack of every image, the
    classifier without it, budgets and sanity checks. --dataset, --classifier (which may be module:name too),
    --surrogate, --only, --eps and --runs are of this protocol.
    """
    judged = purifier is not None
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
        batch_size=batch_size or (BLOCK if judged else SHARD),
    )
    if purifier is None:
        if classifier or surrogates or attacks:
            raise ValueError("--classifier, --surrogate and --only need --purifier")
        run_table("adaptive", root, out, settings, rows, columns, download=download, as_json=as_json, quiet=quiet)
        return
    unused = {"--rows": rows, "--columns": columns, "--classifiers": classifiers, "--model": model}
    for flag, value in unused.items():
        if value is not None:
            raise ValueError(f"{flag} is of the table: --purifier takes no {flag}")
    if runner != "local":
        raise ValueError("--purifier runs here: --runner must be local")
    if download:
        from ..data.datasets import fetch_dataset

        fetch_dataset(dataset, root, progress=not quiet)
    judge(
        purifier,
        dataset,
        root,
        out,
        settings,
        classifier=classifier,
        surrogates=surrogates or [],
        attacks=attacks,
        eps=8 if eps is None else eps,
        runs=runs,
        as_json=as_json,
        quiet=quiet,
    )


def table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table's file, TOML.")],
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    images: OptionalImagesOption = None,
    classifiers: ClassifiersOption = None,
    train: TrainOption = True,
    train_budget: TrainBudgetOption = TRAIN_BUDGET,
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
    from ..data.datasets import load_dataset
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


def settings_of(
    *,
    images: int | None,
    model: str | None,
    classifiers: Path | None,
    train: bool,
    train_budget: str = TRAIN_BUDGET,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    runner: str,
    batch_size: int,
) -> Settings:
    """The options that all these commands share, as settings. From here on the process has so many ``threads``."""
    from ..evaluation.preparation import Settings
    from .machine import engine_on, use_threads

    use_threads(threads)
    return Settings(
        images=images,
        model=model,
        classifiers=classifiers,
        train=train,
        train_budget=parse_budget(train_budget),
        device=device,
        engine=engine_on(device, engine),
        precision=precision,
        threads=threads,
        runner=runner,
        shard=batch_size,
    )


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
    import dataclasses

    from ..data.datasets import fetch_dataset
    from ..evaluation.run import evaluate_table
    from ..evaluation.specification import load_table
    from ..evaluation.text import table_text
    from .output import print_json

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
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        print(table_text(result))
    if table == REPRODUCTION and result.finished:
        from ..evaluation.figures.evaluate import evaluate_violins

        evaluate_violins(specification, root, out, settings, progress=not quiet)


for _name, _help in TABLES.items():
    add_command(app, _name, named_table, help=_help)
add_command(app, "adaptive", adaptive)
add_command(app, "table", table)
add_command(app, "classifier", classifier)
add_command(app, "figures", figures)
