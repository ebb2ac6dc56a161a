"""``pxfast figures``: the paper's figures, from one's own models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .detector_figures import detectors
from .groups import add_command, command_group
from .options import (
    AttacksOption,
    ClassifierOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    EngineOption,
    ForceOption,
    ImagesOption,
    JsonOption,
    LbfgsImagesOption,
    LbfgsStartsOption,
    ModelOption,
    OutOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
    TrainImagesOption,
    parse_names,
    steps_of_grid,
)

app: typer.Typer = command_group("Draw the paper's figures.")


def density(
    dataset: DatasetArgument = "fashion-mnist",
    root: RootOption = None,
    download: DownloadOption = False,
    out: OutOption = Path("figures"),
    images: ImagesOption = 200,
    train_images: TrainImagesOption = 1000,
    model: ModelOption = None,
    classifier: ClassifierOption = None,
    attacks: AttacksOption = None,
    attack_eps: Annotated[
        int | None,
        typer.Option(
            parser=steps_of_grid("--attack-eps"),
            metavar="INTEGER",
            help="In steps of 0..255; by default the paper's: 25, and 8 for cifar10.",
        ),
    ] = None,
    purify_eps: Annotated[
        int | None,
        typer.Option(
            parser=steps_of_grid("--purify-eps"),
            metavar="INTEGER",
            help="In steps of 0..255; by default the paper's: 32, and 16 for cifar10.",
        ),
    ] = None,
    lbfgs_images: LbfgsImagesOption = 10,
    lbfgs_starts: LbfgsStartsOption = 1,
    seed: SeedOption = 0,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Samples, bits/dim, p-values, ROC curves and L-BFGS-B against greedy decoding, as PNG and SVG in the folder OUT.

    The images are test images.
    """
    from ..data.datasets import fetch_dataset
    from ..evaluation.figures import density_figures
    from .machine import engine_on, use_threads
    from .output import print_files

    use_threads(threads)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    written = density_figures(
        dataset,
        root,
        out,
        force=force,
        images=images,
        train_images=train_images,
        model=model,
        classifier=classifier,
        attacks=parse_names(attacks),
        attack_eps=attack_eps,
        purify_eps=purify_eps,
        lbfgs_images=lbfgs_images,
        lbfgs_starts=lbfgs_starts,
        seed=seed,
        device=device,
        engine=engine_on(device, engine),
        threads=threads,
        progress=not quiet,
    )
    print_files(written, as_json=as_json)


add_command(app, "density", density)
add_command(app, "detectors", detectors)
