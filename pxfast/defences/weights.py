"""What tells a defended classifier from another: its values and code, the networks that it hides, its arithmetic."""

from __future__ import annotations

import hashlib

from torch import nn

from ..engines.arithmetic import arithmetic_of
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN
from ..pixeldefend.purify import Purifier
from ..tensors.identity import identity_of
from ..tensors.store import canonical
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


def hidden_keys(classifier: nn.Module, image_shape: tuple[int, ...]) -> list[str]:
    """What results depend on besides the classifier's own values and code: the networks that it hides, by hashes, and
    the arithmetic of its purifiers' decodes here and now. image_shape: (C, H, W).
    """
    purifiers = [module for module in classifier.modules() if isinstance(module, Purifier)]
    arithmetic = [arithmetic_of(each.engine, each.precision) for each in purifiers]
    decodes = [hashlib.sha256(canonical(each).encode()).hexdigest() for each in arithmetic]
    return [*(network_key(each) for each in hidden_networks(classifier, image_shape)), *decodes]


def network_key(network: nn.Module) -> str:
    """SHA-256, in hexadecimal, of all that a network without defences computes with."""
    return model_fingerprint(network) if isinstance(network, PixelCNN) else identity_of(network).key


def classifier_key(classifier: nn.Module, image_shape: tuple[int, ...]) -> str:
    """SHA-256, in hexadecimal, of all that a classifier, with its defences, computes with. image_shape: (C, H, W)."""
    keys = [identity_of(classifier).key, *hidden_keys(classifier, image_shape)]
    return hashlib.sha256("-".join(keys).encode()).hexdigest()
