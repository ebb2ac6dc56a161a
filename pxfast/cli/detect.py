"""``pxfast detect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, ModelOption

BATCH_SIZE = 32  # images read and judged at a time, so that the bar moves


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
    as_json: JsonOption = False,
) -> None:
    """Print a p-value per image, and whether it is too small for a clean image."""
    from tqdm import tqdm

    from ..data.image_files import open_collection
    from ..pixeldefend.detection import Detector

    fitted = Detector(model) if detector is None else Detector.load(detector, model)
    collections = [open_collection(source) for source in sources]
    names = [
        name if len(sources) == 1 else label(source, name)
        for source, collection in zip(sources, collections, strict=True)
        for name in collection.names
    ]
    found: list[tuple[float, bool]] = []
    with tqdm(total=len(names), unit="image", leave=False) as bar:
        for collection in collections:
            for batch in collection.batches(BATCH_SIZE):
                p_values, adversarial = fitted.judge(batch, alpha)
                found += zip(p_values.tolist(), adversarial.tolist(), strict=True)
                bar.update(len(batch))
    if as_json:
        images = [
            {"name": name, "p_value": p_value, "adversarial": adversarial}
            for name, (p_value, adversarial) in zip(names, found, strict=True)
        ]
        print(json.dumps({"alpha": alpha, "images": images}))
        return
    for name, (p_value, adversarial) in zip(names, found, strict=True):
        print(f"{name}\t{p_value:.6f}\t{'adversarial' if adversarial else '-'}")
    print(f"{sum(adversarial for _, adversarial in found)} of {len(found)} images have a p-value of at most {alpha:g}")
