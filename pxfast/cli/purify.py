"""``pxfast purify`` and ``pxfast bpd``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from .options import EngineOption, ForceOption, JsonOption, ModelOption

BATCH_SIZE = 256  # images read, purified and written at a time


def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of images, a .npy, a .pt or an image file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Written whole, as the same kind; images as PNG.")],
    eps: Annotated[int | None, typer.Option(help="Largest change of a value, in steps of 0..255. Default: 16.")] = None,
    adaptive: Annotated[
        str | None,
        typer.Option(help="'image' or 'sub-pixel': spare the images, or the sub-pixels, that are likely already."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="What counts as likely, in bits/dim or bits; by default the paper's 1.8 or 3.2, or 3."),
    ] = None,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    defence: Annotated[
        str | None,
        typer.Option(help="Another purifier than PixelDefend, such as adp:sigma=0.1,seed=1; --model is then its own."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Move images to the likeliest ones within ±eps."""
    from ..data.image_files import open_collection
    from ..defences.named import parse_defence

    collection = open_collection(source)
    given = {"eps": eps, "adaptive": adaptive, "threshold": threshold, "model": model}
    given |= {name: value for name, value in {"engine": engine, "precision": precision}.items() if value != "auto"}
    purifier = parse_defence(defence or "purifier", **{k: v for k, v in given.items() if v is not None})
    with (
        collection.writer(out, force=force) as write,
        tqdm(total=len(collection.names), unit="image") as bar,
    ):
        finished = 0
        for batch in collection.batches(BATCH_SIZE):

            def report(count: int, before: int = finished) -> None:
                bar.update(before + count - bar.n)

            purifier.progress = report
            write(purifier(batch))
            finished += len(batch)
            bar.update(finished - bar.n)


def bpd(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of images, a .npy, a .pt or an image file.")],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print bits/dim, a line per image, and their mean: the lower, the likelier."""
    from ..data.image_files import open_collection
    from ..pixelcnn.likelihood import bits_per_dim

    collection = open_collection(source)
    found: list[float] = []
    with tqdm(total=len(collection.names), unit="image", leave=False) as bar:
        for batch in collection.batches(BATCH_SIZE // 8):  # so that the bar moves
            found += bits_per_dim(batch, model=model).tolist()
            bar.update(len(batch))
    mean = sum(found) / len(found) if found else None
    if as_json:
        images = [{"name": name, "bits_per_dim": bits} for name, bits in zip(collection.names, found, strict=True)]
        print(json.dumps({"mean": mean, "images": images}))
        return
    for name, bits in zip(collection.names, found, strict=True):
        print(f"{name}\t{bits:.4f}")
    print("mean\t-" if mean is None else f"mean\t{mean:.4f}")
