"""``pxfast purify``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    BatchSizeOption,
    DefenceOption,
    DeviceOption,
    EngineOption,
    EpsOption,
    ForceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    QuietOption,
    SourceArgument,
    ThreadsOption,
    among,
)

if TYPE_CHECKING:
    from torch import Tensor, device, nn

    from ..base.progress import Progress


def purify(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Written whole, as the same kind; images as PNG.")],
    eps: EpsOption = None,
    adaptive: Annotated[
        str | None,
        typer.Option(
            help="'image' or 'sub-pixel': spare the images, or the sub-pixels, that are likely already.",
            autocompletion=among("image", "sub-pixel"),
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="What counts as likely, in bits/dim or bits; by default the paper's 1.8 or 3.2, or 3."),
    ] = None,
    model: ModelOption = None,
    defence: DefenceOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 256,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Move images to the likeliest ones within ±eps: PixelDefend.

    With --defence, images pass that defence instead, or several of them. Of a single one, --eps, --adaptive,
    --threshold and --model are settings, where it has them. --engine and --precision are PixelDefend's.
    """
    from ..base.machine import parse_device
    from ..base.progress import progress_of
    from ..base.streams import note
    from ..data.image_files import open_collection
    from ..data.images import to_grid
    from .machine import engine_on, parse_defences, use_threads
    from .output import print_json

    use_threads(threads)
    collection = open_collection(source)
    defences = parse_defences(
        defence or ["purifier"],
        engine=engine_on(device, engine),
        precision=precision,
        threads=threads,
        eps=eps,
        adaptive=adaptive,
        threshold=threshold,
        model=model,
    )
    place, started = parse_device(device), time.perf_counter()
    with collection.writer(out, force=force) as write, progress_of(len(collection.names), shown=not quiet) as progress:
        for batch in collection.batches(batch_size):
            grid, form = to_grid(batch)
            write(form.images(defended(grid, defences, place, progress)))
    seconds, count = time.perf_counter() - started, len(collection.names)
    facts = {
        "images": count,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "defences": defence or ["purifier"],
        **ran_on(defences),
        "files": [out],
    }
    if as_json:
        print_json(facts)
    else:
        how = "".join(f", {facts[name]}" for name in ("engine", "precision") if facts[name] is not None)
        note(f"{out}: {count} images in {seconds:.1f} s, {count / seconds:.3g} images/s{how}", quiet=quiet)


def defended(grid: Tensor, defences: list[nn.Module], place: device, progress: Progress) -> Tensor:
    """uint8 images (N, C, H, W) on the CPU through all defences, on a device; ``progress`` is told of it."""
    before, stages = progress.done, len(defences)
    images = grid.to(place)
    for stage, each in enumerate(defences):

        def report(finished: int, stage: int = stage) -> None:
            progress.reach(before + (stage * len(grid) + finished) // stages)

        if hasattr(each, "progress"):
            setattr(each, "progress", report)  # noqa: B010 - no declared attribute of a module
        images = each(images)
        report(len(grid))
    return images.cpu()


def ran_on(defences: list[nn.Module]) -> dict[str, Any]:
    """The engine and the precision of the first of the defences that PixelDefend is; None where none is."""
    from ..engines.registry import select
    from ..pixeldefend.purify import Purifier

    for each in defences:
        if isinstance(each, Purifier):
            chosen = select(each.engine)
            return {
                "engine": chosen.name,
                "precision": chosen.best_precision() if each.precision == "auto" else each.precision,
            }
    return {"engine": None, "precision": None}
