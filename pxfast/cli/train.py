"""``pxfast train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, RootOption, changed, parse_budget


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The model file; its checkpoint is kept beside it.")],
    root: RootOption = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper: as the authors trained; full, the default: the same network; small: for a CPU."),
    ] = None,
    filters: Annotated[int | None, typer.Option(help="Features per stream.")] = None,
    resnets: Annotated[int | None, typer.Option(help="Gated layers per level.")] = None,
    head: Annotated[str | None, typer.Option(help="logistic, softmax or pixelcnn++.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability of dropping a feature.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, unless --budget is given.")] = None,
    budget: Annotated[str | None, typer.Option(help="Training time instead of epochs, such as 45m or 2h.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, of all processes together.")] = None,
    optimiser: Annotated[str | None, typer.Option(help="adam or muon.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's, at its peak.")] = None,
    muon_learning_rate: Annotated[float | None, typer.Option(help="Muon's, at its peak.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, linear or exponential.")] = None,
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
        str | None,
        typer.Option(help="A model to begin with: a shipped one's name, or a file; a smaller one is grown."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, by its own settings unless others are given.")
    ] = False,
    force: ForceOption = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
) -> None:
    """Train a model on a data set; killed runs go on with --resume.

    The options change what the preset says. `torchrun --nproc-per-node 2 -m pxfast.cli train ...` trains on two GPUs.
    """
    import torch

    from ..data.datasets import load_dataset
    from ..pixelcnn.files import load_model, read_metadata
    from ..pixelcnn.shipped import model_path
    from ..pixelcnn.training import network_size, read_settings, record_bits_per_dim
    from ..pixelcnn.training import preset as preset_called
    from ..pixelcnn.training import train as train_model
    from ..training.processes import join
    from ..training.provenance import training_parts
    from ..training.run import checkpoint_path

    config, settings = preset_called(preset or "full", dataset)
    if resume and preset is None:
        config, settings = read_settings(checkpoint_path(out))
    config = changed(config, filters=filters, resnets=resnets, head=head, dropout=dropout)
    settings = changed(
        settings,
        epochs=epochs,
        budget=None if budget is None else parse_budget(budget),
        batch_size=batch_size,
        optimiser=optimiser,
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        schedule=schedule,
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
    first, earlier = None, []
    if start is not None:
        path = model_path(start, (config.channels, *config.image_size))
        first = load_model(path)
        earlier = [{"network": network_size(first.config), **part} for part in training_parts(read_metadata(path)[1])]
    images, _ = load_dataset(dataset, root, train=True)
    held_out, _ = load_dataset(dataset, root, train=False)
    with join(device) as processes:
        train_model(
            config,
            images,
            out,
            settings=settings,
            validation=held_out[:256],
            start=first,
            earlier=earlier,
            resume=resume,
            force=force,
            processes=processes,
        )
    if processes.first:
        bits_per_dim = record_bits_per_dim(out, held_out, progress=True, device=processes.device)
        print(f"{bits_per_dim:.4f} bits/dim on the test set")
