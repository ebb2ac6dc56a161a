"""Several views of an image: what the classifier sees, the mean of its probabilities, and attacks that know of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.attack_network import attack_fixture
from support.helpers import bundled_images, random_model
from support.small_defences import Halves, Noisy
from torch import Tensor

import pxfast
from pxfast.attacks import (
    ADAPTIVE,
    APGDBPDA,
    BPDA,
    SPSA,
    Attack,
    FullGradient,
    JointFull,
    JointScore,
    RandomSearch,
    UnrolledBIM,
)
from pxfast.attacks.attack import fix_batches
from pxfast.attacks.defence_aware import purified_gradient
from pxfast.attacks.gradients import loss_gradient
from pxfast.attacks.grid_ascent import target_of
from pxfast.classifiers import load_classifier
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.defences.weights import classifier_key
from pxfast.pixeldefend.relaxed import RelaxedPurifier
from pxfast.tensors.seeds import derived_seeds, image_seeds

FIXTURE = attack_fixture()
CHEAP = {"unrolled-bim": {"steps": 1}, "spsa": {"pairs": 4}, "bpda-eot": {"draws": 3}, "full-gradient": {"draws": 2}}


def mean_probability(*logits: Tensor) -> Tensor:
    return torch.stack([each.softmax(1) for each in logits]).mean(0)


def test_the_mean_probability_of_an_image_and_its_mirror_image_purified_each_seen_twice() -> None:
    images, classifier, purifier = bundled_images(1)[:2], load_classifier("fashion-mnist"), pxfast.Purifier(16)
    defended = Defended(classifier, [purifier], views="flip")
    with torch.no_grad():
        straight, mirrored = purifier(images).float() / 255, purifier(images.flip(3)).float() / 255
        seen = [classifier(each) for each in (straight, straight.flip(3), mirrored, mirrored.flip(3))]
        found = defended(images)
    assert not torch.equal(straight.flip(3), mirrored)
    torch.testing.assert_close(found.exp(), mean_probability(*seen), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(defended(images.flip(3)), found, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(defended(images.float() / 255), found)
        assert torch.equal(defended.defend(images), straight)


def test_views_of_a_random_purifier_have_the_images_own_seeds() -> None:
    purifier = Noisy(runs=3)
    defended = Defended(FIXTURE.network, [FeatureSqueezing(), purifier], seed=4, views="flip")
    logits = defended(FIXTURE.x)
    draws = purifier.draws(16)
    assert len(draws) == 3
    runs = []
    for _, seeds, drawn in draws:
        assert seeds[:8] == seeds[8:]
        straight, mirrored = drawn.chunk(2)
        seen = [FIXTURE.network(each) for each in (straight, straight.flip(3), mirrored, mirrored.flip(3))]
        runs.append(mean_probability(*seen).log())
    torch.testing.assert_close(logits, torch.stack(runs).mean(0))
    torch.testing.assert_close(defended(FIXTURE.x[5:6])[0], logits[5])


def test_alternatives_are_further_views() -> None:
    images, classifier = bundled_images(1)[:2], load_classifier("fashion-mnist")
    few, many = pxfast.Purifier(8), pxfast.Purifier(32)
    with torch.no_grad():
        views = [few(images).float() / 255, many(images).float() / 255]
        found = Defended(classifier, [few], alternatives=[[many]])(images)
        both = Defended(classifier, [few], alternatives=[[many]], views="flip")(images)
        mirrored = [each(images.flip(3)).float() / 255 for each in (few, many)]
    torch.testing.assert_close(found.exp(), mean_probability(*map(classifier, views)), atol=1e-5, rtol=1e-4)
    views += [each.flip(3) for each in views] + mirrored + [each.flip(3) for each in mirrored]
    torch.testing.assert_close(both.exp(), mean_probability(*map(classifier, views)), atol=1e-5, rtol=1e-4)
    nothing = Defended(classifier, [few], alternatives=[[]])(images)
    views = [views[0], images.float() / 255]
    torch.testing.assert_close(nothing.exp(), mean_probability(*map(classifier, views)), atol=1e-5, rtol=1e-4)


def test_a_random_alternative_has_the_images_own_seeds() -> None:
    purifier = Noisy(runs=3)
    defended = Defended(FIXTURE.network, [Halves()], alternatives=[[purifier]], seed=4)
    logits = defended(FIXTURE.x)
    halves = FIXTURE.network(Halves()(FIXTURE.x))
    runs = [mean_probability(halves, FIXTURE.network(drawn)).log() for _, _, drawn in purifier.draws(8)]
    assert len(runs) == 3
    torch.testing.assert_close(logits, torch.stack(runs).mean(0))
    torch.testing.assert_close(defended(FIXTURE.x[5:6])[0], logits[5])


def test_alternatives_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected lists of defences, got alternatives=\[Halves\(\)\]"):
        Defended(FIXTURE.network, alternatives=[Halves()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected lists of defences, got alternatives=3"):
        Defended(FIXTURE.network, alternatives=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a classifier and a list of defences, all nn\.Module, got 8"):
        Defended(FIXTURE.network, alternatives=[[8]])  # type: ignore[list-item]


def test_one_view_is_as_before_and_others_are_refused() -> None:
    plain, one = Defended(FIXTURE.network, [Halves()]), Defended(FIXTURE.network, [Halves()], views="one")
    assert torch.equal(plain(FIXTURE.x), one(FIXTURE.x))
    assert torch.equal(plain(FIXTURE.x), FIXTURE.network(Halves()(FIXTURE.x)))
    assert "views" not in repr(one)
    assert "views=flip" in repr(Defended(FIXTURE.network, views="flip"))
    with pytest.raises(ValueError, match="views must be one of one, flip, got 'rotate'"):
        Defended(FIXTURE.network, views="rotate")
    with pytest.raises(TypeError, match="views must be"):
        Defended(FIXTURE.network, views=2)  # type: ignore[arg-type]


def test_what_is_made_of_a_defended_classifier_has_its_views() -> None:
    defended = Defended(FIXTURE.network, [Noisy()], seed=3, clip=True, views="flip")
    for other in (fix_batches(defended, 4), defended.around(FIXTURE.network), copy.deepcopy(defended)):
        assert (other.views, other.seed, other.clip, len(other.chains)) == ("flip", 3, True, 1)
    more = Defended(FIXTURE.network, [Noisy()], alternatives=[[Halves()]])
    for other in (fix_batches(more, 4), more.around(FIXTURE.network), copy.deepcopy(more)):
        assert [type(part) for chain in other.chains for part in chain] == [Noisy, Halves]
    shape = tuple(FIXTURE.x.shape[1:])
    assert classifier_key(more, shape) != classifier_key(Defended(FIXTURE.network, [Noisy()]), shape)
    assert not more.eval().alternatives[0].training
    assert defended.around(FIXTURE.network, seed=7).seed == 7
    unflipped = Defended(FIXTURE.network, [Noisy()], seed=3, clip=True)
    assert classifier_key(defended, shape) != classifier_key(unflipped, shape)
    torch.testing.assert_close(fix_batches(defended, 4)(FIXTURE.x), defended(FIXTURE.x))


class InPlace(torch.nn.Module):
    """A classifier that normalises its images in place, as torchvision can."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        return FIXTURE.network(images.sub_(0.25).mul_(2.0) if self.in_place else (images - 0.25) * 2.0)


@pytest.mark.parametrize("more", [{}, {"views": "flip"}, {"alternatives": [[]]}], ids=["one", "flip", "alternatives"])
@pytest.mark.parametrize("defences", [[], [Halves()]], ids=["none", "halves"])
def test_a_classifier_may_change_its_images_in_place(more: dict[str, Any], defences: list[torch.nn.Module]) -> None:
    given = FIXTURE.x.clone()
    expected = Defended(InPlace(False).eval(), defences, **more)(given)
    assert torch.equal(Defended(InPlace(True).eval(), defences, **more)(given), expected)
    assert torch.equal(given, FIXTURE.x), "the images are the caller's"


@pytest.mark.parametrize("more", [{"views": "flip"}, {"alternatives": [[]]}], ids=["flip", "alternatives"])
def test_bpda_climbs_the_gradient_of_the_whole_straight_through(more: dict[str, Any]) -> None:
    defended = Defended(FIXTURE.network, [Halves()], **more)
    seeds = image_seeds(FIXTURE.x, 0)
    gradient, logits, _ = purified_gradient(target_of("bpda", defended), FIXTURE.x, FIXTURE.labels, seeds, 1)
    torch.testing.assert_close(logits, defended(FIXTURE.x))
    torch.testing.assert_close(gradient, loss_gradient(defended, FIXTURE.x, FIXTURE.labels))
    one = target_of("bpda", Defended(FIXTURE.network, [Halves()]))
    assert not torch.allclose(purified_gradient(one, FIXTURE.x, FIXTURE.labels, seeds, 1)[0], gradient)


def test_bpda_averages_the_gradients_of_a_random_purifiers_runs() -> None:
    purifier = Noisy()
    target = target_of("bpda", Defended(FIXTURE.network, [purifier], views="flip"))
    seeds = image_seeds(FIXTURE.x, 0)
    gradient, logits, _ = purified_gradient(target, FIXTURE.x, FIXTURE.labels, seeds, 3)
    each = [
        loss_gradient(Fixed(FIXTURE.network, purifier, derived_seeds(seeds, run)), FIXTURE.x, FIXTURE.labels)
        for run in range(3)
    ]
    torch.testing.assert_close(gradient, torch.stack(each).mean(0))
    torch.testing.assert_close(target.logits(FIXTURE.x, derived_seeds(seeds, 0)).exp().sum(1), torch.ones(8))
    assert not torch.allclose(logits, target.logits(FIXTURE.x, derived_seeds(seeds, 0)))


class Fixed(torch.nn.Module):
    """The flipped views behind a random purifier of given seeds, by hand."""

    def __init__(self, network: torch.nn.Module, purifier: Noisy, seeds: list[int]) -> None:
        super().__init__()
        self.network, self.purifier, self.seeds = network, purifier, derived_seeds(seeds, 0)

    def forward(self, x: Tensor) -> Tensor:
        straight, mirrored = self.purifier.draw(x, self.seeds), self.purifier.draw(x.flip(3), self.seeds)
        seen = (straight, straight.flip(3), mirrored, mirrored.flip(3))
        return mean_probability(*map(self.network, seen)).log()


@pytest.mark.parametrize("views", ["flip", "alternatives"])
@pytest.mark.parametrize("attack", ADAPTIVE, ids=lambda attack: attack.name)
def test_every_attack_that_knows_the_defence_knows_its_views(attack: type[Attack], views: str) -> None:
    made = attack(**{"steps": 3, **CHEAP.get(attack.name, {})})
    x = FIXTURE.x[:, :, 2:6, 2:6] if attack is UnrolledBIM else FIXTURE.x[:, :, :8, :8]
    purifier: torch.nn.Module = pxfast.Purifier(16, model=random_model((4, 4)))
    if attack is not UnrolledBIM:
        purifier = Noisy(runs=2) if attack is FullGradient else Halves()
    chain = [pxfast.Purifier(40, model=random_model((4, 4)))] if attack is UnrolledBIM else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 5)).eval().requires_grad_(False)
    more: dict[str, Any] = {"views": "flip"} if views == "flip" else {"alternatives": [chain]}
    one, two = Defended(network, [purifier]), Defended(network, [purifier], **more)
    if attack is UnrolledBIM:  # costs the most: two images that both climb a step from
        x = x[one(x).argmax(1) == two(x).argmax(1)][:2]
        assert len(x) == 2
    images, labels = (x * 255).round().byte(), two(x).argmax(1)
    few, both = (made.run(target, images, labels, eps=20, seed=1) for target in (one, two))
    # the joint attacks follow the classifier alone; a step of the unrolled one is up or down, either way in this case
    if views == "flip" or attack not in (JointScore, JointFull, UnrolledBIM):
        assert torch.equal(both.images, few.images) == (not attack.knows_defences)
    spent, twice = (torch.stack([each.queries, each.gradients]).amax(1) for each in (few, both))
    assert bool((twice >= spent).all())
    assert bool((twice > spent).any()) == attack.knows_defences
    alone = made(two, images[1:2], labels[1:2], eps=20, seed=1)
    assert torch.equal(alone[0], both.images[1])


def test_an_attack_through_the_unrolled_purifier_goes_through_both_views(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    forward = RelaxedPurifier.forward

    def noted(self: RelaxedPurifier, images: Tensor) -> Tensor:
        asked.append(images.detach())
        return forward(self, images)

    monkeypatch.setattr(RelaxedPurifier, "forward", noted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).eval().requires_grad_(False)
    x = FIXTURE.x[:2, :, 2:6, 2:6]
    defended = Defended(network, [pxfast.Purifier(16, model=random_model((4, 4)))], views="flip")
    UnrolledBIM(steps=1)(defended, (x * 255).round().byte(), torch.tensor([0, 3]), eps=4)
    assert any(torch.equal(images, torch.cat([x, x.flip(3)])) for images in asked)


@pytest.mark.parametrize("attack", [BPDA(steps=20), APGDBPDA(steps=20, restarts=1)], ids=lambda each: each.name)
def test_an_image_is_finished_when_the_mean_of_its_views_is_wrong(attack: Attack) -> None:
    defended = Defended(FIXTURE.network, [Halves()], views="flip")
    result = attack.run(defended, FIXTURE.images, FIXTURE.labels, eps=60)
    wrong = defended(result.images).argmax(1) != FIXTURE.labels
    assert torch.equal(result.rounded, wrong)
    assert bool(wrong.any())
    steps = result.gradients // 4
    assert torch.equal(steps, result.queries // 2)
    assert bool((steps[wrong] <= 20).all())


def test_searches_without_gradients_count_both_views() -> None:
    defended = Defended(FIXTURE.network, [Halves()], views="flip")
    spent = SPSA(steps=2, pairs=3).run(defended, FIXTURE.images, None, eps=1)
    assert spent.queries.tolist() == [2 * (2 * 3 + 1) * 2] * len(FIXTURE.images)
    few = RandomSearch(steps=9, max_queries=4).run(defended, FIXTURE.images, FIXTURE.labels, eps=1)
    assert int(few.queries.max()) <= 4
