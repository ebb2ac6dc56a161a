"""Whether a run's steps are compiled where its settings leave that open: if it spares more than it takes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..base import environment
from ..base.durations import in_words, last_time
from ..base.streams import note
from .checkpoints import recorded_setting
from .processes import Processes
from .provenance import training_machine
from .settings import RunSettings

# What is reckoned with where nobody knows the last time. Measured of the preset small on CIFAR-10: five minutes on two
# cores of a Xeon, 97 s on an H100; a step of 16 images 0.63 s eager and 0.27 s compiled (docs/training.md, Rate).
COMPILING = {"cpu": 300.0, "cuda": 100.0}  # seconds
STEP = 0.6  # seconds of an eager step
GAIN = 2.3  # how often a compiled step fits into an eager one

Settings = TypeVar("Settings", bound=RunSettings)


def duration_key(what: str, config: Any, settings: RunSettings, device: torch.device) -> str:
    """By what a duration is kept that depends on a network, its ``config``, and on how and where it is trained."""
    network = f"{type(config).__name__} {json.dumps(dataclasses.asdict(config))}"
    how = f"batch {settings.batch_size}, {settings.precision}"
    return f"{what}, {network}, {how}, {training_machine(device)}, torch {torch.__version__}"


def step_key(config: Any, settings: RunSettings, device: torch.device) -> str:
    """By what the duration of a step is kept, compiled or eager."""
    return duration_key("a compiled step" if settings.compile else "an eager step", config, settings, device)


def compiling_key(config: Any, settings: RunSettings, device: torch.device) -> str:
    """By what the duration of the first step is kept, in which it is compiled."""
    return duration_key("compiling a step", config, settings, device)


def usual_compiling(device: torch.device) -> float:
    """How many seconds compiling takes where nobody knows the last time."""
    return COMPILING.get(device.type, COMPILING["cpu"])


def settle_compilation(
    settings: Settings, config: Any, images: int, processes: Processes, checkpoint: Path | None, *, progress: bool
) -> tuple[Settings, str | None]:
    """Settings that say whether to compile, and why, for the notes; None where they, or the checkpoint, said it before.

    config: of the network. images: how many there are to train on. checkpoint: of the run that is resumed, which goes
    on as it began, or else its result would have other bits. progress: say why on standard error, too.
    """
    if settings.compile is not None:
        return settings, None
    if checkpoint is not None:
        return dataclasses.replace(settings, compile=recorded_setting(checkpoint, "compile") is True), None
    obstacle = _obstacle(settings, processes.device)
    if obstacle is not None:
        chosen, why = False, obstacle
    else:
        chosen, why = _weighed(settings, config, images, processes.device)
        # the first process's word is all processes'; their records differ where they are of several machines
        chosen = processes.agree(float(chosen), False)[0] > 0.5
    said = f"{'compiled' if chosen else 'not compiled'}: {why}"
    note(said, quiet=not (progress and processes.first))
    return dataclasses.replace(settings, compile=chosen), said


def _weighed(settings: RunSettings, config: Any, images: int, device: torch.device) -> tuple[bool, str]:
    """Whether compiling spares more than it takes, and the figures that say so."""
    eager, compiled = (
        last_time(step_key(config, dataclasses.replace(settings, compile=each), device)) for each in (False, True)
    )
    gain = eager / compiled if eager and compiled else GAIN
    known = last_time(compiling_key(config, settings, device))
    takes = usual_compiling(device) if known is None else known
    run = settings.budget
    if run is None:
        run = settings.steps_of(images) * (eager or (gain * compiled if compiled else STEP))
    spares = run * max(0.0, 1.0 - 1.0 / gain)
    what = f"takes {in_words(takes)} as a rule" if known is None else f"took {in_words(takes)} the last time"
    return spares > takes, f"compiling {what}, and spares {in_words(spares)} of a run of {in_words(run)}"


def _obstacle(settings: RunSettings, device: torch.device) -> str | None:
    """Why steps can't be compiled here; None where they can."""
    if getattr(settings, "cuda_graphs", False):
        return "the steps are recorded as CUDA graphs"
    if device.type == "cpu" and not any(map(shutil.which, (*environment.compiler(), "c++", "g++", "clang++"))):
        return "there is no C++ compiler"
    return None
