"""``pxfast train-adp``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, RootOption, changed, parse_budget

MEASURED = 256  # test images on which the result is measured


def train_adp(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The network's file; its checkpoint is kept beside it.")],
    root: RootOption = None,
    preset: Annotated[
        str | None, typer.Option(help="full, the default: the size of the ADP authors'; small: for a CPU.")
    ] = None,
    ngf: Annotated[int | None, typer.Option(help="Features at the image's full size.")] = None,
    levels: Annotated[int | None, typer.Option(help="Noise levels, in geometric steps.")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="The largest noise's deviation, on images in [0, 1].")] = None,
    sigma_min: Annotated[float | None, typer.Option(help="The smallest noise's deviation.")] = None,
    clamped: Annotated[
        float | None, typer.Option(help="The fraction of noisy images clamped to [0, 1], as in purification.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, unless --budget is given.")] = None,
    budget: Annotated[str | None, typer.Option(help="Training time instead of epochs, such as 45m or 2h.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's, at its peak.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps in which the learning rate rises.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the averaged weights.")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient; 0: any.")] = None,
    flips: Annotated[
        bool | None, typer.Option("--flips/--no-flips", help="Flip every second image; the default for cifar10.")
    ] = None,
    seed: int | None = None,
    precision: Annotated[str | None, typer.Option(help="bf16 or fp32.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    start: Annotated[
        str | None, typer.Option(help="A network whose weights to begin with: a shipped one's name, or a file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, by its own settings unless others are given.")
    ] = False,
    force: ForceOption = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
) -> None:
    """Train ADP's score network on a data set; killed runs go on with --resume.

    The options change what the preset says.
    """
    import torch

    from ..adp.files import load_score_network, read_score_metadata
    from ..adp.training import read_score_settings, record_quality, score_preset, train_score_network
    from ..data.datasets import load_dataset
    from ..training.processes import join
    from ..training.provenance import training_parts
    from ..training.run import checkpoint_path

    config, settings = score_preset(preset or "full", dataset)
    if resume and preset is None:
        config, settings = read_score_settings(checkpoint_path(out))
    config = changed(config, ngf=ngf)
    settings = changed(
        settings,
        levels=levels,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        clamped=clamped,
        epochs=epochs,
        budget=None if budget is None else parse_budget(budget),
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        ema_decay=ema_decay,
        gradient_clip=gradient_clip,
        horizontal_flips=flips,
        seed=seed,
        precision=precision,
        compile=compiled,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    first = None if start is None else load_score_network(start)
    earlier = () if start is None else training_parts(read_score_metadata(start)[1])
    images, _ = load_dataset(dataset, root, train=True)
    held_out, _ = load_dataset(dataset, root, train=False)
    with join(device) as processes:
        train_score_network(
            config,
            images,
            out,
            settings=settings,
            start=first,
            earlier=earlier,
            resume=resume,
            force=force,
            processes=processes,
        )
    measured = held_out[:MEASURED]
    for sigma, quality in record_quality(out, measured, device=processes.device).items():
        print(
            f"noise {sigma}: loss {quality['loss']:.4f}, {quality['psnr']:.2f} dB from {quality['noisy_psnr']:.2f} dB, "
            f"{len(measured)} test images"
        )
