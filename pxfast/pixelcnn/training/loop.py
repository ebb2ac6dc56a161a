"""The whole of a training run, from images to a model file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base.checks import check_instance, check_path
from ...base.durations import phase
from ...base.files import claimed, place_of
from ...tensors.ambient import in_plain_torch
from ...tensors.safetensors import add_notes
from ...training.compilation import duration_key
from ...training.loop import run_to_the_end
from ...training.outputs import run_outputs
from ...training.processes import Processes
from ...training.provenance import training_notes
from ...training.run import check_training_images, checkpoint_path
from ...training.settings import run_settings
from ...training.settle import settle
from ..files import load_model, save
from ..network import FORMAT, PixelCNN, PixelCNNConfig
from .branch import ENDING, branch_settings_at
from .settings import TrainingSettings
from .trainer import Trainer, mean_bits_per_dim


@in_plain_torch
@torch.enable_grad()
def train(
    config: PixelCNNConfig,
    images: Tensor,
    out: str | os.PathLike[str],
    *,
    settings: TrainingSettings | None = None,
    validation: Tensor | None = None,
    start: PixelCNN | None = None,
    branch: str | os.PathLike[str] | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    resume: bool = False,
    force: bool = False,
    checkpoint_interval: float = 180.0,
    progress: bool = True,
    processes: Processes | None = None,
) -> PixelCNN:
    """Train a PixelCNN on uint8 images (N, C, H, W) and write the model to ``out`` (bf16 safetensors).

    Every ``checkpoint_interval`` seconds the whole state goes to ``out`` with the suffix .checkpoint.safetensors, in
    shards if it is large, and the averaged model so far to ``out``, at the end the last weights if they are better
    (:meth:`Trainer.best`); with ``resume`` a killed run goes on from there with the same data order. Ctrl-C ends the
    run after the step at hand, with everything kept, and raises KeyboardInterrupt.
    start: a model whose weights to begin with, in place of random ones; a narrower or shallower one is grown to the
    same function (:mod:`pxfast.pixelcnn.training.growth`). earlier: the runs that made it, for the file's notes
    (:mod:`pxfast.training.provenance`); a resumed run has them from its checkpoint. branch: in place of ``start``, the
    ``out`` of a run from whose checkpoint to go on, with settings by
    :func:`pxfast.pixelcnn.training.branch_settings`; its files stay as they are. If that run has gone on meanwhile, the
    branch begins at its newer checkpoint, and is as long as was said. validation: uint8 images whose
    bits/dim is recorded at every checkpoint. processes: the device, and the other processes that train along
    (:func:`pxfast.training.processes.join`); the first one writes the files. Returns the model as it is in the file, on
    its device. Raises FloatingPointError when bits/dim stop being finite (the files then stay as the last interval left
    them), and what :func:`pxfast.training.outputs.run_outputs` raises.
    """
    settings = run_settings(
        settings,
        TrainingSettings,
        resume=resume,
        force=force,
        progress=progress,
        checkpoint_interval=checkpoint_interval,
        processes=processes,
    )
    check_path("out", out)
    check_instance("config", config, PixelCNNConfig)
    if start is not None:
        check_instance("start", start, PixelCNN)
    if branch is not None:
        check_path("branch", branch)
        if start is not None:
            raise ValueError("expected a start or a branch of another run, got both")
        if place_of(checkpoint_path(branch)) == place_of(checkpoint_path(out)):
            raise ValueError(f"expected a branch with files of its own, got {os.fspath(out)} for both runs")
    processes = processes or Processes()
    if validation is not None:
        check_training_images(validation, (config.channels, *config.image_size), "validation")
    with run_outputs(out, resume=resume, force=force, processes=processes, progress=progress) as files:
        if processes.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches have one shape
        check_training_images(images, (config.channels, *config.image_size))
        before = files.checkpoint if files.resumed else None
        if before is None and branch is not None:
            before = checkpoint_path(branch)
        settings, why = settle(settings, config, len(images), processes, before, progress=progress)
        trainer = Trainer(config, settings, images, processes)
        trainer.compilation = why
        if files.resumed:
            trainer.restore(files.checkpoint, out=files.model.path)
        elif branch is not None:
            held, said = checkpoint_path(branch), settings
            trainer.restore(
                held,
                out=Path(branch),
                changed_settings=ENDING,
                settings_at=lambda metadata: branch_settings_at(said, metadata, held),
            )
        else:
            trainer.earlier = list(earlier)
            title = f"initialising the weights by {trainer.initial_count} images"
            with phase(title, duration_key(title, config, settings, processes.device), shown=progress):
                trainer.initialise(start)
        best: PixelCNN | None = None
        weights, measured, notes = "", dict[str, float](), dict[str, Any]()
        recent: float | None = trainer.history[-1].get("train_bits_per_dim") if trainer.history else None

        def measure() -> dict[str, float]:
            nonlocal best, weights, measured
            if processes.first:
                best, weights = trainer.best()
                if validation is not None:
                    measured = {"validation_bits_per_dim": trainer.evaluate(best, validation)}
            return measured

        def keep() -> None:
            nonlocal notes
            if best is None:  # another process keeps it
                return
            entry = {"step": trainer.step, "seconds": round(trainer.seconds, 1), "train_bits_per_dim": recent}
            trainer.history.append({**entry, **measured})
            trainer.save(files.checkpoint)
            notes = training_notes({**trainer.facts(), "weights": weights}, trainer.earlier)
            with files.model.written() as temporary:
                save(best, temporary, notes=notes)

        def describe(bits_per_dim: float) -> str:
            nonlocal recent
            recent = bits_per_dim if recent is None else 0.98 * recent + 0.02 * bits_per_dim
            return f"{recent:.3f} bits/dim"

        progress = progress and processes.first
        run_to_the_end(
            trainer,
            keep,
            describe,
            config=config,
            log=files.log,
            measure=measure,
            checkpoint_interval=checkpoint_interval,
            progress=progress,
        )
        model = best or trainer.best()[0]
        model.round_as_stored(torch.bfloat16)  # or a detector that is fitted with it would not be one of the file's
        model.notes = notes
        return model.eval()


@in_plain_torch
def record_bits_per_dim(
    path: str | os.PathLike[str],
    test_images: Tensor,
    *,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> float:
    """Measure a model file on uint8 test images (N, C, H, W), fp32, and keep the mean bits/dim in the file's notes.

    Notes: ``test_bits_per_dim`` and ``test_images``. The weights stay as they are. Returns the mean. BlockingIOError
    where another process writes the file; meanwhile none can train to it.
    """
    with claimed(path):  # or another training's model could be noted with the bits/dim of this one
        model = load_model(path)
        check_training_images(test_images, (model.config.channels, *model.config.image_size), "test")
        mean = mean_bits_per_dim(model.to(device), test_images, progress=progress)
        add_notes(path, {"test_bits_per_dim": round(mean, 5), "test_images": len(test_images)}, FORMAT)
    return mean
