"""Options and arguments that several commands of the command line share."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import typer

EngineOption = Annotated[str, typer.Option(help="'auto', or one that `pxfast info` lists.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option(help="A shipped model's name or a model file; by default the shipped one of the images' shape."),
]
RootOption = Annotated[
    Path | None,
    typer.Option(help="torchvision's root folder, for data sets called by name; nothing is downloaded."),
]


def parse_budget(text: str) -> float:
    """'90s', '45m', '2h' or '1h30m' in seconds. ValueError for anything else."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or match is None:
        raise ValueError(f"budget must be a duration such as 45m, 2h or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(number or 0) for number in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def changed(values: Any, **options: Any) -> Any:
    """A dataclass with the options that were given."""
    return dataclasses.replace(values, **{name: value for name, value in options.items() if value is not None})
