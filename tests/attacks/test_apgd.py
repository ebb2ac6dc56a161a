"""APGD through BPDA: its checkpoints, losses and steps by hand; random search."""

from __future__ import annotations

import pytest
import torch
from support.attack_network import attack_fixture
from support.small_defences import Noisy
from torch import Tensor, nn

from pxfast.attacks import APGDBPDA, BPDA, RandomSearch
from pxfast.attacks.apgd import checkpoints, dlr
from pxfast.attacks.carlini_wagner import margin
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


class Hills(nn.Module):
    """Three classes, the first always the likeliest; the others rise and fall with the image, each in its own way.

    DLR needs three. It and the cross-entropy lead to different places.
    """

    def forward(self, x: Tensor) -> Tensor:
        ways = torch.linspace(1.0, 3.0, x[0].numel())
        heights = [torch.sin(pitch * x.flatten(1) * ways).mean(dim=1) for pitch in (40, 30)]
        return torch.stack((4.0 + 0.0 * heights[0], *(2.0 * height for height in heights)), dim=1)


class Watched(nn.Module):
    """Leaves images as they are, and keeps their levels."""

    def __init__(self, asked: list[Tensor]) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append((255.0 * x.detach()).round())
        return x


def by_algorithm_1(start: Tensor, image: Tensor, steps: int, loss) -> list[Tensor]:
    """The images (1, C, H, W), in whole levels, that a run of APGD asks for; after a halving it rests at its best."""
    low, high = (image - EPS).clamp(min=0), (image + EPS).clamp(max=255)
    size, now, before, asked = 2.0 * EPS, start, start, []
    losses: list[float] = []
    best: tuple[float, Tensor, Tensor] | None = None
    checked, best_checked, halved = 0, None, False
    for k in range(steps):
        asked.append(now)
        x = (now / 255.0).requires_grad_()
        value = loss(Hills()(x))
        (gradient,) = torch.autograd.grad(value, x)
        sign, momentum = gradient.sign(), 0.75 if k else 1.0
        losses.append(value.item())
        if best is None or losses[-1] > best[0]:
            best = losses[-1], now, sign
        if k in checkpoints(steps):
            rises = sum(losses[i + 1] > losses[i] for i in range(checked, k))
            stuck = not halved and best_checked is not None and best_checked >= best[0]
            halved = rises < 0.75 * (k - checked) or stuck
            checked, best_checked = k, best[0]
            if halved:
                size, (_, now, sign) = max(1.0, size / 2.0), best
                before = now
        aim = torch.minimum(torch.maximum(now + round(size) * sign, low), high)
        moved = (now + momentum * (aim - now) + (1.0 - momentum) * (now - before)).round()
        before, now = now, torch.minimum(torch.maximum(moved, low), high)
    return asked


@pytest.mark.parametrize("seed", [0, 1])
def test_two_runs_are_algorithm_1_with_the_cross_entropy_and_then_dlr(seed: int) -> None:
    """What is asked of a purifier; the image that comes back has the smallest lead of all."""
    generator, steps = torch.Generator().manual_seed(seed), 45
    asked: list[Tensor] = []
    image = torch.randint(0, 256, (1, 1, 3, 3), dtype=torch.uint8, generator=generator)

    target, labels = Defended(Hills().eval(), [Watched(asked)]), torch.zeros(1, dtype=torch.int64)
    attack = APGDBPDA(steps=steps, restarts=2)
    found = attack.perturb(target, image / 255.0, labels, EPS / 255.0, seed=seed)
    assert len(asked) == 2 * steps
    first = by_algorithm_1(
        image.float(), image.float(), steps, lambda logits: nn.functional.cross_entropy(logits, labels)
    )
    assert torch.equal(torch.cat(asked[:steps]), torch.cat(first))
    start = asked[steps]
    assert 0 < (start - image).abs().max() <= EPS
    second = by_algorithm_1(start, image.float(), steps, lambda logits: dlr(logits, labels).sum())
    assert torch.equal(torch.cat(asked[steps:]), torch.cat(second))
    other = by_algorithm_1(start, image.float(), steps, lambda logits: nn.functional.cross_entropy(logits, labels))
    assert not torch.equal(torch.cat(other), torch.cat(second)), "the losses are told apart"
    logits = Hills()(torch.cat(asked) / 255.0)
    assert torch.equal(found * 255.0, asked[int((logits[:, 1:].amax(dim=1) - logits[:, 0]).argmax())])


def test_random_search_keeps_the_smallest_lead_of_draws_from_the_whole_ball() -> None:
    asked: list[Tensor] = []

    image = torch.tensor([[[[5, 100], [128, 250]]]], dtype=torch.uint8)
    target = Defended(Hills().eval(), [Watched(asked)])
    found = RandomSearch(steps=400).perturb(target, image / 255.0, torch.zeros(1, dtype=torch.int64), EPS / 255.0)
    seen = torch.cat(asked)
    assert len(seen) == 400
    assert torch.equal(seen[:1], image.float())
    low, high = seen.amin(dim=0).flatten(), seen.amax(dim=0).flatten()
    assert (low.tolist(), high.tolist()) == ([0.0, 80.0, 108.0, 230.0], [25.0, 120.0, 148.0, 255.0])
    logits = Hills()(seen / 255.0)
    assert torch.equal(found * 255.0, seen[(logits[:, 1:].amax(dim=1) - logits[:, 0]).argmax()][None])


def test_random_search_ends_with_the_first_draw_that_is_misclassified() -> None:
    steps = []
    for x, label in zip(FIXTURE.x.split(1), FIXTURE.labels.split(1), strict=True):
        asked: list[Tensor] = []
        target = Defended(FIXTURE.network, [Watched(asked)])
        found = RandomSearch(steps=30).perturb(target, x, label, 25 / 255, seed=2)
        wrong = FIXTURE.network(torch.cat(asked) / 255.0).argmax(1) != label
        assert not wrong[:-1].any()
        assert torch.equal(255.0 * found, asked[-1]) or len(wrong) == 30
        steps.append(len(wrong))
    assert 1 < min(steps) < max(steps) == 30


def test_a_random_purifier_ends_no_search() -> None:
    """One run of it may be wrong by chance: all draws are asked, and the best lead of another class is kept."""
    purifier, x, label = Noisy(0.3), FIXTURE.x[:1], FIXTURE.labels[:1]
    found = RandomSearch(steps=20).perturb(Defended(FIXTURE.network, [purifier]), x, label, 4 / 255, seed=2)
    asked, seeds, purified = zip(*purifier.calls, strict=True)
    leads = margin(FIXTURE.network(torch.cat(purified)), label.expand(20))
    assert int(leads.argmin()) != int((leads < 0).long().argmax()), "the first misclassified draw is not the best one"
    assert torch.equal(found, asked[int(leads.argmin())])
    assert len({seed for each in seeds for seed in each}) == 20
