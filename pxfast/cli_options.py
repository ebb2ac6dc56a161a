"""Options and arguments that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EngineOption = Annotated[str, typer.Option(help="'auto', or one that `pxfast info` lists.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str | None,
    typer.Option(help="A shipped model's name or a model file; by default the shipped one of the images' shape."),
]
RootOption = Annotated[Path, typer.Option(help="torchvision's root folder; nothing is downloaded.")]
