"""Settings that leave open how a run computes here are settled before its first step, and a resumed run keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from ..base.checks import PRECISIONS
from ..base.machine import torch_prefers_bf16
from ..base.streams import note
from .checkpoints import recorded_setting
from .compilation import settle_compilation
from .processes import Processes
from .settings import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)


def settle(
    settings: Settings, config: Any, images: int, processes: Processes, checkpoint: Path | None, *, progress: bool
) -> tuple[Settings, str | None]:
    """Settings that say in which precision to train and whether to compile, and why the latter, for the notes.

    config: of the network. images: how many there are to train on. checkpoint: of the run that is resumed, which goes
    on as it began, or else its result would have other bits; or of the one that it branches off. progress: say on
    standard error what was chosen, and that a precision is slow here.
    """
    settings = settle_precision(settings, processes, checkpoint)
    if progress and processes.first and settings.precision == "bf16" and not torch_prefers_bf16(processes.device):
        note("the run computes in bf16, which is slower on this device than fp32")
    return settle_compilation(settings, config, images, processes, checkpoint, progress=progress)


def settle_precision(settings: Settings, processes: Processes, checkpoint: Path | None = None) -> Settings:
    """Settings whose precision is not 'auto' but what that is: the checkpoint's, or else the faster one of the device.

    The first process's word is all processes', whose machines may differ.
    """
    if settings.precision != "auto":
        return settings
    before = None if checkpoint is None else recorded_setting(checkpoint, "precision")
    if before not in PRECISIONS:  # a damaged one, of which the trainer is about to tell
        preferred, _ = processes.agree(float(torch_prefers_bf16(processes.device)), False)
        before = "bf16" if preferred > 0.5 else "fp32"
    return dataclasses.replace(settings, precision=before)
