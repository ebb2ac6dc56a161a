"""Attacks that know the defence: exact steps, gradients by hand, averages, budgets, and independence of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attack_network import attack_fixture, sign_step
from support.helpers import noisy, real_images
from support.small_defences import Halves, Noisy, linear_gradient
from torch import Tensor, nn

import pxfast
from pxfast.attacks import (
    ADAPTIVE,
    APGDBPDA,
    BPDA,
    BPDAEOT,
    SPSA,
    Attack,
    BlindPGD,
    FullGradient,
    JointFull,
    JointScore,
    RandomSearch,
    UnrolledBIM,
    grid_ascent,
)
from pxfast.attacks.attack import BATCH
from pxfast.attacks.climb import Ascent, climbed
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.tensors.seeds import derived_seeds, image_seeds

FIXTURE = attack_fixture()
CHEAP = {"spsa": {"pairs": 4}, "bpda-eot": {"draws": 3}, "full-gradient": {"draws": 2}}
OVER_ANY = [attack for attack in ADAPTIVE if attack is not UnrolledBIM]
EPS = 20


def cheap(attack: type[Attack], **options) -> dict:
    return {"steps": 3, **CHEAP.get(attack.name, {}), **options}


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """Logits of five classes, linear in an 8x8 image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixeldefend(tiny_model: pxfast.PixelCNN, linear: nn.Module) -> Defended:
    return Defended(linear, [pxfast.Purifier(16, model=tiny_model)])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return noisy(real_images(1, (8, 8), 6), 8)


@pytest.fixture(scope="module")
def labels(pixeldefend: Defended, images: Tensor) -> Tensor:
    return pixeldefend(images).argmax(1)


def targets(attack: type[Attack]) -> list[nn.Module]:
    """Defended models over 10x10 images that the attack can take."""
    return [Defended(FIXTURE.network, [Noisy()])] + (
        [] if attack is FullGradient else [Defended(FIXTURE.network, [Halves()])]
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    eps=st.integers(0, 255),
    step=st.integers(1, 300),
    steps=st.integers(0, 4),
    started=st.booleans(),
)
def test_steps_and_projections_are_exact(seed: int, eps: int, step: int, steps: int, started: bool) -> None:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (3, 1, 4, 4), dtype=np.uint8))
    images[0] = torch.from_numpy(random.choice([0, 1, 254, 255], (1, 4, 4)).astype(np.uint8))
    ways = [torch.from_numpy(random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (3, 1, 4, 4))) for _ in range(steps)]
    start = torch.from_numpy(random.integers(-eps, eps + 1, (3, 1, 4, 4))) if started else None
    seen: list[Tensor] = []

    def direction(x: Tensor, labels: Tensor, seeds: list[int]) -> tuple[Tensor, None]:
        seen.append(x)
        return ways[len(seen) - 1], None

    begin = None if start is None else lambda seeds, x: start
    climb = Ascent(direction, eps, steps=steps, step=step, queries=1, gradients=1, start=begin)
    given = {"x": images.float() / 255.0, "labels": torch.zeros(3), "seeds": torch.tensor([1, 2, 3])}
    ((state, _),) = climbed(climb, [given], steps=steps, at_once=3)
    found = state["moved"] / 255.0
    expected = images if start is None else sign_step(images, start, images, eps, 1)
    for x, way in zip(seen, ways, strict=True):
        assert torch.equal(x, expected.float() / 255.0)
        expected = sign_step(expected, way, images, eps, step)
    assert torch.equal(found, expected.float() / 255.0)


@pytest.mark.parametrize("attack", OVER_ANY, ids=lambda attack: attack.name)
def test_stays_in_the_ball_and_is_the_same_alone_and_in_any_order(attack: type[Attack]) -> None:
    for target in targets(attack):
        together = attack(**cheap(attack)).run(target, FIXTURE.images, FIXTURE.labels, EPS, seed=3)
        assert together.images.dtype == torch.uint8
        change = (together.images.int() - FIXTURE.images.int()).abs()
        assert 0 < int(change.max()) <= (EPS if attack in (BlindPGD, APGDBPDA, RandomSearch) else 6)
        assert torch.equal(together.rounded, target(together.images).argmax(1) != FIXTURE.labels)
        order = torch.tensor([3, 1, 7, 0])
        for chosen in (order, order[:1]):
            part = attack(**cheap(attack)).run(target, FIXTURE.images[chosen], FIXTURE.labels[chosen], EPS, seed=3)
            for name in ("images", "rounded", "queries", "gradients"):
                assert torch.equal(getattr(part, name), getattr(together, name)[chosen]), name
        assert torch.equal(
            attack(**cheap(attack))(target, FIXTURE.images, FIXTURE.labels, EPS, seed=3), together.images
        )
        assert torch.equal(attack(**cheap(attack))(target, FIXTURE.images, None, 0), FIXTURE.images)


@pytest.mark.parametrize("attack", OVER_ANY, ids=lambda attack: attack.name)
def test_images_may_be_at_different_steps(attack: type[Attack], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few are at work, one that comes later begins while the others are at a step, or a restart, of their own."""
    (target, *_), made = targets(attack)[::-1], attack(**cheap(attack))
    together = made.run(target, FIXTURE.images, FIXTURE.labels, 4, seed=3)
    monkeypatch.setattr(grid_ascent, "AT_ONCE", (3, 3))
    few = made.run(target, FIXTURE.images, FIXTURE.labels, 4, seed=3)
    for name in ("images", "rounded", "queries", "gradients"):
        assert torch.equal(getattr(few, name), getattr(together, name)), name


@pytest.mark.parametrize("attack", [BPDA, BPDAEOT, JointScore, JointFull, SPSA], ids=lambda attack: attack.name)
def test_through_pixeldefend_an_image_depends_on_no_other(
    attack: type[Attack], pixeldefend: Defended, images: Tensor, labels: Tensor
) -> None:
    together = attack(**cheap(attack))(pixeldefend, images, labels, 8)
    assert torch.equal(attack(**cheap(attack))(pixeldefend, images[4:5], labels[4:5], 8)[0], together[4])
    assert 0 < int((together.int() - images.int()).abs().max()) <= 6


@pytest.mark.parametrize("attack", [BPDAEOT, SPSA, BlindPGD], ids=lambda attack: attack.name)
def test_random_numbers_follow_the_seed(attack: type[Attack]) -> None:
    target = Defended(FIXTURE.network, [Noisy(0.3)])
    results = [attack(**cheap(attack))(target, FIXTURE.images, FIXTURE.labels, EPS, seed=s) for s in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    state = torch.get_rng_state()
    attack(**cheap(attack))(target, FIXTURE.images, None, EPS)
    assert torch.equal(torch.get_rng_state(), state)


def test_bpda_follows_the_gradient_at_the_purified_image(
    pixeldefend: Defended, linear: nn.Module, images: Tensor
) -> None:
    """By the formula of a linear classifier's gradient, and until an image is misclassified."""
    eps, labels = 8, pixeldefend(images).argmax(1)
    weight, bias = linear[1].weight, linear[1].bias
    expected, fooled = images.clone(), torch.zeros(len(images), dtype=torch.bool)
    taken = torch.zeros(len(images), dtype=torch.int64)
    for _ in range(30):
        purified = pxfast.purify(expected.float() / 255, 16, model=pixeldefend.defences[0].model)
        taken += ~fooled
        fooled |= linear(purified).argmax(1) != labels
        moved = sign_step(expected, linear_gradient(weight, bias, purified, labels).sign(), images, eps)
        expected = torch.where(fooled[:, None, None, None], expected, moved)
    assert int(fooled.sum()) > 0
    result = BPDA(steps=30).run(pixeldefend, images, labels, eps)
    assert torch.equal(result.images, expected)
    assert torch.equal(result.queries, taken)
    assert torch.equal(result.gradients, taken)
    assert (result.queries[result.rounded] <= 30).all()
    assert bool((result.rounded >= fooled).all())


def test_bpda_is_a_gradient_attack_straight_through_the_purifier(pixeldefend: Defended, images: Tensor) -> None:
    """What any library gets from the module's own backward."""
    labels = pixeldefend(images).argmax(1)
    x = (images.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(pixeldefend(x), labels, reduction="sum"), x)
    assert torch.equal(BPDA(steps=1)(pixeldefend, images, labels, 8), sign_step(images, gradient.sign(), images, 8))


def test_misclassified_images_are_left_alone_unless_the_purifier_is_random() -> None:
    others = FIXTURE.targets  # labels that the network does not give
    sharp = Defended(FIXTURE.network, [Halves()])
    wrong = sharp(FIXTURE.images).argmax(1) != others
    assert 0 < wrong.sum() < 8
    result = BPDA(steps=5).run(sharp, FIXTURE.images, others, EPS)
    assert torch.equal(result.images[wrong], FIXTURE.images[wrong])
    assert (result.queries[wrong] == 1).all()
    random = BPDA(steps=5).run(Defended(FIXTURE.network, [Noisy()]), FIXTURE.images, others, EPS)
    assert (random.queries == 5).all()
    assert (random.images != FIXTURE.images).any((1, 2, 3)).all()


def test_eot_averages_the_gradients_at_draws_of_their_own() -> None:
    purifier = Noisy(0.4)
    target = Defended(FIXTURE.network, [purifier])
    found = BPDAEOT(steps=2, draws=15)(target, FIXTURE.images, FIXTURE.labels, EPS)
    assert len(purifier.calls) == 2
    seeds = [seed for _, seeds, _ in purifier.calls for seed in seeds]
    assert len(set(seeds)) == len(seeds) == 30 * 8
    expected = FIXTURE.images
    for number in range(2):
        gradients = []
        for asked, _, drawn in purifier.draws(8)[15 * number : 15 * number + 15]:
            assert torch.equal(asked, expected.float() / 255)
            at = drawn.clone().requires_grad_()
            loss = F.cross_entropy(FIXTURE.network(at), FIXTURE.labels, reduction="sum")
            gradients.append(torch.autograd.grad(loss, at)[0])
        mean = torch.stack(gradients).mean(0)
        assert not torch.equal(mean.sign(), gradients[0].sign())  # or the average would show nothing
        expected = sign_step(expected, mean.sign(), FIXTURE.images, EPS)
    assert torch.equal(found, expected)


def test_eot_runs_a_deterministic_purifier_once() -> None:
    target = Defended(FIXTURE.network, [Halves()])
    result = BPDAEOT(steps=4, draws=15).run(target, FIXTURE.images, FIXTURE.labels, EPS)
    assert int(result.queries.max()) <= 4
    assert torch.equal(result.images, BPDA(steps=4)(target, FIXTURE.images, FIXTURE.labels, EPS))


def classifier_gradient(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(FIXTURE.network(x), FIXTURE.labels, reduction="sum"), x)[0]


@pytest.mark.parametrize("attack", [JointScore, JointFull], ids=lambda attack: attack.name)
@pytest.mark.parametrize("at", ["image", "purified"])
def test_joint_attacks_follow_their_formula(attack: type[Attack], at: str) -> None:
    halves = Halves()
    target = Defended(FIXTURE.network, [halves])
    x, purified = FIXTURE.x, halves(FIXTURE.x)
    gradient = classifier_gradient(x if at == "image" else purified)
    likelier = halves.log_prob_gradient(x) if attack is JointScore else purified - x
    assert bool((target(x).argmax(1) == FIXTURE.labels).any())
    fooled = target(x).argmax(1) != FIXTURE.labels
    for weight, step in ((0.5, 2), (0.0, 2), (1.0, 2), (0.25, 8)):
        result = attack(steps=1, weight=weight, step=step, at=at).run(target, FIXTURE.images, FIXTURE.labels, EPS)
        way = weight * likelier.sign() + (1 - weight) * gradient.sign()
        expected = sign_step(FIXTURE.images, way, FIXTURE.images, EPS, step)
        expected[fooled] = FIXTURE.images[fooled]
        assert torch.equal(result.images, expected)
    assert (result.queries == 1).all()
    assert (result.gradients == (2 if attack is JointScore else 1)).all()


def test_joint_attacks_average_a_random_purifier() -> None:
    purifier = Noisy(0.2)
    target = Defended(FIXTURE.network, [purifier])
    found = JointFull(steps=1, draws=4)(target, FIXTURE.images, FIXTURE.labels, EPS)
    draws = [drawn for _, _, drawn in purifier.draws(8)]
    assert len(draws) == 4
    likelier = torch.stack(draws).mean(0) - FIXTURE.x
    way = 0.5 * likelier.sign() + 0.5 * classifier_gradient(FIXTURE.x).sign()
    assert torch.equal(found, sign_step(FIXTURE.images, way, FIXTURE.images, EPS))
    assert not torch.equal(likelier.sign(), (draws[0] - FIXTURE.x).sign())


def test_joint_score_takes_pixeldefends_score(pixeldefend: Defended, images: Tensor, labels: Tensor) -> None:
    x = images.float() / 255
    expected = sign_step(images, pixeldefend.defences[0].log_prob_gradient(x).sign(), images, 8)
    assert torch.equal(JointScore(steps=1, weight=1.0)(pixeldefend, images, labels, 8), expected)


def test_full_gradient_goes_through_the_purifier() -> None:
    """Where the purifier's noise is clipped its own gradient is zero, and the image stays."""
    purifier = Noisy(0.5)
    target = Defended(FIXTURE.network, [purifier])
    found = FullGradient(steps=1, draws=1)(target, FIXTURE.images, FIXTURE.labels, EPS)
    seeds = derived_seeds(derived_seeds(derived_seeds(image_seeds(FIXTURE.x), 0), 0), 0)
    x = FIXTURE.x.requires_grad_()
    purified = purifier.differentiate(x, seeds)
    clipped = (purified == 0) | (purified == 1)
    (gradient,) = torch.autograd.grad(F.cross_entropy(FIXTURE.network(purified), FIXTURE.labels, reduction="sum"), x)
    assert torch.equal(found, sign_step(FIXTURE.images, gradient.sign(), FIXTURE.images, EPS))
    assert bool(clipped.any())
    assert torch.equal(found[clipped], FIXTURE.images[clipped])
    assert not torch.equal(found, BPDA(steps=1)(target, FIXTURE.images, FIXTURE.labels, EPS))


def test_blind_pgd_knows_no_purifier() -> None:
    found = BlindPGD(steps=4).run(Defended(FIXTURE.network, [Noisy()]), FIXTURE.images, FIXTURE.labels, EPS)
    bare = BlindPGD(steps=4).run(FIXTURE.network, FIXTURE.images, FIXTURE.labels, EPS)
    assert torch.equal(found.images, bare.images)
    assert (found.queries == 0).all()
    assert (found.gradients == 4).all()
    exact = BlindPGD(steps=1, random_start=False)(FIXTURE.network, FIXTURE.images, FIXTURE.labels, EPS)
    assert torch.equal(exact, sign_step(FIXTURE.images, classifier_gradient(FIXTURE.x).sign(), FIXTURE.images, EPS))


class Around(nn.Module):
    """A module of a user's around a defended classifier."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


def test_what_torch_wraps_is_attacked_as_what_is_inside() -> None:
    defended = Defended(FIXTURE.network, [Halves()])
    for wrapped in (nn.DataParallel(defended).eval(), torch.compile(defended, backend="eager")):
        for attack in (BlindPGD(steps=2), BPDA(steps=2)):
            found = attack(wrapped, FIXTURE.images, FIXTURE.labels, EPS)
            assert torch.equal(found, attack(defended, FIXTURE.images, FIXTURE.labels, EPS))
    with pytest.raises(ValueError, match="blind-pgd attacks the classifier alone, got a module with a Defended inside"):
        BlindPGD(steps=2)(Around(defended).eval(), FIXTURE.images, FIXTURE.labels, EPS)


COSTS: dict[str, tuple[int, int]] = {
    "blind-pgd": (0, 1),
    "bpda": (3, 3),
    "bpda-eot": (3, 3),
    "joint-score": (0, 2),
    "joint-full": (3, 1),
    "spsa": (8, 0),
    "full-gradient": (3, 3),
    "apgd-bpda": (3, 3),
    "random-search": (1, 0),
}


@pytest.mark.parametrize("attack", OVER_ANY, ids=lambda attack: attack.name)
def test_budgets_end_an_attack_before_they_are_exceeded(attack: type[Attack]) -> None:
    target = Defended(FIXTURE.network, [Noisy()])
    options = {"pairs": 4} if attack is SPSA else {} if attack in (BlindPGD, RandomSearch) else {"draws": 3}
    options |= {"restarts": 1} if attack is APGDBPDA else {}
    cost = dict(zip(("queries", "gradients"), COSTS[attack.name], strict=True))
    two = attack(steps=2, **options).run(target, FIXTURE.images, FIXTURE.labels, EPS)
    assert {name: set(getattr(two, name).tolist()) for name in cost} == {name: {2 * c} for name, c in cost.items()}
    for name, each in cost.items():
        limited = two
        if each:
            limited = attack(steps=50, **options, **{f"max_{name}": 3 * each - 1}).run(
                target, FIXTURE.images, FIXTURE.labels, EPS
            )
        assert torch.equal(limited.images, two.images)
        assert torch.equal(getattr(limited, name), getattr(two, name))
    none = attack(steps=9, **options, max_queries=0, max_gradients=0).run(target, FIXTURE.images, None, EPS)
    assert int(none.queries.sum()) == int(none.gradients.sum()) == 0


def test_purifiers_get_whole_blocks_and_classifiers_their_batches(linear: nn.Module) -> None:
    sizes: dict[str, list[int]] = {"purifier": [], "classifier": []}

    def watched(name: str, function: Callable[[Tensor], Tensor]) -> nn.Module:
        class Watched(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                sizes[name].append(len(x))
                return function(x)

        return Watched().eval()

    images = FIXTURE.images.repeat(6, 1, 1, 1)
    target = Defended(watched("classifier", FIXTURE.network), [watched("purifier", lambda x: x)])
    BPDA(steps=1)(target, images, FIXTURE.labels.repeat(6), 4)
    assert sizes == {"purifier": [48], "classifier": [BATCH, BATCH, BATCH]}, (
        "the first one tells how many classes there are"
    )


def test_targets_that_an_attack_cannot_take_are_refused(pixeldefend: Defended, images: Tensor, linear) -> None:
    for attack in ADAPTIVE:
        if attack is BlindPGD:
            continue
        for bare in (linear, Defended(linear)):
            with pytest.raises(ValueError, match=rf"{attack.name} attacks a purifier.*Defended.*got a Sequential with"):
                attack()(bare, images, None, 8)
    with pytest.raises(ValueError, match=r"joint-score needs a single purifier with a score.*FeatureSqueezing"):
        JointScore()(Defended(linear, [FeatureSqueezing(8)]), images, None, 8)
    several = Defended(linear, [Halves(), Halves()]), Defended(linear, [Halves()], alternatives=[[Halves()]])
    for target in several:
        with pytest.raises(ValueError, match=r"joint-score needs a single purifier with a score, got Halves, Halves"):
            JointScore()(target, images, None, 8)
    with pytest.raises(ValueError, match=r"full-gradient needs purifiers that can be differentiated.*Purifier"):
        FullGradient()(pixeldefend, images, None, 8)
    with pytest.raises(ValueError, match=r"unrolled-bim needs a pxfast.Purifier as the only defence.*Noisy"):
        UnrolledBIM()(Defended(linear, [Noisy()]), images, None, 8)
    sparing = pxfast.Purifier(adaptive="image", model=pixeldefend.defences[0].model)
    with pytest.raises(ValueError, match="without an adaptive rule, got adaptive='image'"):
        UnrolledBIM()(Defended(linear, [sparing]), images, None, 8)


def test_results_tell_their_cost() -> None:
    result = BPDA(steps=1).run(Defended(FIXTURE.network, [Noisy()]), FIXTURE.images, None, EPS)
    assert result.seconds > 0.0
    assert dataclasses.asdict(result)["queries"].tolist() == [1] * 8
    empty = BPDA().run(Defended(FIXTURE.network, [Noisy()]), FIXTURE.images[:0], None, EPS)
    assert empty.queries is None
    assert empty.images.shape == (0, 1, 10, 10)
