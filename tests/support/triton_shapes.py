"""Every shape class that a model's decoding and its likelihood launch, without a GPU and without memory.

What is launched is asked of the engine itself, on torch's meta device; it serves to compile all of it ahead of time.
"""

from __future__ import annotations

import torch

from pxfast.engines.schedule import Schedule
from pxfast.engines.triton_program import PHASES, ChooserShape, Program, Workspace
from pxfast.kernels.launch import Launch
from pxfast.kernels.mixture import mixture
from pxfast.kernels.tiles import tiles_for

CHOOSERS = (ChooserShape(False, 64), ChooserShape(False, 256), ChooserShape(True, 256))


def decoding(schedule: Schedule, precision: str, architecture: str) -> list[Launch]:
    """One launch of every shape class of a decode on the architecture (see ``tiles``)."""
    program = Program(schedule, precision, torch.device("meta"), tiles_for(architecture))
    workspace = Workspace(program, 1024)
    launches = [
        launch for phase in set(PHASES) for chooser in CHOOSERS for launch in workspace.launches(phase, chooser)
    ]
    return list({launch.shape_class: launch for launch in launches}.values())


def likelihood(channels: int, mixtures: int, dtype: torch.dtype) -> list[Launch]:
    """One launch of every shape class of the fused log-likelihood and its gradient."""
    parameters = (10 if channels == 3 else 3) * mixtures
    features = torch.empty(2, parameters, 8, 8, dtype=dtype, device="meta")
    images = torch.empty(2, channels, 8, 8, dtype=torch.uint8, device="meta")
    output = torch.empty(images.shape, dtype=torch.promote_types(dtype, torch.float32), device="meta")
    return [
        mixture(features, images, output, gradient, bins_per_unit, joint)
        for bins_per_unit, joint in ((128.0, False), (127.5, True))
        for gradient in (None, torch.empty_like(features))
    ]
