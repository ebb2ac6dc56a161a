"""``pxfast train-classifier``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import (
    BatchSizeOption,
    BudgetOption,
    CheckpointIntervalOption,
    CompileOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    EpochsOption,
    ForceOption,
    JsonOption,
    KeepOption,
    LearningRateOption,
    OptionalFlipsOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    ResumeOption,
    RootOption,
    SeedOption,
    StartOption,
    ThreadsOption,
    among,
    changed,
    parse_budget,
    steps_of_grid,
)


def train_classifier(
    dataset: DatasetArgument,
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="resnet62, vgg16, vgg16-released, resnet18 or wrn28-10.")],
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    defence: Annotated[
        str,
        typer.Option(
            help="A defence by training: none, fgsm, bim (adversarial training) or label-smoothing.",
            autocompletion=among("none", "fgsm", "bim", "label-smoothing"),
        ),
    ] = "none",
    delta: Annotated[
        float | None,
        typer.Option(
            parser=steps_of_grid("--delta", float),
            metavar="FLOAT",
            help="Spread of the eps of fgsm and bim, in steps of 0..255; 8 by default.",
        ),
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="What label-smoothing takes from the right class; 0.1 by default.")
    ] = None,
    epochs: EpochsOption = 12.0,
    budget: BudgetOption = None,
    batch_size: BatchSizeOption = 128,
    learning_rate: LearningRateOption = 0.1,
    momentum: Annotated[float, typer.Option(help="Of SGD, after Nesterov.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of SGD, on all weights.")] = 2e-4,
    flips: OptionalFlipsOption = None,
    max_shift: Annotated[int, typer.Option(help="Random crops: pixels to move images by, at most.")] = 1,
    seed: SeedOption = 0,
    compiled: CompileOption = False,
    start: StartOption = None,
    behind: Annotated[
        str | None,
        typer.Option(
            help="What the classifier is to stand behind: a defence, as 'purifier:eps=16', or 'cells:width=64'. It is "
            "trained on what that makes of the images."
        ),
    ] = None,
    adversary: Annotated[
        str | None,
        typer.Option(
            help="--behind a defence: what attacks --start's classifier: bim (by default), fgsm or none.",
            autocompletion=among("bim", "fgsm", "none"),
        ),
    ] = None,
    behind_images: Annotated[
        int | None, typer.Option(min=1, help="--behind: so many training images, drawn; by default all.")
    ] = None,
    consistency: Annotated[
        float,
        typer.Option(
            help="--behind cells of several offsets: weight of a loss that wants them to be classified alike."
        ),
    ] = 0.0,
    keep: KeepOption = None,
    checkpoint_interval: CheckpointIntervalOption = "1m",
    resume: ResumeOption = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Train a classifier on a data set; killed runs go on with --resume.

    OUT is the classifier's file, written at the end; its checkpoint is kept beside it, and what --behind makes of the
    images is kept in OUT.purified, or in the folder of --keep. --batch-size counts the images of a step.
    Fashion-MNIST's and CIFAR's images are flipped unless --no-flips is given.
    """
    from ..base.files import check_apart
    from ..classifiers.training import ADVERSARIES, ClassifierSettings
    from ..classifiers.training import train_classifier as train
    from ..classifiers.weights import read_notes
    from ..data.datasets import fetch_dataset
    from ..defences.behind import train_behind
    from ..training.processes import join
    from .machine import use_threads
    from .output import print_json

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
        start=start,
        behind=behind,
        adversary=adversary,
        behind_images=behind_images,
        consistency=consistency,
        precision=precision,
        compile=compiled,
        seed=seed,
    )
    settings = changed(settings, delta=delta, smoothing=smoothing)
    if smoothing is not None and defence != "label-smoothing":
        raise ValueError(f"--smoothing is for --defence label-smoothing, got --defence {defence}")
    if delta is not None and defence not in ADVERSARIES and behind is None:
        raise ValueError(f"--delta is for --defence fgsm or bim, and for --behind, got --defence {defence}")
    if keep is not None and behind is None:
        raise ValueError("--keep is for --behind: nothing else is kept")
    check_apart([out, *([] if keep is None else [keep])])
    use_threads(threads)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    with join(device) as processes:
        options: dict[str, Any] = {
            "settings": settings,
            "resume": resume,
            "force": force,
            "checkpoint_interval": parse_budget(checkpoint_interval, "checkpoint interval"),
            "progress": not quiet,
            "processes": processes,
        }
        if behind is None:
            train(dataset, arch, root, out, **options)
        else:
            train_behind(dataset, arch, root, out, keep=keep, threads=threads, **options)
    notes = read_notes(out)
    if as_json:
        names = ("test_accuracy", "test_images", "behind_test_accuracy", "behind_test_images", "steps", "seconds")
        print_json({**{name: notes[name] for name in names if name in notes}, "files": [out]})
        return
    print(f"{100 * notes['test_accuracy']:.2f} % accuracy on {notes['test_images']} test images")
    if behind is not None:
        print(f"{100 * notes['behind_test_accuracy']:.2f} % behind {behind} on {notes['behind_test_images']} of them")
