"""``pxfast figures detectors``."""

from __future__ import annotations

from pathlib import Path

from .options import (
    AlphaOption,
    AttacksOption,
    ClassifierOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    EpsOption,
    ForceOption,
    ImagesOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
    TrainImagesOption,
    parse_names,
)


def detectors(
    dataset: DatasetArgument = "fashion-mnist",
    root: RootOption = None,
    download: DownloadOption = False,
    out: OutOption = Path("figures"),
    images: ImagesOption = 64,
    train_images: TrainImagesOption = 256,
    model: ModelOption = None,
    classifier: ClassifierOption = None,
    attacks: AttacksOption = None,
    eps: EpsOption = None,
    alpha: AlphaOption = 0.05,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Detectors judged by attacks, one of which knows them: areas, detection, p-values, as JSON and PNG in OUT.

    The images are test images. A killed run of it goes on. The attacks are rand, fgsm, bim, deepfool, cw-linf and
    likelihood-aware unless others are named, with the paper's eps: 8 on CIFAR-10 and 25 on Fashion-MNIST.
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
