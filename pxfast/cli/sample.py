"""``pxfast sample``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .options import (
    MODEL,
    DeviceOption,
    EngineOption,
    ForceOption,
    GridOption,
    JsonOption,
    OptionalOutOption,
    PrecisionOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
)


def sample(
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="How many images.")] = 64,
    model: Annotated[str, MODEL] = "cifar10",
    grid: GridOption = None,
    out: OptionalOutOption = None,
    per_row: Annotated[int | None, typer.Option(min=1, help="Images in a row of the grid.")] = None,
    enlarge: Annotated[
        int | None, typer.Option(min=1, help="Screen pixels to the side of a pixel in the grid; 2 by default.")
    ] = None,
    seed: SeedOption = 0,
    first: Annotated[int, typer.Option(help="The number of the first image.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="0.001 to 4; 1 draws from the model itself; less, likelier images.")
    ] = 1.0,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Draw images from a model.

    OUT is a .npy file of them, uint8 (N, C, H, W). --seed is 0 to 2^64 - 1; image i of a seed is always the same.
    """
    import contextlib

    import torch

    from ..base.files import check_outputs, output_files
    from ..base.machine import parse_device
    from ..base.streams import note
    from ..data.image_files import write_npy, write_png
    from ..data.image_grid import grid_size, image_grid
    from ..data.image_writers import check_output
    from ..engines.registry import select
    from ..pixelcnn.files import read_metadata
    from ..pixelcnn.shipped import SHIPPED
    from ..pixeldefend.sampling import sample as draw
    from .machine import engine_on, use_threads
    from .output import print_json

    if grid is None and out is None:
        raise ValueError("nothing would be written: pass --grid, --out or both")
    for flag, value in (("--per-row", per_row), ("--enlarge", enlarge)):
        if value is not None and grid is None:
            raise ValueError(f"{flag} is of --grid, which is not given")
    side = 2 if enlarge is None else enlarge
    for path, suffix in ((grid, ".png"), (out, ".npy")):
        if path is not None:
            check_output(path, suffix)
    files = [path for path in (out, grid) if path is not None]
    if grid is not None:
        grid_size(count, read_metadata(SHIPPED.path(model))[0].image_size, per_row, enlarge=side)
    check_outputs(*files, force=force)
    use_threads(threads)
    place = parse_device(device)
    chosen = select(engine_on(device, engine), device=place)
    if precision == "auto":
        precision = chosen.best_precision()
    started = time.perf_counter()
    with output_files(*files, force=force) as temporaries:
        with torch.cuda.device(place) if place.type == "cuda" else contextlib.nullcontext():
            images = draw(
                count,
                model=model,
                seed=seed,
                first=first,
                temperature=temperature,
                engine=chosen.name,
                precision=precision,
                threads=threads,
                progress=not quiet,
            )
        seconds = time.perf_counter() - started
        if out is not None:
            write_npy(images.numpy(), temporaries[0])
        if grid is not None:
            write_png(image_grid(images, per_row, enlarge=side), temporaries[-1])
    if as_json:
        print_json(
            {
                "images": count,
                "seconds": seconds,
                "images_per_second": count / seconds,
                "engine": chosen.name,
                "precision": precision,
                "files": files,
            }
        )
    else:
        names = ", ".join(map(str, files))
        speed = f"{seconds:.1f} s, {count / seconds:.3g} images/s"
        note(f"{names}: {count} images in {speed}, {chosen.name}, {precision}", quiet=quiet)
