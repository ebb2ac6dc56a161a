"""DeepFool's step on a linear classifier, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pxfast.attacks import DeepFool


def linear(weight: list[list[float]], bias: list[float]) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, len(bias))).eval().requires_grad_(False)
    network[1].weight.copy_(torch.tensor(weight))
    network[1].bias.copy_(torch.tensor(bias))
    return network


# The label leads class 1 by 0.2, whose slope differs by 1 in the L1 norm, and class 2 by 0.4, by 8.
NETWORK = linear([[0.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.0, 0.0], [2.0, -2.0, 2.0, -2.0]], [0.0, -0.2, -0.4])
X = torch.full((1, 1, 2, 2), 0.5)
LABEL = torch.tensor([0])


def moved(distance: float, way: list[float], overshoot: float) -> Tensor:
    return X + (1.0 + overshoot) * (distance + 1e-4) * torch.tensor(way).reshape(1, 1, 2, 2)


@pytest.mark.parametrize("options", [{}, {"overshoot": 0.5}, {"candidates": 2}, {"candidates": 9}, {"steps": 1}])
def test_a_step_leads_to_the_nearest_boundary_and_a_little_beyond(options: dict) -> None:
    """0.4 / 8 is nearer than 0.2 / 1; where a slope is 0 nothing moves."""
    found = DeepFool(**options).find(NETWORK, X, LABEL)
    torch.testing.assert_close(found, moved(0.05, [1.0, -1.0, 1.0, -1.0], options.get("overshoot", 0.02)))


def test_the_likeliest_candidates_alone_are_considered() -> None:
    found = DeepFool(candidates=1).find(NETWORK, X, LABEL)
    torch.testing.assert_close(found, moved(0.2, [1.0, -1.0, 0.0, 0.0], 0.02))


def test_steps_are_summed_and_stay_in_range() -> None:
    """Near black the first step is clipped, and the next one goes on from there; without steps nothing moves."""
    dark = torch.tensor([0.5, 0.01, 0.5, 0.01]).reshape(1, 1, 2, 2)
    network = linear([[0.0] * 4, [1.0, -1.0, 1.0, -1.0]], [0.0, -1.08])
    # it leads by 0.1, a quarter of which is 0.025 a value: black is reached, and 0.015 of each dark one is lost
    first = 1.02 * (0.025 + 1e-4)
    left = 1.08 - 2 * (0.5 + first)
    second = first + 1.02 * (left / 4 + 1e-4)
    expected = torch.tensor([0.5 + second, 0.0, 0.5 + second, 0.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(DeepFool(steps=2).find(network, dark, LABEL), expected)
    torch.testing.assert_close(DeepFool(steps=1).find(network, dark, LABEL)[0, 0, 0, 0].item(), 0.5 + first)
    assert torch.equal(DeepFool(steps=0).find(network, dark, LABEL), dark)
