"""``pxfast evaluate``: the paper's tables, computed anew."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .options import EngineOption, JsonOption, ModelOption, RootOption, parse_budget

app = typer.Typer(no_args_is_help=True, help="Compute the paper's tables and figures.")

REPRODUCTION = "reproduction"
FIGURES = {"cifar10": "table2", "fashion-mnist": "table1"}  # the tables whose attacks are drawn, by data set

OutOption = Annotated[
    Path, typer.Option(help="The output folder, made when it isn't there; a run that was killed goes on in it.")
]


@app.callback()
def root() -> None:
    """Compute the paper's tables and figures, beside the published numbers.

    Results go to OUT/tables and OUT/figures; whatever took time to compute is kept in OUT/store and never computed
    twice, so that a killed run goes on where it was, and a run over more images takes up those that are there.
    """


def names(text: str | None) -> list[str] | None:
    """'a,b' as a list; None as None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def run_table(
    table: str | Path,
    root: Path | None,
    out: Path,
    settings: dict[str, object],
    rows: str | None,
    columns: str | None,
    train_budget: str,
    as_json: bool,
) -> None:
    """Compute a table and print it."""
    from ..evaluation.run import Settings, evaluate_table
    from ..evaluation.specification import load_table
    from ..evaluation.text import table_text

    chosen = Settings(**settings, train_budget=parse_budget(train_budget))
    progress = sys.stderr.isatty()
    result = evaluate_table(
        load_table(table), root, out, chosen, rows=names(rows), columns=names(columns), progress=progress
    )
    print(json.dumps(dataclasses.asdict(result), indent=1) if as_json else table_text(result))
    if table == REPRODUCTION and result.finished:
        from ..evaluation.figures.evaluate import evaluate_violins

        evaluate_violins(load_table(table), root, out, chosen, progress=progress)


def table_command(name: str | None) -> Callable[..., None]:
    """The command of a table of the package, or, with None, of one whose file is an argument."""

    def command(
        table: Annotated[Path, typer.Argument(metavar="FILE", help="A table's file, TOML.")],
        out: OutOption,
        root: RootOption = None,
        images: Annotated[
            int | None, typer.Option(min=1, help="Only the first so many test images; by default what the table says.")
        ] = None,
        classifiers: Annotated[
            Path | None, typer.Option(help="The folder of trained classifiers; by default OUT/classifiers.")
        ] = None,
        train: Annotated[
            bool, typer.Option("--train/--no-train", help="Train missing classifiers first, or leave their rows out.")
        ] = True,
        train_budget: Annotated[
            str, typer.Option(help="Training time of each missing classifier, such as 45m or 2h.")
        ] = "30m",
        model: ModelOption = None,
        rows: Annotated[str | None, typer.Option(help="Only these rows, by name: a,b.")] = None,
        columns: Annotated[str | None, typer.Option(help="Only these columns, by name: a,b.")] = None,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
        engine: EngineOption = "auto",
        precision: Annotated[str, typer.Option(help="Of purification: auto, fp32 or bf16.")] = "auto",
        runner: Annotated[str, typer.Option(help="Where the work is done: local, or ray.")] = "local",
        shard: Annotated[
            int, typer.Option(min=1, help="Images computed and kept at a time; more for a GPU or many cores.")
        ] = 64,
        as_json: JsonOption = False,
    ) -> None:
        settings = {
            "images": images,
            "model": model,
            "classifiers": classifiers,
            "train": train,
            "device": device,
            "engine": engine,
            "precision": precision,
            "runner": runner,
            "shard": shard,
        }
        run_table(table, root, out, settings, rows, columns, train_budget, as_json)

    if name is None:
        return command

    def named(*arguments: object, **options: object) -> None:
        command(name, *arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    named.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return named


app.command("table1", help="The paper's Table 1: Fashion-MNIST, eps 8 and 25, purification with eps 32.")(
    table_command("table1")
)
app.command("table2", help="The paper's Table 2: CIFAR-10, eps 2, 8 and 16, purification with eps 16.")(
    table_command("table2")
)
app.command("adaptive", help="CIFAR-10: PixelDefend and ADP under attacks that know them, with eps 8.")(
    table_command("adaptive")
)
app.command("adaptive-fashion-mnist", help="The same on Fashion-MNIST.")(table_command("adaptive-fashion-mnist"))
app.command(REPRODUCTION, help="The reproduction's ten attacks on CIFAR-10, and violins of bits/dim by attack.")(
    table_command(REPRODUCTION)
)
app.command("table", help="A table of one's own; its form is described in pxfast/evaluation/specification.py.")(
    table_command(None)
)


@app.command()
def figures(
    out: OutOption,
    root: RootOption = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="cifar10 or fashion-mnist; may be repeated. Default: both.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many test images; 500 unless given.")
    ] = None,
    classifiers: Annotated[
        Path | None, typer.Option(help="The folder of trained classifiers; by default OUT/classifiers.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model file, of one data set; by default the shipped one.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Only these attacks, by the names of the columns: a,b.")] = None,
    train_images: Annotated[
        int, typer.Option(min=1, help="Training images that p-values compare with, where none are shipped.")
    ] = 1000,
    lbfgs_images: Annotated[int, typer.Option(min=0, help="Images purified by L-BFGS-B, too.")] = 10,
    lbfgs_starts: Annotated[int, typer.Option(min=1, help="Its random starts per image; the paper's: 100.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="Of purification: auto, fp32 or bf16.")] = "auto",
    runner: Annotated[str, typer.Option(help="Where the work is done: local, or ray.")] = "local",
    shard: Annotated[
        int, typer.Option(min=1, help="Images computed and kept at a time; more for a GPU or many cores.")
    ] = 64,
) -> None:
    """The paper's figures: images, bits/dim, errors, p-values, ROC curves, samples, L-BFGS-B; from the tables' work."""
    from ..evaluation.figures.evaluate import evaluate_figures
    from ..evaluation.run import Settings
    from ..evaluation.specification import load_table

    for name in dataset or FIGURES:
        if name not in FIGURES:
            raise ValueError(f"unknown data set {name!r}; known: {', '.join(FIGURES)}")
    settings = Settings(
        images=images,
        model=model,
        classifiers=classifiers,
        train=False,
        device=device,
        engine=engine,
        precision=precision,
        runner=runner,
        shard=shard,
    )
    for name in dataset or FIGURES:
        written = evaluate_figures(
            load_table(FIGURES[name]),
            root,
            out,
            settings,
            columns=names(columns),
            train_images=train_images,
            lbfgs_images=lbfgs_images,
            lbfgs_starts=lbfgs_starts,
            progress=sys.stderr.isatty(),
        )
        print("\n".join(str(path) for path in written))
