"""``pxfast figures detectors``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ClassifierOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    ForceOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
    parse_names,
    steps_of_grid,
)


def detectors(
    dataset: DatasetArgument = "fashion-mnist",
    root: RootOption = None,
    download: DownloadOption = False,
    out: OutOption = Path("figures"),
    images: ImagesOption = 64,
    train_images: Annotated[int, typer.Option(min=1, help="Training images that p-values compare with.")] = 256,
    model: ModelOption = None,
    classifier: ClassifierOption = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Only these attacks, by name: a,b; by default rand, fgsm, bim, deepfool, cw-linf, likelihood-aware."
        ),
    ] = None,
    eps: Annotated[
        int | None,
        typer.Option(
            parser=steps_of_grid("--eps"),
            metavar="INTEGER",
            help="In steps of 0..255; by default the paper's: 25, and 8 for cifar10.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="The false positives at which detection is counted.")] = 0.05,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Detectors judged by attacks, one of which knows them: areas, detection, p-values, as JSON and PNG in OUT.

    The images are test images. A killed run of it goes on.
    """
    from ..data.datasets import fetch_dataset
    from ..evaluation.figures import detector_figures
    from .machine import use_threads
    from .output import print_files

    use_threads(threads)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    written = detector_figures(
        dataset,
        root,
        out,
        images=images,
        train_images=train_images,
        model=model,
        classifier=classifier,
        attacks=parse_names(attacks),
        eps=eps,
        alpha=alpha,
        seed=seed,
        device=device,
        force=force,
        progress=not quiet,
    )
    print_files(written, as_json=as_json)
