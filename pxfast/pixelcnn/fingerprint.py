"""A model's fingerprint: whether two models are the same one."""

from __future__ import annotations

import hashlib
import weakref

import torch
from torch import Tensor

from .network import PixelCNN
from .oracle import frozen

# of each model, its frozen copy at the time and the fingerprint
_known: weakref.WeakKeyDictionary[PixelCNN, tuple[weakref.ref[PixelCNN], str]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def model_fingerprint(model: PixelCNN) -> str:
    """SHA-256, in hexadecimal, of all that decides a model's likelihoods: head, image shape, weights.

    A model file gives the same fingerprint on every machine, whatever is in its notes. It is that of the frozen copy,
    which is what decodes and judges: type, place and memory format of the model itself play no part.
    """
    model = frozen(model)
    config = model.config
    digest = hashlib.sha256(f"{config.head} {config.channels} {config.image_size}".encode())

    def add(name: str, tensor: Tensor) -> None:
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f" {name} {tuple(values.shape)} ".encode())
        digest.update(values.flatten().numpy().data)

    for name, convolution in model.convolutions():
        # of a model from a file g is |v|, whose last digit depends on the processor: its ratio to |v| is 1 everywhere
        v = convolution.v.contiguous()
        norm = torch.linalg.vector_norm(v, dim=(0, 2, 3) if convolution.transposed else (1, 2, 3))
        add(f"{name}.direction", v)
        add(f"{name}.gain", convolution.g / norm)
        add(f"{name}.bias", convolution.b)
    for name, parameter in model.head.named_parameters():
        add(f"head.{name}", parameter)
    return digest.hexdigest()


def kept_fingerprint(model: PixelCNN) -> str:
    """:func:`model_fingerprint`, computed anew only where the model's weights have changed since.

    They are compared with a copy, value by value, which takes a small part of the time that the hash takes.
    """
    copied = frozen(model)
    known = _known.get(model)
    if known is not None and known[0]() is copied:
        return known[1]
    found = model_fingerprint(model)
    _known[model] = weakref.ref(copied), found
    return found
