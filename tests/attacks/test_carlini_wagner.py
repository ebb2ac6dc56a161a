"""Carlini and Wagner's attacks against plain twins: PyTorch's Adam, and their searches for one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from support.attack_network import attack_fixture
from torch import Tensor, nn

from pxfast.attacks import CWL2, CWLinf
from pxfast.attacks.carlini_wagner import Adam, from_tanh, margin, to_tanh

FIXTURE = attack_fixture()
X, LABELS = FIXTURE.x[:4], FIXTURE.labels[:4]


def test_adam_is_torchs_with_each_images_own_count() -> None:
    gradients = torch.randn(8, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    ours, w = Adam(torch.zeros(3, 1, 2, 2), 0.1), torch.zeros(3, 1, 2, 2)
    twins = [nn.Parameter(torch.zeros(1, 2, 2)) for _ in range(3)]
    optimisers = [torch.optim.Adam([twin], lr=0.1) for twin in twins]
    for step, gradient in enumerate(gradients):
        chosen = torch.tensor([0, 2] if step % 2 else [0, 1, 2])
        w[chosen] += ours.step(chosen, gradient[chosen])
        for i in chosen.tolist():
            twins[i].grad = gradient[i].clone()
            optimisers[i].step()
        if step == 4:
            ours.restart(torch.tensor([2]))
            optimisers[2] = torch.optim.Adam([twins[2]], lr=0.1)
    torch.testing.assert_close(w, torch.stack([twin.detach() for twin in twins]))


def test_margins_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0], [1.0, 4.0, 3.0], [2.0, 2.0, 0.0]])
    assert margin(logits, torch.tensor([1, 2, 0])).tolist() == [1.0, -1.0, 0.0]


def test_black_and_white_have_a_place_in_the_space_of_the_search() -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert to_tanh(x).isfinite().all()
    torch.testing.assert_close(to_tanh(x)[1], torch.tensor(0.5 * math.log(0.5 / 1.5)), atol=1e-5, rtol=0)
    torch.testing.assert_close(from_tanh(to_tanh(x)), x, atol=1e-6, rtol=0)


def lead(network: nn.Module, x: Tensor, label: int) -> Tensor:
    """By how much the label's logit leads, of one image."""
    logits = network(x[None])[0]
    return logits[label] - torch.cat((logits[:label], logits[label + 1 :])).max()


def l2_by_hand(
    x: Tensor, label: int, *, steps: int, searches: int, rate: float, const: float, confidence: float
) -> Tensor:
    """Section VI.A, with Carlini's own end of a search that no longer falls: looked for ten times, or all ten steps."""
    origin = torch.atanh(0.999999 * (2.0 * x - 1.0))
    low, high, best, nearest = 0.0, math.inf, x, math.inf
    for _ in range(searches):
        w = origin.clone().requires_grad_()
        adam, succeeded, earlier = torch.optim.Adam([w], lr=rate), False, math.inf
        for step in range(steps):
            moved = (torch.tanh(w) + 1.0) / 2.0
            distance = (moved - (torch.tanh(origin) + 1.0) / 2.0).square().sum()
            room = lead(FIXTURE.network, moved, label)
            loss = distance + const * (room + confidence).clamp(min=0.0)
            if room.item() < 0.0 and room.item() <= -confidence:
                succeeded = True
                if distance.item() < nearest:
                    best, nearest = moved.detach(), distance.item()
            (w.grad,) = torch.autograd.grad(loss, w)  # none is left in the network's weights
            adam.step()
            if step % max(10, steps // 10) == 0:
                if loss.item() > 0.9999 * earlier:
                    break
                earlier = loss.item()
        low, high = (low, const) if succeeded else (const, high)
        const = 10.0 * const if high == math.inf else (low + high) / 2.0
    return best


@pytest.mark.parametrize(
    ("steps", "searches", "rate", "const", "confidence"),
    [(120, 5, 0.05, 0.02, 0.0), (45, 4, 0.05, 1.0, 0.5), (150, 1, 0.1, 1.0, 0.0)],
)
def test_the_l2_search_is_that_of_one_image_after_the_other(steps, searches, rate, const, confidence) -> None:
    attack = CWL2(
        steps=steps, binary_search_steps=searches, learning_rate=rate, initial_const=const, confidence=confidence
    )
    found = attack.find(FIXTURE.network, X, LABELS)
    settings = {"steps": steps, "searches": searches, "rate": rate, "const": const, "confidence": confidence}
    expected = [l2_by_hand(x, label, **settings) for x, label in zip(X, LABELS.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-4, rtol=0)
    leads = [lead(FIXTURE.network, x, label) for x, label in zip(found, LABELS.tolist(), strict=True)]
    assert sum(each.item() < 0.0 and each.item() <= -confidence for each in leads) >= 2


def linf_by_hand(x: Tensor, label: int, *, steps: int, rate: float, const: float, shrinkage: float, smallest: float):
    """Section VI.C: tau falls below each change that was found, and the search goes on from there."""
    origin = torch.atanh(0.999999 * (2.0 * x - 1.0))
    centre, best, tau = (torch.tanh(origin) + 1.0) / 2.0, x, 1.0
    start = origin
    while tau > smallest:
        w, found = start.clone().requires_grad_(), False
        adam = torch.optim.Adam([w], lr=rate)
        for _ in range(steps):
            moved = (torch.tanh(w) + 1.0) / 2.0
            change, room = (moved - centre).abs(), lead(FIXTURE.network, moved, label)
            loss = const * room.clamp(min=0.0) + (change - tau).clamp(min=0.0).sum()
            if loss.item() < 1e-4 * const and room.item() < 0.0:
                best, found = moved.detach(), True
                tau = shrinkage * min(tau, change.max().item())
                start = torch.atanh(0.999999 * (2.0 * best - 1.0))
                break
            (w.grad,) = torch.autograd.grad(loss, w)  # none is left in the network's weights
            adam.step()
        if not found:
            break
    return best


@pytest.mark.parametrize(
    ("steps", "rate", "const", "shrinkage", "smallest"), [(60, 0.01, 1e-3, 0.8, 1 / 256), (25, 0.02, 1e-2, 0.5, 0.06)]
)
def test_the_linf_search_is_that_of_one_image_after_the_other(steps, rate, const, shrinkage, smallest) -> None:
    settings = {"steps": steps, "const": const, "shrinkage": shrinkage, "smallest": smallest}
    found = CWLinf(learning_rate=rate, **settings).find(FIXTURE.network, X, LABELS)
    expected = [linf_by_hand(x, label, rate=rate, **settings) for x, label in zip(X, LABELS.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-4, rtol=0)
    assert sum(bool((a != b).any()) for a, b in zip(found, X, strict=True)) >= 3
