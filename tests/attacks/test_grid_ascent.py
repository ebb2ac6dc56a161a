"""Attacks whose iterates are on the grid: none of them leaves the ball."""

from __future__ import annotations

import pytest
import torch
from support.attack_network import attack_fixture
from support.small_defences import Halves
from torch import Tensor, nn

from pxfast.attacks import ADAPTIVE, SPSA, Attack, UnrolledBIM
from pxfast.defences import Defended

FIXTURE = attack_fixture()


class Clear(Halves):
    """Leaves images as they are, with all that an attack may ask of a purifier."""

    def forward(self, images: Tensor) -> Tensor:
        return images

    def differentiate(self, images: Tensor, seeds: list[int]) -> Tensor:
        return images

    def log_prob_gradient(self, images: Tensor) -> Tensor:
        return 0.5 - images


@pytest.mark.parametrize("attack", [each for each in ADAPTIVE if each is not UnrolledBIM], ids=lambda each: each.name)
def test_no_step_leaves_the_ball(attack: type[Attack]) -> None:
    """Rounding brings the result back, and would hide iterates that do not stay within eps."""
    x, labels, asked = FIXTURE.x[:2], FIXTURE.labels[:2], []

    class Steady(nn.Module):
        """Right to the end."""

        def forward(self, images: Tensor) -> Tensor:
            asked.append((255.0 * images.detach()).round())
            lead = 12.0 * nn.functional.one_hot(labels, 10)
            return FIXTURE.network(images) + lead.repeat(len(images) // 2, 1)

    attack(steps=9).perturb(Defended(Steady().eval(), [Clear()]), x, labels, 3 / 255, seed=1)
    change = torch.cat([images - (255.0 * x).round().repeat(len(images) // 2, 1, 1, 1) for images in asked])
    assert change.abs().max() == (6 if attack is SPSA else 3), "whose neighbours are 3 levels away"
