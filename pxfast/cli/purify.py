"""``pxfast purify``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    BatchSizeOption,
    ClassifierOption,
    DefenceOption,
    DeviceOption,
    EngineOption,
    EpsOption,
    ForceOption,
    GridOption,
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
    from ..pixelcnn.network import PixelCNN
    from .grid import Judges


def purify(
    source: SourceArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Written whole, as its suffix says: .npy, .pt, .png for one image, or none for a folder of PNG files.",
        ),
    ],
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
        typer.Option(
            help="What counts as likely, in bits/dim, or in bits, 99 at most; by default the paper's 1.8 or 3.2, or 3."
        ),
    ] = None,
    model: ModelOption = None,
    defence: DefenceOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 256,
    grid: GridOption = None,
    classifier: ClassifierOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Move images to the likeliest ones within ±eps: PixelDefend.

    With --defence, images pass that defence instead, or several of them. Of a single one, --eps, --adaptive,
    --threshold and --model are settings, where it has them. --engine and --precision are PixelDefend's. The labels in
    a --grid are the --classifier's, by default those of the shipped one of the images' shape; its bits/dim are of the
    first PixelDefend's model, or of the shipped one.
    """
    import torch

    from ..base.machine import parse_device
    from ..base.progress import progress_of
    from ..base.streams import note
    from ..data.image_files import check_collection, open_collection
    from ..data.image_writers import check_output, image_writer
    from ..data.images import to_grid
    from ..pixeldefend.purify import Purifier
    from .grid import SHOWN, density_of, write_grid
    from .machine import engine_on, parse_defences, use_threads
    from .output import print_json

    use_threads(threads)
    place, engine = parse_device(device), engine_on(device, engine)
    collection = open_collection(source)
    grids = [] if grid is None else [grid]
    if classifier is not None and not grids:
        raise ValueError("--classifier is for the labels of --grid, which is not given")
    for path in grids:
        check_output(path, ".png")
        if not collection.names:
            raise ValueError(f"{path}: there is no image to show")
    contents = collection.contents()
    with image_writer(out, contents, *grids, force=force, source=source) as (write, pictures):
        check_collection(collection)
        defences = parse_defences(
            defence or ["purifier"],
            engine=engine,
            precision=precision,
            threads=threads,
            eps=eps,
            adaptive=adaptive,
            threshold=threshold,
            model=model,
        )
        own = next((each.model for each in defences if isinstance(each, Purifier)), None)
        judges = judges_of(classifier, density_of(own, contents.shape), contents.shape) if grids else None
        started = time.perf_counter()
        shown: list[tuple[Tensor, Tensor]] = []
        with progress_of(len(collection.names), shown=not quiet) as progress:
            for batch in collection.batches(batch_size):
                given, form = to_grid(batch)
                purified = defended(given, defences, place, progress)
                write(form.images(purified))
                if grids and sum(len(each) for each, _ in shown) < SHOWN:
                    shown.append((given[:SHOWN], purified[:SHOWN]))
        seconds = time.perf_counter() - started
        if judges is not None:
            given, purified = torch.cat([each for each, _ in shown]), torch.cat([each for _, each in shown])
            stages = [("given", [], given), ("purified", [name_of(each) for each in defences], purified)]
            write_grid(pictures[0], stages, judges)
    count = len(collection.names)
    facts = {
        "images": count,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "defences": defence or ["purifier"],
        **ran_on(defences, place),
        "files": [out, *grids],
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


def judges_of(classifier: str | None, density: PixelCNN | None, shape: tuple[int, ...]) -> Judges:
    """Who judges images (C, H, W) in the grid. classifier: a name or a file; None: the shipped one of the shape."""
    from ..classifiers import load_classifier
    from ..classifiers.weights import SHIPPED
    from .grid import Judges, class_names

    if classifier is None:
        with contextlib.suppress(ValueError):
            classifier = SHIPPED.name_for(shape)
    if classifier is None:
        return Judges(None, density)
    network = load_classifier(classifier)
    network.check_image_shape(shape, classifier)
    return Judges(network, density, class_names(classifier))


def name_of(defence: nn.Module) -> str:
    """A defence in a few words."""
    eps = getattr(defence, "eps", None)
    return type(defence).__name__ + ("" if eps is None else f", eps {eps}")


def ran_on(defences: list[nn.Module], place: device) -> dict[str, Any]:
    """The engine and the precision, on a device, of the first of the defences that PixelDefend is; None of none."""
    from ..engines.registry import select
    from ..pixeldefend.purify import Purifier

    for each in defences:
        if isinstance(each, Purifier):
            chosen = select(each.engine, device=place)
            return {
                "engine": chosen.name,
                "precision": chosen.best_precision() if each.precision == "auto" else each.precision,
            }
    return {"engine": None, "precision": None}
