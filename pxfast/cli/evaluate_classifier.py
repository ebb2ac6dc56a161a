"""``pxfast evaluate classifier``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    BatchSizeOption,
    DeviceOption,
    DownloadOption,
    EngineOption,
    EpsOption,
    EvaluatedDatasetOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
)


def classifier(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="A function without arguments that gives the classifier, a class, or the classifier itself, such as "
            "my_package.my_module:make_model; the current folder is searched first.",
        ),
    ],
    out: OutOption,
    dataset: EvaluatedDatasetOption = "cifar10",
    root: RootOption = None,
    download: DownloadOption = False,
    images: ImagesOption = 1000,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            help="Defences with their settings, joined by +, with flip as the last for two views: none, "
            "pixeldefend:eps=16, adaptive-pixeldefend, adp, feature-squeezing, pixeldefend+feature-squeezing ... May "
            "be repeated; by default the first five.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="An attack with its options, such as fgsm or bim:steps=20; or paper or adaptive, for those of the "
            "tables. May be repeated; by default fgsm, bim, deepfool, blind-pgd and bpda-eot.",
        ),
    ] = None,
    eps: EpsOption = None,
    name: Annotated[str | None, typer.Option(help="What the classifier is called; by default its class.")] = None,
    model: ModelOption = None,
    seed: SeedOption = 0,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = 64,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Your own classifier: clean, attacked, and behind the defences.

    It takes floating images (N, C, H, W) in [0, 1], with its preprocessing inside, and gives logits. OUT gets the
    table, the store and report.html; the same command goes on where a killed one was.
    """
    from ..base.machine import parse_device
    from ..data.datasets import fetch_dataset
    from ..evaluation.benchmark import benchmark
    from .machine import engine_on, use_threads
    from .own_module import load_model

    use_threads(threads)
    place = parse_device(device)
    chosen = engine_on(device, engine)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    result = benchmark(
        load_model(source).to(place),
        dataset,
        out=out,
        root=root,
        defences=rows,
        attacks=columns,
        eps=eps,
        images=images,
        name=name,
        density=model,
        engine=chosen,
        precision=precision,
        threads=threads,
        batch_size=batch_size,
        seed=seed,
        progress=not quiet,
    )
    print(result.to_json() if as_json else f"{result}\n\n{result.report}")
