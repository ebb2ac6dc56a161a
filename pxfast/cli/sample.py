"""``pxfast sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import EngineOption, ForceOption


def sample(
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="How many images.")] = 64,
    model: Annotated[str, typer.Option(help="A shipped model's name or a model file.")] = "cifar10",
    grid: Annotated[Path | None, typer.Option(help="A PNG of all of them, side by side.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .npy file of the images: uint8 (N, C, H, W).")] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Images in a row of the grid.")] = None,
    enlarge: Annotated[int, typer.Option(min=1, help="Screen pixels to the side of a pixel in the grid.")] = 2,
    seed: Annotated[int, typer.Option(help="0 to 2^64 - 1; image i of a seed is always the same.")] = 0,
    first: Annotated[int, typer.Option(help="The number of the first image.")] = 0,
    temperature: Annotated[float, typer.Option(help="1 draws from the model itself; less, likelier images.")] = 1.0,
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    force: ForceOption = False,
) -> None:
    """Draw images from a model."""
    import numpy as np

    from ..base.files import whole_file
    from ..data.image_files import check_output, write_png
    from ..data.image_grid import image_grid
    from ..pixeldefend.sampling import sample as draw

    if grid is None and out is None:
        raise ValueError("nothing would be written: pass --grid, --out or both")
    for path, suffix in ((grid, ".png"), (out, ".npy")):
        if path is not None:
            check_output(path, suffix, force=force)
    images = draw(
        count,
        model=model,
        seed=seed,
        first=first,
        temperature=temperature,
        engine=engine,
        precision=precision,
        progress=True,
    )
    if out is not None:
        with whole_file(out) as temporary, open(temporary, "wb") as file:
            np.save(file, images.numpy())
    if grid is not None:
        with whole_file(grid) as temporary:
            write_png(image_grid(images, columns, enlarge=enlarge), temporary)
