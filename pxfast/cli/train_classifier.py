"""``pxfast train-classifier``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ForceOption, RootOption, parse_budget


def train_classifier(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 or a folder of images.")],
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="resnet62, vgg16, vgg16-released, resnet18 or wrn28-10.")],
    out: Annotated[Path, typer.Option(help="The classifier file; its checkpoint is kept beside it.")],
    root: RootOption = None,
    defence: Annotated[str, typer.Option(help="none, fgsm, bim (adversarial training) or label-smoothing.")] = "none",
    delta: Annotated[float, typer.Option(help="Spread of the eps of fgsm and bim, in grey levels.")] = 8.0,
    smoothing: Annotated[float, typer.Option(help="What label-smoothing takes from the right class.")] = 0.1,
    epochs: Annotated[float, typer.Option(help="Passes over the data, unless --budget is given.")] = 12.0,
    budget: Annotated[
        str | None,
        typer.Option(help="Training time instead of epochs, such as 45m or 2h."),
    ] = None,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 2e-4,
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="Flip every second image left to right.")] = True,
    max_shift: Annotated[int, typer.Option(help="Random crops: pixels to move images by, at most.")] = 1,
    start: Annotated[
        str | None,
        typer.Option(help="A shipped classifier or a file whose weights to begin with, not with random ones."),
    ] = None,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    force: ForceOption = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
) -> None:
    """Train a classifier on a data set; killed runs go on with --resume."""
    import torch

    from ..classifiers.training import ClassifierSettings
    from ..classifiers.training import train_classifier as train
    from ..classifiers.weights import read_notes
    from ..training.processes import join

    settings = ClassifierSettings(
        batch_size=batch_size,
        epochs=epochs,
        budget=None if budget is None else parse_budget(budget),
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        horizontal_flips=flips,
        max_shift=max_shift,
        defence=defence,
        delta=delta,
        smoothing=smoothing,
        start=start,
        precision=precision,
        compile=compiled,
        seed=seed,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    with join(device) as processes:
        train(dataset, arch, root, out, settings=settings, resume=resume, force=force, processes=processes)
    notes = read_notes(out)
    print(f"{100 * notes['test_accuracy']:.2f} % accuracy on {notes['test_images']} test images")
