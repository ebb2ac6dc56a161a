"""``pxfast report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, JsonOption, OptionalOutOption


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An output folder of pxfast evaluate, finished or not.")
    ],
    out: OptionalOutOption = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Write an evaluation's tables and figures as one HTML page that needs no network: OUT, or report.html in DIR."""
    from ..evaluation.report import write_report
    from .output import print_files

    print_files([write_report(folder, out, force=force)], as_json=as_json)
