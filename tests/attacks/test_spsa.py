"""SPSA: its estimate of a gradient, and what it asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.attack_network import attack_fixture, sign_step
from torch import Tensor, nn

from pxfast.attacks import SPSA, spsa
from pxfast.attacks.spsa import random_signs
from pxfast.defences import Defended
from pxfast.tensors.seeds import derived_seeds, image_seeds

FIXTURE, EPS = attack_fixture(), 20


def two_classes(weight: Tensor) -> nn.Module:
    """Two linear classes, of which the first is always the likelier one."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weight), 2)).eval().requires_grad_(False)
    network[1].weight.copy_(torch.stack((-weight, weight)))
    network[1].bias.copy_(torch.tensor([999.0, 0.0]))
    return network


def test_spsa_estimates_a_linear_gradient() -> None:
    """The margin of two linear classes has slope 2 w everywhere: the estimate is the mean of (2 w . v) v."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, generator=generator)
    target = Defended(two_classes(weight), [nn.Identity()])
    images = torch.randint(40, 200, (5, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.zeros(5, dtype=torch.int64)
    for pairs in (3, 4000):
        found = SPSA(steps=1, pairs=pairs).run(target, images, labels, 8)
        seeds = derived_seeds(derived_seeds(image_seeds(images.float() / 255), 0), 0)
        v = random_signs(seeds, pairs, (1, 4, 4)).flatten(2).double()
        estimate = (v @ weight.double())[:, :, None] * v
        assert torch.equal(found.images, sign_step(images, estimate.mean(1).sign().reshape(5, 1, 4, 4), images, 8))
        assert (found.queries == 2 * pairs + 1).all()
        assert (found.gradients == 0).all()
    clear = weight.abs() > 0.3  # well above the noise of 4,000 pairs, about |w| / sqrt(4000)
    assert clear.sum() > 8
    analytic = sign_step(images, weight.sign().reshape(1, 1, 4, 4).expand(5, 1, 4, 4), images, 8)
    assert torch.equal(found.images.flatten(1)[:, clear], analytic.flatten(1)[:, clear])
    signs = random_signs(list(range(50)), 40, (1, 4, 4))
    assert signs.abs().eq(1).all()
    assert abs(float(signs.float().mean())) < 4 / np.sqrt(signs.numel())


def test_spsa_asks_nothing_but_logits_of_images_in_range() -> None:
    asked = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            asked.append(x)
            return x

    images = torch.randint(0, 256, (2, 1, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0] = 0
    network = nn.Sequential(nn.Flatten(), two_classes(torch.ones(100))).eval()
    SPSA(steps=3, pairs=5)(Defended(network, [Watched()]), images, torch.zeros(2, dtype=torch.int64), 8)
    assert sum(len(x) for x in asked) == 2 * 3 * 11
    for x in asked:
        assert float(x.min()) >= 0.0
        assert float(x.max()) <= 1.0
        torch.testing.assert_close(255 * x, (255 * x).round(), rtol=0, atol=1e-4)


def test_no_more_is_asked_at_once_than_a_purifier_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair by pair where there are many images; the results are those of one question."""
    asked = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return x

    target = Defended(FIXTURE.network, [Watched()])
    whole = SPSA(steps=2, pairs=5)(target, FIXTURE.images[:3], FIXTURE.labels[:3], 8)
    assert max(asked) == 30
    for most, largest in ((12, 12), (17, 12), (18, 18), (1, 6)):
        asked.clear()
        monkeypatch.setattr(spsa, "QUERIES_AT_ONCE", most)
        assert torch.equal(SPSA(steps=2, pairs=5)(target, FIXTURE.images[:3], FIXTURE.labels[:3], 8), whole)
        assert max(asked) == largest


@pytest.mark.external
def test_spsa_agrees_with_torchattacks_on_where_to_go() -> None:
    """Theirs moves by Adam off the grid: the two share the direction, not the step."""
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    x, images, labels = FIXTURE.x[:4], FIXTURE.images[:4], FIXTURE.labels[:4]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attack = torchattacks.SPSA(FIXTURE.network, eps=EPS / 255, delta=3 / 255, lr=2 / 255, nb_iter=1, nb_sample=1024)
        theirs = attack()(x, labels) - x
    ours = SPSA(steps=1, pairs=1024)(Defended(FIXTURE.network, [nn.Identity()]), images, labels, EPS).int() - images
    moved = (theirs.abs() > 0.5 / 255) & (ours != 0)
    assert moved.double().mean() > 0.5
    assert (ours.sign() == theirs.sign())[moved].double().mean() > 0.8  # two estimates; by chance it would be a half
