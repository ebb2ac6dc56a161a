"""``pxfast detect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
)


def label(source: Path, name: str) -> str:
    """What to call an image where there are several sources: its path, or that of its array with its index."""
    if source.is_dir():
        return str(source / name)
    return str(source) if name == source.name else f"{source}:{name}"


def detect(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Folders of images, .npy, .pt or image files.")
    ],
    alpha: Annotated[float, typer.Option(help="Call images adversarial up to this p-value.")] = 0.05,
    model: ModelOption = None,
    detector: Annotated[
        Path | None,
        typer.Option(help="The model's fitted detector; by default the shipped log-likelihoods of training images."),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print a p-value per image, and whether it is too small for a clean image."""
    from ..base.machine import parse_device
    from ..base.progress import progress_of
    from ..data.image_files import open_collection
    from ..data.images import to_grid
    from ..pixeldefend.detection import Detector
    from .machine import use_threads
    from .output import print_json

    use_threads(threads)
    place = parse_device(device)
    fitted = Detector(model) if detector is None else Detector.load(detector, model)
    collections = [open_collection(source) for source in sources]
    names = [
        name if len(sources) == 1 else label(source, name)
        for source, collection in zip(sources, collections, strict=True)
        for name in collection.names
    ]
    found: list[tuple[float, bool]] = []
    with progress_of(len(names), shown=not quiet, leave=False) as progress:
        for collection in collections:
            for batch in collection.batches(batch_size):
                grid, _ = to_grid(batch)
                p_values, verdicts = fitted.judge(grid.to(place), alpha)
                found += zip(p_values.tolist(), verdicts.tolist(), strict=True)
                progress.reach(len(found))
    if as_json:
        images = [
            {"name": name, "p_value": p_value, "adversarial": adversarial}
            for name, (p_value, adversarial) in zip(names, found, strict=True)
        ]
        print_json({"alpha": alpha, "images": images})
        return
    for name, (p_value, adversarial) in zip(names, found, strict=True):
        print(f"{name}\t{p_value:.6f}\t{'adversarial' if adversarial else '-'}")
    print(f"{sum(adversarial for _, adversarial in found)} of {len(found)} images have a p-value of at most {alpha:g}")
