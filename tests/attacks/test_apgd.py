"""APGD through BPDA: its checkpoints, losses and steps by hand; random search."""

from __future__ import annotations

import pytest
import torch
from support.attack_network import attack_fixture
from torch import Tensor, nn

from pxfast.attacks import APGDBPDA, BPDA, RandomSearch
from pxfast.attacks.apgd import checkpoints, dlr
from pxfast.defences import Defended

FIXTURE = attack_fixture()
EPS = 20


def test_checkpoints_are_the_published_ones() -> None:
    """p is 0.22, 0.22 + 0.19, and so on, each period 0.03 shorter and at least 0.06."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[4.0, 3.0, 1.0, 0.0], [3.0, 4.0, 1.0, 0.0]])
    assert dlr(logits, torch.tensor([0, 0])).tolist() == pytest.approx([-1 / 3, 1 / 3])


def test_the_first_step_is_two_eps_along_the_sign_and_back_into_the_ball() -> None:
    class Up(nn.Module):
        """The first logit falls with every value: the loss of label 0 rises with the image."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.flatten(1).sum(dim=1)
            return torch.stack([10.0 - total, total - 10.0, 0.0 * total], dim=1)

    images = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    target = Defended(Up().eval(), [nn.Identity()])
    result = APGDBPDA(steps=2, restarts=1).run(target, images, torch.zeros(2, dtype=torch.int64), EPS)
    assert (result.images == 100 + EPS).all()
    assert result.queries.tolist() == [2, 2]


@pytest.mark.parametrize("loss", ["ce", "dlr", "both"])
def test_restarts_break_at_least_as_many(loss: str) -> None:
    target = Defended(FIXTURE.network, [nn.Identity()])
    broken = [
        APGDBPDA(steps=8, restarts=restarts, loss=loss).run(target, FIXTURE.images, FIXTURE.labels, 2).rounded
        for restarts in (1, 3)
    ]
    assert not bool((broken[0] & ~broken[1]).any())
    assert int(broken[1].sum()) >= 1


def test_it_is_no_weaker_than_bpda_and_random_search_is_no_stronger() -> None:
    target = Defended(FIXTURE.network, [nn.Identity()])
    left = {
        attack.name: int((~attack.run(target, FIXTURE.images, FIXTURE.labels, 3).rounded).sum())
        for attack in (APGDBPDA(steps=20), BPDA(steps=20), RandomSearch(steps=20))
    }
    assert left["apgd-bpda"] <= left["bpda"] <= left["random-search"]


def test_two_classes_have_the_cross_entropy_in_place_of_dlr() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
        images = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
    found = [
        APGDBPDA(steps=5, restarts=1, loss=loss)(Defended(net, [nn.Identity()]), images, None, 4)
        for loss in ("ce", "dlr")
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(("steps", "rising", "halved"), [(100, 16, True), (100, 17, False), (10, 2, True)])
def test_the_first_period_counts_moves_and_not_the_start(steps: int, rising: int, halved: bool) -> None:
    """Algorithm 1, condition 1: fewer than three quarters of the period's moves raised the loss."""
    period = checkpoints(steps)[0]
    losses = iter([0.5 + 0.01 * min(i, rising) - 0.001 * max(i - rising, 0) for i in range(period + 1)])

    class Told(nn.Module):
        """Has the next loss at each call, whatever it is asked; the gradient leads nowhere."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            share = torch.exp(-torch.tensor(next(losses)))
            logits = torch.stack([share, 1.0 - share]).log()
            return logits.expand(len(x), 2) + 0.0 * x.flatten(1).sum(dim=1, keepdim=True)

    climb = APGDBPDA(steps=steps, restarts=1, loss="ce").climb(
        Defended(Told().eval(), [nn.Identity()]), (1, 2, 2), 8 / 255
    )
    labels = torch.zeros(1, dtype=torch.int64)
    state = {"x": torch.full((1, 1, 2, 2), 100 / 255), "labels": labels, "seeds": labels, "taken": labels.clone()}
    climb.begin(state)
    for _ in range(period + 1):
        climb.step(state)
        state["taken"] += 1
    assert state["size"].tolist() == [8.0 if halved else 16.0]


class Tied(nn.Module):
    """Logits among which the label, 1, always ties: with the class behind it at the image, with the one before beyond.

    The gradient is one towards white.
    """

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean((1, 2, 3))
        moved = (brightness > 0.5).to(x)
        logits = torch.stack((moved, torch.ones_like(moved), 1.0 - moved), dim=1)
        slope = torch.stack((brightness, 0.0 * brightness, 0.0 * brightness), dim=1)
        return logits + slope - slope.detach()


@pytest.mark.parametrize("attack", [APGDBPDA(steps=3), RandomSearch(steps=20)], ids=lambda attack: attack.name)
def test_a_tie_that_is_lost_is_kept(attack) -> None:
    """The lead of another class is 0 before and after."""
    images = torch.full((1, 1, 4, 4), 127, dtype=torch.uint8)
    result = attack.run(Defended(Tied().eval(), [nn.Identity()]), images, [1], eps=8)
    assert result.rounded.all()
