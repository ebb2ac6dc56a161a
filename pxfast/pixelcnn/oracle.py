"""The network that judges: a model's frozen fp32 copy, teacher-forced, kept until the model's weights change."""

from __future__ import annotations

import copy
import weakref

import torch

from ..base.checks import PRECISIONS, check_choice
from ..base.forks import ThreadLock
from ..tensors.copies import Copies
from .network import PixelCNN

_copies: Copies[PixelCNN] = Copies()
_lock = ThreadLock()
# of each frozen copy, the oracles made of it
_oracles: weakref.WeakKeyDictionary[PixelCNN, dict[tuple[str, torch.device], PixelCNN]] = weakref.WeakKeyDictionary()


def frozen(model: PixelCNN) -> PixelCNN:
    """A copy of the model that nobody trains: fp32, on the CPU, in eval mode, without gradients.

    Equal weights give the same object; it is made anew when the model's weights have changed since, however they were
    changed (:func:`pxfast.tensors.copies.same_values`). The copy of a copy is itself. ValueError for a model on the
    device 'meta', which has no weights.
    """
    with _lock:
        if model in _oracles:
            return model
        network = _copies.get(model, torch.float32, "cpu")
        _oracles.setdefault(network, {})
        return network


def oracle(model: PixelCNN, precision: str, device: torch.device | str = "cpu") -> PixelCNN:
    """The teacher-forced fp32 network that an engine of this precision is judged by, on a device.

    precision: 'fp32', or 'bf16', whose convolution weights are rounded to bf16, as the engine's are; all arithmetic
    stays fp32. Kept for the model as :func:`frozen` is. TypeError or ValueError for another precision.
    """
    check_choice("precision", precision, PRECISIONS)
    device, network = torch.device(device), frozen(model)
    if precision == "fp32" and device.type == "cpu":
        return network
    with _lock:
        kept = _oracles[network]
        if (precision, device) not in kept:
            made = copy.deepcopy(network)
            if precision == "bf16":
                for _, convolution in made.convolutions():
                    convolution.set_weight(convolution.weight().bfloat16().float())
            kept[precision, device] = made.to(device)
        return kept[precision, device]
