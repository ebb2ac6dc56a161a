"""An end for a run that is held at its learning rate, beside that run.

Hu et al., *MiniCPM*, 2024: with a rate that warms up, stays and decays, only the decay has to know when training ends.
A run of the schedule 'wsd' with a long budget can be given an end at any checkpoint, which costs the decay alone, and
goes on as if there had been none.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from ...base.checks import check_number, is_number
from ...base.records import shown
from ...tensors.safetensors import metadata_json, metadata_record, read_header
from ...training.run import Position
from ..network import PixelCNNConfig
from .settings import TrainingSettings
from .trainer import CHECKPOINT_FORMAT, settings_in

ENDING = ("epochs", "budget", "decay_share")  # the settings that a branch has of its own


def branch_settings(
    checkpoint: Path, *, budget: float | None = None, epochs: float | None = None
) -> tuple[PixelCNNConfig, TrainingSettings]:
    """The network of a checkpoint, and settings with which its run ends: the rates fall to zero from there on.

    budget: seconds of training steps that the fall takes, or ``epochs`` of it; one of them. FileNotFoundError where
    there is no checkpoint. ValueError where it is damaged, another kind of file, or its run is not held at its rate.
    """
    if (budget is None) == (epochs is None):
        raise ValueError("a branch needs a budget or epochs, one of them: how long its decay takes")
    length = check_number("budget", budget, 0.0, ends="()") if budget is not None else 0.0
    length = check_number("epochs", epochs, 0.0, ends="()") if epochs is not None else length
    metadata = read_header(checkpoint, CHECKPOINT_FORMAT).metadata
    return settings_in(metadata, checkpoint)[0], _ended(metadata, checkpoint, length, by_budget=budget is not None)


def branch_settings_at(settings: TrainingSettings, metadata: dict[str, str], checkpoint: Path) -> TrainingSettings:
    """A branch's settings, by :func:`branch_settings`, at the checkpoint that it has its weights from.

    The run may have gone on meanwhile: the rates begin to fall where this checkpoint is, and fall as long as was said.
    metadata: the checkpoint's. ValueError where its run is not held at its rate any more, or nothing is to fall.
    """
    whole = settings.epochs if settings.budget is None else settings.budget
    length = whole * settings.decay_share
    if not length > 0.0:
        raise ValueError(f"expected settings of a branch, whose rates fall, got decay_share={settings.decay_share}")
    ended = _ended(metadata, checkpoint, length, by_budget=settings.budget is not None)
    there = ended.epochs if ended.budget is None else ended.budget
    if math.isclose(there, whole):  # the same checkpoint, but for rounding
        return settings
    return dataclasses.replace(settings, **{name: getattr(ended, name) for name in ENDING})


def _ended(metadata: dict[str, str], checkpoint: Path, length: float, *, by_budget: bool) -> TrainingSettings:
    """A run's settings with which its rates fall from a checkpoint on, for ``length`` seconds or epochs."""
    _, settings = settings_in(metadata, checkpoint)
    if settings.schedule != "wsd":
        raise ValueError(f"{checkpoint}: expected a run of the schedule wsd to branch from, got {settings.schedule}")
    position = metadata_record(Position, metadata, checkpoint, "position of a run", "position")
    images = metadata_json(metadata, "images", checkpoint, "null")
    if not isinstance(images, list) or not images or not is_number(images[0]) or images[0] < 1:
        raise ValueError(f"{checkpoint}: expected the shape of the training images, got {shown(images)}")
    seen = position.step / max(1, images[0] // settings.batch_size)  # epochs
    done = position.seconds / settings.budget if settings.budget else seen / settings.epochs
    if done > 1.0 - settings.decay_share:
        raise ValueError(f"{checkpoint}: expected a run that is held at its rate, but its rate is falling already")
    whole = length + (position.seconds if by_budget else seen)
    ending = {"budget": whole} if by_budget else {"epochs": whole, "budget": None}
    return dataclasses.replace(settings, **ending, decay_share=length / whole)
