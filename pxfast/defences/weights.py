"""What tells a defended classifier from another: the networks that it computes with, and their weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from .protocol import HidesNetworks


def hidden_networks(classifier: nn.Module, image_shape: tuple[int, ...]) -> list[nn.Module]:
    """Networks that the classifier's defences hold without their being submodules, such as a purifier's model.

    image_shape: (C, H, W), for purifiers that pick the shipped model of that shape.
    """
    found = []
    for module in classifier.modules():
        if isinstance(module, HidesNetworks):
            found += module.hidden_networks(image_shape)
        else:
            found += [value for value in vars(module).values() if isinstance(value, nn.Module)]
    return found


def network_digest(network: nn.Module, *others: nn.Module) -> str:
    """SHA-256 of how the first network is made, and of the weights of all."""
    weights = hashlib.sha256(repr(network).encode())
    for each in (network, *others):
        for name, value in each.state_dict().items():
            values = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            weights.update(name.encode() + values.tobytes())
    return weights.hexdigest()
