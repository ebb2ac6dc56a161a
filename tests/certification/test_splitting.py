"""Certificates by splitting noise: the lemma, the radius and the claim itself, on a toy and on real images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from support.engines import QUICK
from support.helpers import noisy, real_images, trained_model
from support.own_classifiers import BentLinear
from torch import Tensor, nn

from pxfast.certification import Estimate, cells, certify, radii_of, shifts
from pxfast.pixeldefend.cells import midpoints

WIDTHS = (1, 2, 3, 7, 16, 32, 64, 132, 255, 256, 257, 300)


def scrambled(lower: Tensor, upper: Tensor) -> Tensor:
    """A worst case of a guess: nothing that is near in the cells is near in it."""
    mixed = (lower.long() * 7919 + upper.long() * 104729) % 251
    return mixed.roll(1, dims=-1).mul(mixed).add(31 * mixed).remainder(256).byte()


# --- cells ---


@pytest.mark.parametrize(
    "width", [pytest.param(width, marks=[pytest.mark.whole] * (width in (256, 300))) for width in WIDTHS]
)
def test_a_change_of_d_grey_levels_alters_the_cell_at_d_offsets_at_most(width):
    """For all 256 x 256 pairs of values, all offsets and every shift: d offsets exactly, until all are altered."""
    values = torch.arange(256, dtype=torch.uint8)
    for shift in {0, 1, width // 3, width - 1}:
        starts = (torch.arange(width) + shift)[:, None]
        lower, upper = cells(values.expand(width, 256), width, starts)
        assert ((lower <= values) & (values <= upper)).all(), "a value lies in its cell"
        assert (upper.int() - lower.int() < width).all()
        altered = torch.zeros(256, 256, dtype=torch.int64)
        for low, high in zip(lower, upper, strict=True):
            other = (low[:, None] != low) | (high[:, None] != high)
            assert torch.equal(other, (low[:, None] != low) & (high[:, None] != high)), "either end tells the cell"
            altered += other
        distance = (values.int()[:, None] - values.int()).abs()
        assert torch.equal(altered, distance.clamp(max=width))


@pytest.mark.parametrize(
    ("dither", "first", "least"),
    [("lattice", [0, 18, 4, 22, 8, 27], 94), ("random", [12, 31, 0, 25, 29, 14], 60)],
)
def test_shifts_are_fixed_known_and_spread(dither, first, least):
    found = shifts((3, 32, 32), 32, dither)
    assert found.shape == (3, 32, 32)
    assert torch.equal(found, shifts((3, 32, 32), 32, dither, 0))
    assert torch.equal(found, shifts((3, 32, 32), 32, dither, 1)) == (dither == "lattice")
    assert found.flatten()[:6].tolist() == first  # the same on every machine, for ever
    assert (int(found.min()), int(found.max())) == (0, 31)
    assert found.flatten().bincount(minlength=32).min() >= least  # of 96 on average


def test_neighbours_tell_more_of_real_images_by_the_lattice():
    """The mean of 5 x 5 midpoints is nearer to that of the image, at every offset that is tried."""
    images = real_images(3, (32, 32), 8)
    error = {}
    for dither in ("lattice", "random"):
        starts = torch.arange(0, 132, 12).reshape(-1, 1, 1, 1, 1) + shifts((3, 32, 32), 132, dither)
        seen = midpoints(*cells(images[None], 132, starts))
        difference = (seen - images / 255).flatten(0, 1)
        error[dither] = nn.functional.avg_pool2d(difference, 5).square().mean()
    assert error["lattice"] < 0.9 * error["random"]


def test_two_views_vote_by_the_mean_probability_of_a_guess_and_its_mirror_image():
    images, width = real_images(1, (8, 8), 3), 20
    classifier = BentLinear(64, scale=30.0)
    found = certify(classifier, images, [0, 1, 2], width=width, purifier="midpoints", views="flip")
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 8, 8), width)
    for image, counts in zip(images, found.counts, strict=True):
        seen = midpoints(*cells(image, width, starts))
        mean = classifier(seen).softmax(1) + classifier(seen.flip(3)).softmax(1)
        assert torch.equal(mean.argmax(1).bincount(minlength=3), counts)
    one = certify(classifier, images, [0, 1, 2], width=width, purifier="midpoints")
    assert not torch.equal(one.counts, found.counts)
    assert found.settings == {**one.settings, "views": "flip"}


@pytest.mark.parametrize("dither", ["lattice", "random"])
def test_the_dither_is_part_of_what_was_computed(dither):
    found = certify(BentLinear(64), torch.zeros(1, 1, 8, 8), [0], purifier="midpoints", dither=dither, seed=7)
    assert found.settings["dither"] == dither
    assert ("seed" in found.settings) == (dither == "random")


# --- radii ---


def label_of(counts: Sequence[int]) -> int:
    return counts.index(max(counts))


@pytest.mark.parametrize("votes", [1, 2, 5, 6])
def test_the_radius_is_the_largest_number_of_votes_that_may_move(votes):
    """For all counts of three classes against all others: no r votes change the label, and some r + 1 do."""
    everything = [c for c in itertools.product(range(votes + 1), repeat=3) if sum(c) == votes]
    predictions, radii = radii_of(torch.tensor(everything))
    for counts, prediction, radius in zip(everything, predictions.tolist(), radii.tolist(), strict=True):
        assert prediction == label_of(counts)
        needed = [
            sum(abs(a - b) for a, b in zip(counts, other, strict=True)) // 2
            for other in everything
            if label_of(other) != prediction
        ]
        assert radius == min(needed) - 1, (counts, radius)


def test_ties_go_to_the_smallest_class_and_cost_the_larger_one_a_vote():
    predictions, radii = radii_of(torch.tensor([[4, 4, 0], [0, 4, 4], [3, 5, 0], [5, 3, 0], [0, 32, 0], [32, 0, 0]]))
    assert predictions.tolist() == [0, 1, 1, 0, 1, 0]
    assert radii.tolist() == [0, 0, 0, 1, 15, 16]


# --- all images of two sub-pixels ---


@pytest.mark.parametrize(
    ("width", "guess"),
    [
        pytest.param(
            width, guess, marks=[pytest.mark.whole] * ((width, guess) not in ((5, scrambled), (16, midpoints)))
        )
        for guess in (midpoints, scrambled, "estimate")
        for width in ((5, 16, 33) if guess != "estimate" else (16,))
    ],
)
def test_no_image_of_two_sub_pixels_breaks_a_certificate(width, guess):
    """All 256 x 256 images, and each against all others: the label is the same wherever the radius reaches."""
    if guess == "estimate":
        guess = Estimate.fit(real_images(1, (1, 2), 200), width=width)
    side = torch.arange(256)
    images = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 1, 1, 2).byte()
    classifier = BentLinear(2, seed=1, scale=30.0)
    counts = torch.zeros(len(images), 3, dtype=torch.int64)
    starts = shifts((1, 1, 2), width)
    for offset in range(width):
        guessed = guess(*cells(images, width, starts + offset))
        guessed = guessed.float() / 255 if guessed.dtype == torch.uint8 else guessed
        counts += nn.functional.one_hot(classifier(guessed).argmax(1), 3)
    predictions, radii = (each.reshape(256, 256) for each in radii_of(counts))
    assert len(predictions.unique()) == 3
    broken_beyond = 0
    for dx in range(-width, width + 1):
        for dy in range(-width + abs(dx), width - abs(dx) + 1):
            here = slice(max(0, -dx), 256 - max(0, dx)), slice(max(0, -dy), 256 - max(0, dy))
            there = slice(max(0, dx), 256 + min(0, dx)), slice(max(0, dy), 256 + min(0, dy))
            altered = predictions[here] != predictions[there]
            distance = abs(dx) + abs(dy)
            assert not (altered & (radii[here] >= distance)).any(), (dx, dy)
            broken_beyond += int((altered & (radii[here] == distance - 1)).sum())
    assert int(radii.max()) >= 1
    assert broken_beyond > 0, "one grey level further some label changes: the radius is no smaller than need be"
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:20]
    found = certify(classifier, images[some], [0] * 20, width=width, purifier=guess)
    assert torch.equal(found.counts, counts[some])
    assert torch.equal(found.predictions, predictions.flatten()[some])
    assert torch.equal(found.radii, radii.flatten()[some].double())


# --- what a guess may know ---


class Spy(nn.Module):
    """A classifier that keeps what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, 3)).eval()
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        self.given.append(logits)
        return logits


def model_of(purifier: str, model: object) -> object:
    """Midpoints need no model, and take none."""
    return None if purifier == "midpoints" else model


@pytest.mark.parametrize("purifier", ["pixeldefend", "sample", "midpoints", "near", "estimate"])
def test_equal_cells_give_equal_bits_whatever_else_differs(purifier):
    """Two images that share their cells at some offsets: there all logits are equal, bit for bit; nothing leaks."""
    torch.manual_seed(0)
    model, classifier, width = trained_model((8, 8), 1, 8, 1), Spy().eval(), 24
    estimate = Estimate.fit(real_images(1, (8, 8), 40), width=width)
    own = {"near": {"near": estimate}, "estimate": {"purifier": estimate, "model": None}}
    named = {"purifier": purifier, "model": model_of(purifier, model)}
    options = {"width": width, "engine": QUICK, "model": model, **own.get(purifier, named)}
    image = noisy(real_images(1, (8, 8), 1))
    other = image.clone()
    for place in ((0, 0), (3, 4), (7, 7)):
        other[0, 0][place] = image[0, 0][place] ^ 3
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 8, 8), width)
    same = torch.stack(
        [
            torch.stack([a == b for a, b in zip(cells(image, width, s), cells(other, width, s), strict=True)]).all()
            for s in starts
        ]
    )
    assert 5 < int(same.sum()) < width
    logits = []
    for one in (image, other):
        classifier.given.clear()
        certify(classifier, one, [0], **options)
        logits.append(classifier.given[-1][:width])  # batches before tell what the classifier is
    assert torch.equal(logits[0][same], logits[1][same])
    assert not torch.equal(logits[0][~same], logits[1][~same])


def test_an_image_is_certified_as_in_any_batch():
    model, classifier = trained_model((8, 8), 3, 8, 1), BentLinear(192, scale=30.0)
    images = noisy(real_images(3, (8, 8), 7))
    for purifier in ("pixeldefend", "sample"):
        options = {"width": 20, "purifier": purifier, "model": model, "engine": QUICK}
        whole = certify(classifier, images, [0] * 7, **options)
        alone = certify(classifier, images[4:5], [0], **options)
        assert torch.equal(alone.counts[0], whole.counts[4])
        assert len(whole.counts.unique(dim=0)) > 3, "votes that are always the same tell nothing"


# --- attacks ---


@pytest.fixture(scope="module")
def real_case() -> tuple[nn.Module, Tensor, dict[str, object]]:
    """A classifier of 4 x 4 crops that is unsure of them, crops, and how they are certified."""
    options = {"width": 16, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK, "precision": "fp32"}
    return BentLinear(16, seed=2, scale=1.5), real_images(1, (4, 4), 24), options


@pytest.mark.parametrize("purifier", ["pixeldefend", "midpoints", pytest.param("sample", marks=pytest.mark.whole)])
def test_no_pair_of_sub_pixels_and_no_greedy_attack_beats_a_certificate(real_case, purifier):
    classifier, images, options = real_case
    options = {**options, "purifier": purifier, "model": model_of(purifier, options["model"])}
    found = certify(classifier, images, [0] * len(images), **options)
    assert len(found.predictions.unique()) > 1
    attackable = ((found.radii >= 1) & (found.radii <= 4)).nonzero()[:, 0].tolist()[:1]
    assert attackable
    broken_beyond = 0
    for n in attackable:
        radius, label = int(found.radii[n]), int(found.predictions[n])
        if purifier == "midpoints":
            for total in (radius, radius + 2):
                pairs = pairs_of(images[n], total)
                labels = certify(classifier, pairs, [0] * len(pairs), **options).predictions
                assert total > radius or (labels == label).all()
                broken_beyond += int((labels != label).sum()) if total > radius else 0
        attacked = greedy_attack(classifier, images[n], label, radius, options)
        assert int((attacked.int() - images[n].int()).abs().sum()) == radius
        assert certify(classifier, attacked[None], [0], **options).predictions.item() == label
        further = greedy_attack(classifier, images[n], label, 4 * radius + 12, options)
        broken_beyond += int(certify(classifier, further[None], [0], **options).predictions.item() != label)
    assert broken_beyond > 0, "beyond the radius the attacks do succeed"


def pairs_of(image: Tensor, total: int) -> Tensor:
    """All images that differ from one (1, 4, 4) in two sub-pixels, by ``total`` grey levels together."""
    found = []
    for i, j in itertools.combinations(range(16), 2):
        for first in range(total + 1):
            for signs in itertools.product((-1, 1), repeat=2):
                changed = image.flatten().int()
                changed[i] += signs[0] * first
                changed[j] += signs[1] * (total - first)
                if int(changed.min()) >= 0 and int(changed.max()) <= 255:
                    found.append(changed.byte().reshape(1, 4, 4))
    return torch.stack(found).unique(dim=0)


def greedy_attack(classifier: nn.Module, image: Tensor, label: int, budget: int, options: dict) -> Tensor:
    """``budget`` steps of one grey level, each the one that leaves the label the fewest votes over the next class."""
    for _ in range(budget):
        steps = torch.cat((torch.eye(16), -torch.eye(16))).reshape(-1, 1, 4, 4).int()
        candidates = image.int() + steps
        candidates = candidates[((candidates >= 0) & (candidates <= 255)).flatten(1).all(1)].byte()
        counts = certify(classifier, candidates, [0] * len(candidates), **options).counts
        others = counts.clone()
        others[:, label] = -1
        image = candidates[(counts[:, label] - others.amax(1)).argmin()]
        if label_of(counts[(counts[:, label] - others.amax(1)).argmin()].tolist()) != label:
            break
    return image
