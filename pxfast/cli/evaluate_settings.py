"""What the commands of ``pxfast evaluate`` share: options, their settings, and a table printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import parse_budget

if TYPE_CHECKING:
    from ..evaluation.preparation import Settings
    from ..evaluation.results import Table

TrainOption = Annotated[
    bool, typer.Option("--train/--no-train", help="Train missing classifiers first, or leave their rows out.")
]
TrainBudgetOption = Annotated[
    str | None, typer.Option(help="Training time of each missing classifier, such as 45m or 2h; 30m by default.")
]
RowsOption = Annotated[str | None, typer.Option(help="Only these rows of the table, by name: a,b.")]


def settings_of(
    *,
    images: int | None,
    model: str | None,
    classifiers: Path | None,
    train: bool,
    train_budget: str | None = None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    runner: str,
    batch_size: int,
) -> Settings:
    """The options that all these commands share, as settings. From here on the process has so many ``threads``."""
    from ..evaluation.classifier_needs import TRAIN_BUDGET
    from ..evaluation.preparation import Settings
    from .machine import engine_on, use_threads

    use_threads(threads)
    return Settings(
        images=images,
        model=model,
        classifiers=classifiers,
        train=train,
        train_budget=TRAIN_BUDGET if train_budget is None else parse_budget(train_budget),
        device=device,
        engine=engine_on(device, engine),
        precision=precision,
        threads=threads,
        runner=runner,
        shard=batch_size,
    )


def print_table(table: Table, out: Path, *, as_json: bool) -> None:
    """Print a table; of one that the protocol has judged the report is written, and its path follows."""
    import dataclasses

    from ..evaluation.given import renewed_report
    from ..evaluation.results import table_path
    from ..evaluation.text import table_text
    from ..evaluation.verdict import row_scores
    from .output import print_json

    judged = any(row_scores(table, row) for row in table.rows)
    report = renewed_report(out) if judged else None
    if as_json:
        files = [table_path(out, table.name), *([] if report is None else [report])]
        print_json({**dataclasses.asdict(table), "files": files})
    else:
        print(table_text(table) + ("" if report is None else f"\n{report}"))
