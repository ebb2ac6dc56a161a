"""``pxfast train-adp``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    BudgetOption,
    CheckpointIntervalOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    EmaDecayOption,
    ForceOption,
    GradientClipOption,
    JsonOption,
    OptionalBatchSizeOption,
    OptionalCompileOption,
    OptionalEpochsOption,
    OptionalFlipsOption,
    OptionalLearningRateOption,
    OptionalSeedOption,
    OutOption,
    PrecisionOption,
    PresetOption,
    QuietOption,
    ResumeOption,
    RootOption,
    StartOption,
    ThreadsOption,
    WarmupOption,
    changed,
    parse_budget,
    settled,
)

MEASURED = 256  # test images on which the result is measured


def train_adp(
    dataset: DatasetArgument,
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    preset: PresetOption = None,
    ngf: Annotated[int | None, typer.Option(help="Features at the image's full size.")] = None,
    levels: Annotated[int | None, typer.Option(help="Noise levels, in geometric steps.")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="The largest noise's deviation, on images in [0, 1].")] = None,
    sigma_min: Annotated[float | None, typer.Option(help="The smallest noise's deviation.")] = None,
    clamped: Annotated[
        float | None, typer.Option(help="The fraction of noisy images clamped to [0, 1], as in purification.")
    ] = None,
    epochs: OptionalEpochsOption = None,
    budget: BudgetOption = None,
    batch_size: OptionalBatchSizeOption = None,
    learning_rate: OptionalLearningRateOption = None,
    warmup: WarmupOption = None,
    ema_decay: EmaDecayOption = None,
    gradient_clip: GradientClipOption = None,
    flips: OptionalFlipsOption = None,
    seed: OptionalSeedOption = None,
    compiled: OptionalCompileOption = None,
    start: StartOption = None,
    checkpoint_interval: CheckpointIntervalOption = "2m",
    resume: ResumeOption = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Train ADP's score network on a data set; killed runs go on with --resume.

    OUT is the network's file, written with every checkpoint; that is kept beside it, and is resumed by its own settings
    unless others are given. The options change what the preset says: full is the size of the ADP authors', small is for
    a CPU; CIFAR's images are flipped. --batch-size counts the images of a step. With --start the network is of that
    one's size, not the preset's.
    """
    from ..adp.files import load_score_network, read_score_metadata
    from ..adp.training import read_score_settings, record_quality, score_preset, train_score_network
    from ..base.durations import phase
    from ..base.machine import parse_device
    from ..data.datasets import fetch_dataset, first_images, load_dataset
    from ..training.compilation import duration_key
    from ..training.outputs import check_run_outputs
    from ..training.processes import join
    from ..training.provenance import training_parts
    from ..training.run import checkpoint_path
    from .machine import use_threads
    from .output import print_json

    config, settings = score_preset(preset or "full", dataset)
    if resume and preset is None and checkpoint_path(out).exists():
        config, settings = read_score_settings(checkpoint_path(out))
    elif start is not None:
        config = changed(config, ngf=read_score_metadata(start)[0].ngf)
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
        precision=settled(precision),
        compile=compiled,
    )
    interval = parse_budget(checkpoint_interval, "checkpoint interval")
    use_threads(threads)
    parse_device(device)
    check_run_outputs(out, resume=resume, force=force)
    first = None if start is None else load_score_network(start)
    earlier = () if start is None else training_parts(read_score_metadata(start)[1])
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    with phase(f"reading {dataset}", f"reading {dataset}", shown=not quiet):
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
            checkpoint_interval=interval,
            progress=not quiet,
            processes=processes,
        )
    measured = first_images(dataset, held_out, MEASURED)
    title = settings.measuring(f"{len(measured)} test images")
    with phase(title, duration_key(title, config, settings, processes.device), shown=not quiet):
        found = record_quality(out, measured, device=processes.device)
    if as_json:
        notes = read_score_metadata(out)[1]
        print_json(
            {
                "denoising": found,
                "test_images": len(measured),
                "steps": notes["steps"],
                "seconds": notes["seconds"],
                "files": [out],
            }
        )
        return
    for sigma, quality in found.items():
        print(
            f"noise {sigma}: loss {quality['loss']:.4f}, {quality['psnr']:.2f} dB from {quality['noisy_psnr']:.2f} dB, "
            f"{len(measured)} test images"
        )
