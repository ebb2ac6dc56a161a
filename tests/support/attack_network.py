"""A small network with saved weights and images, over which the tests of attacks cost nothing."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from support.helpers import TESTS
from torch import Tensor, nn


class AttackFixture(NamedTuple):
    """uint8 images (8, 1, 10, 10), the network's labels (8,), its second choices (8,), and what others did to them.

    jsma, lbfgs: floating (8, 1, 10, 10), towards ``targets``; see bench/scripts/make_attack_fixtures.py.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    targets: Tensor
    jsma: Tensor
    lbfgs: Tensor

    @property
    def x(self) -> Tensor:
        return self.images.float() / 255


@functools.cache
def attack_fixture() -> AttackFixture:
    with np.load(TESTS / "data" / "attack_fixtures.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file}
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.LeakyReLU(0.1), nn.Linear(16, 10)).eval()
    network.load_state_dict({name: arrays.pop(name.replace(".", "_")) for name in network.state_dict()})
    return AttackFixture(network, **arrays)


def sign_step(images: Tensor, direction: Tensor, before: Tensor, eps: int, step: int = 2) -> Tensor:
    """One step by hand, in NumPy's integers."""
    moved = images.numpy().astype(int) + np.rint(step * direction.numpy()).astype(int)
    low, high = before.numpy().astype(int) - eps, before.numpy().astype(int) + eps
    return torch.from_numpy(np.clip(np.clip(moved, low, high), 0, 255).astype(np.uint8))
