"""``pxfast report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An output folder of pxfast evaluate, finished or not.")
    ],
    out: Annotated[Path | None, typer.Option(help="The page to write; by default report.html in DIR.")] = None,
    force: ForceOption = False,
) -> None:
    """Write an evaluation's tables and figures as one HTML page that needs no network."""
    from ..evaluation.report import write_report

    print(write_report(folder, out, force=force))
