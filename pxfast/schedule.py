"""Schedule: a PixelCNN flattened to what a decode engine runs."""

from __future__ import annotations

import copy
import threading
import weakref

import torch

from .pixelcnn import PixelCNN

PRECISIONS = ("fp32", "bf16")


class Schedule:
    """A model, frozen for decoding. Make one with :func:`schedule_for`, which keeps it for the model's lifetime."""

    def __init__(self, model: PixelCNN) -> None:
        self.config = model.config
        self.model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)

    def oracle(self, precision: str) -> PixelCNN:
        """The teacher-forced fp32 network an engine of this precision is judged by.

        For 'bf16' its convolution weights are rounded to bf16, as the engine's are; all arithmetic stays fp32.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "fp32":
            return self.model
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for _, convolution in model.convolutions():
                convolution.v.copy_(convolution.weight().bfloat16().float())
                dims = (0, 2, 3) if convolution.transposed else (1, 2, 3)
                convolution.g.copy_(convolution.v.norm(dim=dims))
        return model


_schedules: weakref.WeakKeyDictionary[PixelCNN, tuple[tuple[int, ...], Schedule]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def schedule_for(model: PixelCNN) -> Schedule:
    """The model's schedule, made once and made anew when its weights have changed since."""
    versions = tuple(parameter._version for parameter in model.parameters())
    with _lock:
        kept = _schedules.get(model)
        if kept is None or kept[0] != versions:
            kept = (versions, Schedule(model))
            _schedules[model] = kept
        return kept[1]
