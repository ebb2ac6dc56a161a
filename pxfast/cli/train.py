"""``pxfast train``."""

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
    HeadOption,
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


def train(
    dataset: DatasetArgument,
    out: OutOption,
    root: RootOption = None,
    download: DownloadOption = False,
    preset: PresetOption = None,
    filters: Annotated[int | None, typer.Option(help="Features per stream.")] = None,
    resnets: Annotated[int | None, typer.Option(help="Gated layers per level.")] = None,
    head: HeadOption = None,
    dropout: Annotated[float | None, typer.Option(help="Probability of dropping a feature.")] = None,
    epochs: OptionalEpochsOption = None,
    budget: BudgetOption = None,
    batch_size: OptionalBatchSizeOption = None,
    optimiser: Annotated[str | None, typer.Option(help="adam or muon.")] = None,
    learning_rate: OptionalLearningRateOption = None,
    muon_learning_rate: Annotated[float | None, typer.Option(help="Muon's, at its peak.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, linear, exponential or wsd.")] = None,
    decay_share: Annotated[
        float | None, typer.Option(help="Of wsd: the last part of the run, in which the rates fall to zero.")
    ] = None,
    warmup: WarmupOption = None,
    ema_decay: EmaDecayOption = None,
    gradient_clip: GradientClipOption = None,
    flips: OptionalFlipsOption = None,
    seed: OptionalSeedOption = None,
    compiled: OptionalCompileOption = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="Record a step's work for the GPU, and replay it."),
    ] = None,
    start: StartOption = None,
    branch: Annotated[
        str | None,
        typer.Option(help="The OUT of a wsd run that is held at its rate: end it from its checkpoint, as another run."),
    ] = None,
    checkpoint_interval: CheckpointIntervalOption = "3m",
    resume: ResumeOption = False,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Train a model on a data set; killed runs go on with --resume.

    OUT is the model file, written with every checkpoint; that is kept beside it, and is resumed by its own settings
    unless others are given. The options change what the preset says: paper is as the authors trained, full is the same
    network, small is for a CPU; full and small flip CIFAR's images. --batch-size counts the images of a step, of all
    processes together. --learning-rate is Adam's. With --start the network is of that one's size, not the preset's, and
    is grown to --filters and --resnets. With --branch, --budget or --epochs say how long the rates fall; the settings
    are the other run's, whose files stay as they are.
    `torchrun --nproc-per-node 2 -m -- pxfast.cli train ...` trains on two GPUs.
    """
    from ..base.durations import phase
    from ..base.machine import parse_device
    from ..base.streams import note
    from ..data.datasets import fetch_dataset, first_images, load_dataset
    from ..pixelcnn.files import load_model, read_metadata
    from ..pixelcnn.shipped import model_path
    from ..pixelcnn.training import branch_settings, network_size, read_settings, record_bits_per_dim
    from ..pixelcnn.training import preset as preset_called
    from ..pixelcnn.training import train as train_model
    from ..training.outputs import check_run_outputs
    from ..training.processes import join
    from ..training.provenance import training_parts
    from ..training.run import checkpoint_path
    from .machine import use_threads
    from .output import print_json

    seconds = None if budget is None else parse_budget(budget)
    config, settings = preset_called(preset or "full", dataset)
    path = None if start is None else model_path(start, (config.channels, *config.image_size))
    begun, notes = (None, {}) if path is None else read_metadata(path)
    if branch is not None and preset is not None:
        raise ValueError("a branch has the settings of its run, not those of a --preset")
    if branch is not None and decay_share is not None:
        raise ValueError("the rates of a branch fall for the whole of --budget or --epochs: it has no --decay-share")
    if resume and preset is None and checkpoint_path(out).exists():
        config, settings = read_settings(checkpoint_path(out))
        if branch is not None:
            seconds = epochs = None  # which say where the branch ends, as counted from its beginning
    elif branch is not None:
        config, settings = branch_settings(checkpoint_path(branch), budget=seconds, epochs=epochs)
        seconds = epochs = None
    elif begun is not None:
        config = changed(config, **{name: getattr(begun, name) for name in ("filters", "resnets", "mixtures", "head")})
    config = changed(config, filters=filters, resnets=resnets, head=head, dropout=dropout)
    settings = changed(
        settings,
        epochs=epochs,
        budget=seconds,
        batch_size=batch_size,
        optimiser=optimiser,
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        schedule=schedule,
        decay_share=decay_share,
        warmup=warmup,
        ema_decay=ema_decay,
        gradient_clip=gradient_clip,
        horizontal_flips=flips,
        seed=seed,
        precision=settled(precision),
        compile=compiled,
        cuda_graphs=cuda_graphs,
    )
    interval = parse_budget(checkpoint_interval, "checkpoint interval")
    use_threads(threads)
    parse_device(device)
    check_run_outputs(out, resume=resume, force=force)
    first, earlier = None, []
    if path is not None:
        first = load_model(path)
        earlier = [{"network": network_size(first.config), **part} for part in training_parts(notes)]
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    with phase(f"reading {dataset}", f"reading {dataset}", shown=not quiet):
        images, _ = load_dataset(dataset, root, train=True)
        held_out, _ = load_dataset(dataset, root, train=False)
    with join(device) as processes:
        train_model(
            config,
            images,
            out,
            settings=settings,
            validation=first_images(dataset, held_out, 256),
            start=first,
            branch=branch,
            earlier=earlier,
            resume=resume,
            force=force,
            checkpoint_interval=interval,
            progress=not quiet,
            processes=processes,
        )
    if processes.first:
        note(settings.measuring(f"bits/dim on {len(held_out)} test images"), quiet=quiet)
        bits_per_dim = record_bits_per_dim(out, held_out, progress=not quiet, device=processes.device)
        if as_json:
            notes = read_metadata(out)[1]
            print_json(
                {
                    "bits_per_dim": bits_per_dim,
                    "test_images": len(held_out),
                    "steps": notes["steps"],
                    "seconds": notes["seconds"],
                    "files": [out],
                }
            )
        else:
            print(f"{bits_per_dim:.4f} bits/dim on the test set")
