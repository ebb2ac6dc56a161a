"""``pxfast detect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    AlphaOption,
    BatchSizeOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    OptionalOutOption,
    QuietOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Row


def label(source: Path, name: str) -> str:
    """What to call an image where there are several sources: its path, or that of its array with its index."""
    if source.is_dir():
        return str(source / name)
    return str(source) if name == source.name else f"{source}:{name}"


def detect(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Folders of images, .npy, .pt or image files.")
    ],
    alpha: AlphaOption = 0.05,
    model: ModelOption = None,
    detector: Annotated[
        Path | None,
        typer.Option(help="The model's fitted detector; by default the shipped log-likelihoods of training images."),
    ] = None,
    out: OptionalOutOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Print a p-value per image, and whether it is too small for a clean image.

    OUT is a .tsv file for the lines, or a .json file of what --json prints; a killed run of it goes on.
    """
    from ..base.checks import check_number
    from ..base.files import file_digest
    from ..base.machine import parse_device
    from ..data.image_files import check_collection, open_collection
    from ..pixeldefend.detection import Detector
    from .machine import use_threads
    from .output import print_json
    from .rows import check_rows_output, describe, in_line, rows_to

    use_threads(threads)
    place = parse_device(device)
    check_number("alpha", alpha, 0.0, 1.0, ends="()")
    check_rows_output(out, force=force)
    collections = [open_collection(source) for source in sources]
    for collection in collections:
        check_collection(collection)
    fitted = Detector(model) if detector is None else Detector.load(detector, model)
    names = [
        name if len(sources) == 1 else label(source, name)
        for source, collection in zip(sources, collections, strict=True)
        for name in collection.names
    ]

    def measure(grid: Tensor) -> list[Row]:
        p_values, verdicts = fitted.judge(grid.to(place), alpha)
        return [[*row] for row in zip(p_values.tolist(), verdicts.tolist(), strict=True)]

    settings = {"command": "detect", "alpha": alpha, "batch_size": batch_size, "device": place.type}
    settings["detector"] = None if detector is None else file_digest(detector)
    with rows_to(out, lambda: describe(sources, collections, model, **settings), force=force) as rows:
        found = rows.of(collections, measure, batch_size=batch_size, progress=not quiet)
        images = [
            {"name": name, "p_value": p_value, "adversarial": adversarial}
            for name, (p_value, adversarial) in zip(names, found, strict=True)
        ]
        lines = [
            f"{in_line(name)}\t{p_value:.6f}\t{'adversarial' if adversarial else '-'}"
            for name, (p_value, adversarial) in zip(names, found, strict=True)
        ]
        document = {"alpha": alpha, "images": images}
        rows.write(lines, document)
    if as_json:
        print_json(document if out is None else {**document, "files": [out]})
        return
    for line in lines if out is None else ():
        print(line)
    print(f"{sum(adversarial for _, adversarial in found)} of {len(found)} images have a p-value of at most {alpha:g}")
